"""What arithmetic is allowed to be: float32 that is float32, and kernels that repeat themselves.

A GPU rounds the factors of a float32 product to 10 bits of mantissa (TF32) where it may: cuDNN's convolutions and
recurrent networks by torch's own default, matrix products where a user or a container says so. And a kernel may add up
in another order each time. Both are settings of the whole process, so they are changed for as long as it matters, and
put back.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Found = TypeVar("Found")

# what torch.backends says of each: ieee, tf32, bf16, or none for the setting of its parent
PRECISIONS = ("cudnn.conv", "cudnn.rnn", "cuda.matmul", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
# torch's words where an operation, or cuBLAS as it was started, cannot repeat itself
UNREPEATABLE = ("does not have a deterministic implementation", "not deterministic because it uses CuBLAS")

log = logging.getLogger(__name__)


@contextmanager
def full_float32() -> Iterator[None]:
    """Inside, float32 is computed as float32 on every device; bfloat16 stays what it is.

    Threads may be inside at the same time: what was set before is put back by the last that leaves.
    """
    _precision.enter()
    try:
        yield
    finally:
        _precision.leave()


@contextmanager
def deterministic(strict: bool) -> Iterator[None]:
    """Inside, kernels of a GPU repeat themselves; `strict`: an operation that cannot raises an error (`repeatably`).

    Else it is used with a warning, and so is attention, whose gradients then differ in their last bits from run to run
    where there are more keys than a kernel takes at a time (64 or 128).
    """
    import torch

    settle_cublas()
    before = torch.get_deterministic_debug_mode()
    # not `use_deterministic_algorithms`, which imports torch's compiler: seconds
    torch.set_deterministic_debug_mode("error" if strict else "warn")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def repeatably(do: Callable[[bool], Found], name: str) -> Found:
    """What `do(True)` returns; where that meets an operation that cannot repeat itself, a warning and `do(False)`.

    Args:
        do: works under `deterministic(strict)`, given `strict`, and may be called twice.
        name: of what is done, for the warning.
    """
    try:
        return do(True)
    except RuntimeError as error:
        if not any(words in str(error) for words in UNREPEATABLE):
            raise
        reason = str(error).partition("\n")[0].partition(", but you set")[0]
    log.warning("%s: the same seed may give other numbers the next time: %s", name, reason)
    return do(False)


def settle_cublas() -> None:
    """Let cuBLAS repeat itself: call it before the process multiplies matrices on a GPU; later it has no effect."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


class _Precision:
    """Torch's settings of float32, changed while anybody is inside.

    Torch has them twice, and raises an error where the older ones, which libraries still ask for, contradict the newer
    ones; so both are set.
    """

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.before: dict[str, str] = {}
        self.matmul = "highest"

    def enter(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.before, self.matmul = {name: _operations(name).fp32_precision for name in PRECISIONS}, _matmul()
                _set(dict.fromkeys(PRECISIONS, "ieee"), "highest")

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                _set(self.before, self.matmul)


def _operations(name: str) -> Any:
    import torch

    backend, _, operation = name.partition(".")
    return getattr(getattr(torch.backends, backend), operation)


def _matmul() -> str:
    import torch

    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # somebody set the newer ones alone
        return "highest"


def _set(precisions: dict[str, str], matmul: str) -> None:
    import torch

    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = precisions["cudnn.conv"] == precisions["cudnn.rnn"] == "tf32"
    for name, precision in precisions.items():
        _operations(name).fp32_precision = precision


_precision = _Precision()
