"""The checks, in their order, for which `gpu_check` has the reason."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gpu_check.context import Context
from gpu_check.demo import check_demo
from gpu_check.encoders import check_encoders
from gpu_check.extraction import check_extraction, check_memory
from gpu_check.graphs import check_graphs
from gpu_check.machine import check_machine
from gpu_check.models import check_agreement, check_models
from gpu_check.repeats import check_repeats
from gpu_check.training import check_training
from gpu_check.waits import check_waits


@dataclass(frozen=True)
class Check:
    """A check, and the seconds after which it is given up, so that the others get theirs."""

    run: Callable[[Context], None]
    seconds: float


CHECKS: Mapping[str, Check] = {
    "machine": Check(check_machine, 60),
    "models": Check(check_models, 90),
    "encoders": Check(check_encoders, 150),
    "demo": Check(check_demo, 120),
    "agreement": Check(check_agreement, 60),
    "repeats": Check(check_repeats, 120),
    "memory": Check(check_memory, 60),
    "waits": Check(check_waits, 60),
    "graphs": Check(check_graphs, 60),
    "training": Check(check_training, 150),
    "extraction": Check(check_extraction, 90),
}
