"""Which device computes, and how it is made to repeat itself."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fusion.errors import TrainingError


def pick_device(name: str) -> torch.device:
    """The device called `name`: cpu, cuda, cuda:<n>, or auto for cuda where there is one.

    Raises:
        TrainingError: there is no such device.
    """
    count = torch.cuda.device_count()
    accepted = ["auto", "cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if name not in accepted:
        raise TrainingError(f"--device {name}: no such device; here are {', '.join(accepted)}")
    return torch.device("cuda" if count else "cpu") if name == "auto" else torch.device(name)


@contextmanager
def reproducible(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch starts from `seed` and prefers deterministic kernels; outside, nothing has changed.

    A kernel that has no deterministic form on the device is used with a warning.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when CUDA's libraries start
    before = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        # not `use_deterministic_algorithms`, which imports torch's compiler: seconds
        torch.set_deterministic_debug_mode("warn")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(before)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
