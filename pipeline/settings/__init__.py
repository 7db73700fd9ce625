"""What a user sets, sections of `params.yaml` (`sections`), one of which says where the work is done (`cluster`), and
what every command needs of its machine.
"""

from pipeline.settings.arithmetic import deterministic, full_float32, repeatably, settle_cublas
from pipeline.settings.cluster import Cluster, ClusterError, ClusterParams, connect
from pipeline.settings.completion import complete_override, complete_set_name, join_words
from pipeline.settings.libraries import settle_libraries
from pipeline.settings.machine import count_cores, free_bytes, ran_out_of_memory
from pipeline.settings.precision import Precision, PrecisionError, advise_precision, built_for_bfloat16, check_agreement
from pipeline.settings.sections import (
    FUSION_SECTIONS,
    PIPELINE_SECTIONS,
    SECTION_NAMES,
    ErcError,
    Section,
    SettingsError,
    check_overrides,
    check_section,
    read_section,
)
from pipeline.settings.threads import Threads, ctrl_c_waits

__all__ = [
    "FUSION_SECTIONS",
    "PIPELINE_SECTIONS",
    "SECTION_NAMES",
    "Cluster",
    "ClusterError",
    "ClusterParams",
    "ErcError",
    "Precision",
    "PrecisionError",
    "Section",
    "SettingsError",
    "Threads",
    "advise_precision",
    "built_for_bfloat16",
    "check_agreement",
    "check_overrides",
    "check_section",
    "complete_override",
    "complete_set_name",
    "connect",
    "count_cores",
    "ctrl_c_waits",
    "deterministic",
    "free_bytes",
    "full_float32",
    "join_words",
    "ran_out_of_memory",
    "read_section",
    "repeatably",
    "settle_cublas",
    "settle_libraries",
]
