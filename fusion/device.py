"""Which device computes, and how it is made to repeat itself."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fusion.errors import TrainingError
from pipeline.settings import deterministic, full_float32


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
def reproducible(seed: int, device: torch.device, strict: bool = False) -> Iterator[None]:
    """Inside, torch starts from `seed`, float32 is float32 and kernels repeat themselves; outside, nothing has changed.

    `strict` as of `pipeline.settings.deterministic`. What only answers does not need it: forward passes add up in one
    order anyway.
    """
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        full_float32(),
        deterministic(strict),
    ):
        torch.manual_seed(seed)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it
        try:
            yield
        finally:
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
