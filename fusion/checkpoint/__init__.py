"""Model folders: what is in them, where a model comes from, its card, and what is handed on of it."""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from fusion.checkpoint.export import share_model
    from fusion.checkpoint.folder import (
        LoadedModel,
        check_compatible,
        check_encoders,
        load_model,
        load_seeds,
        read_provenance,
        save_model,
    )
    from fusion.checkpoint.provenance import (
        VERSION,
        Provenance,
        count_split,
        mark_conversations,
        measure_gain,
        score_intervals,
    )
else:
    __getattr__ = door(__name__, __file__)
