"""What a user sets, sections of `params.yaml` (`sections`), one of which says where the work is done (`cluster`), what
all commands share (`command`), and what they need of their machine.
"""

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.errors import ErcError, reason_and_fix, refuse_pipe, suggest
    from pipeline.settings.closure import (
        MODULE,
        PLACE,
        check_plugin_name,
        closure_digest,
        installed_plugins,
        is_trusted,
        load_plugin,
        plugin_digest,
    )
    from pipeline.settings.cluster import Cluster, ClusterError, ClusterParams, connect
    from pipeline.settings.command import (
        DEFAULT_PARAMS,
        Device,
        OptionalParams,
        Overrides,
        Overwrite,
        ParamsFile,
        escape_unseen,
        find_params,
        join_words,
        say,
        single_command,
    )
    from pipeline.settings.json_lines import parse_lines, read_lines, take_check, write_lines
    from pipeline.settings.machine import (
        SingleCoreThreads,
        Threads,
        cores,
        count_cores,
        ctrl_c_waits,
        free_bytes,
        in_bytes,
        load_transformers,
        only_encode,
        ran_out_of_memory,
        settle_libraries,
        take_cores,
    )
    from pipeline.settings.output import exchange, publish, restore, sole_writer, sync, sync_folder, write_whole
    from pipeline.settings.precision import (
        Precision,
        PrecisionError,
        advise_precision,
        as_torch_starts,
        built_for_bfloat16,
        check_agreement,
        deterministic,
        full_float32,
        keep_generators,
        processor_name,
        repeatably,
        settle_cublas,
    )
    from pipeline.settings.sections import (
        SECTION_NAMES,
        Section,
        SettingsError,
        UserPath,
        as_overrides,
        check_overrides,
        check_section,
        read_document,
        read_section,
    )


def door(room: str, file: str) -> Callable[[str], object]:
    """`__getattr__` of the package `room`, whose `__init__` is `file`: a name is loaded when it is first asked for.

    The names are those that the file imports for type checkers. So a command loads no library that it does not need,
    and every name stands there once.
    """
    imports = [
        node for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
    ]
    places = {alias.name: str(node.module) for node in imports for alias in node.names}

    def load(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(import_module(places[name]), name)

    return load


if not TYPE_CHECKING:
    __getattr__ = door(__name__, __file__)
