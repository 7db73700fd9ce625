"""Which device computes, how it is made to repeat itself, and how much of its memory features may take."""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Literal, TypeVar

import torch

from fusion.errors import TrainingError
from pipeline.settings import deterministic, free_bytes, full_float32, ran_out_of_memory


def pick_device(name: str | torch.device) -> torch.device:
    """The device called `name`: cpu, cuda, cuda:<n>, or auto for cuda where there is one.

    Raises:
        TrainingError: there is no such device.
    """
    count = torch.cuda.device_count()
    accepted = ["auto", "cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    name = str(name)
    if name not in accepted:
        raise TrainingError(f"device '{name}': no such device; here are {', '.join(accepted)}")
    return torch.device("cuda" if count else "cpu") if name == "auto" else torch.device(name)


@contextmanager
def reproducible(seed: int, device: torch.device, strict: bool = False) -> Iterator[None]:
    """Inside, torch starts from `seed`, float32 is float32 and kernels repeat themselves; outside, nothing has changed.

    `strict` as of `pipeline.settings.deterministic`. What only answers does not need it: forward passes add up in one
    order anyway.
    """
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    with torch.random.fork_rng([device] if device.type == "cuda" else []), full_float32(), deterministic(strict):
        torch.manual_seed(seed)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it
        try:
            yield
        finally:
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


Memory = float | Literal["auto"]  # GB
Found = TypeVar("Found")
Features = TypeVar("Features")
SHARE = 0.5  # of the free memory; the rest is for models, batches and others

log = logging.getLogger(__name__)


def memory_for_features(stated: Memory, device: torch.device, share: float = 1.0) -> int:
    """Bytes, from `train.memory` (GB); `share` of the device is this process's."""
    return int(SHARE * free_bytes(device, share)) if stated == "auto" else int(stated * 1e9)


def take_share(device: torch.device, gpus: float) -> float:
    """The share of `device` that `gpus` (a part of one, or several) stand for, which torch does not exceed from now on.

    Where processes share a GPU, one that asked for more would take the memory of the others.
    """
    if device.type != "cuda" or not 0 < gpus < 1:
        return 1.0
    torch.cuda.set_per_process_memory_fraction(float(gpus), device)
    return gpus


class Held(Generic[Features]):
    """Features where batches are made of them: on the device, until its memory runs out."""

    def __init__(self, on_device: Features, off_device: Features) -> None:
        self.here, self._off_device = on_device, off_device

    def let_go(self) -> None:
        """Leave them off the device from now on: slower, with the same bits."""
        self.here = self._off_device


def within_memory(do: Callable[[], Found], held: Held[Any], name: str) -> Found:
    """What `do` returns; where it runs out of memory, it is done once more with the features of `held` off the device.

    Args:
        do: takes the features from `held`, and keeps no other hold of them; may be called twice.
        name: of what is done, for messages.

    Raises:
        TrainingError: memory ran out again.
    """
    try:
        return do()
    except (RuntimeError, MemoryError) as error:
        reason = _reason(error)
    log.warning("%s: memory ran out (%s); again, with features off the device: slower, same numbers", name, reason)
    held.let_go()
    gc.collect()  # what the error left in circles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        return do()
    except (RuntimeError, MemoryError) as error:
        reason = _reason(error)
    raise TrainingError(
        f"{name}: memory ran out ({reason}), also with features off the device; lower train.conversations, model.dim "
        "or model.audio_frames"
    )


def _reason(error: BaseException) -> str:
    """The beginning of what it says; raises what is no lack of memory."""
    if not ran_out_of_memory(error):
        raise error
    return str(error).partition("\n")[0].partition(" GPU ")[0].rstrip(". ")[:120] or type(error).__name__
