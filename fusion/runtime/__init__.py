"""What fusion needs of its machine: the device and its memory, worker processes, files that appear whole or not at
all.
"""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from fusion.runtime.device import (
        Held,
        Memory,
        memory_for_features,
        pick_device,
        reproducible,
        take_share,
        within_memory,
    )
    from fusion.runtime.files import (
        check_model_folder,
        holds,
        partial_folder,
        replace_files,
        replacing,
        try_place,
        write_file,
        writing,
    )
    from fusion.runtime.processes import count_jobs, place, side_by_side, single_thread
else:
    __getattr__ = door(__name__, __file__)
