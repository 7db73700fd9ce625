"""The precision of arithmetic: float32 that is float32, kernels that repeat themselves, and the proof that a reduced
precision gives the same answers on this very machine.

Nothing chooses a precision behind the user's back: float32 is the default everywhere, and whoever asks for bfloat16 has
it checked first. Library kernels can be right on one processor and wrong on another: torch 2.11 with oneDNN 3.10.2
computes a grouped convolution with fewer than 16 channels a group and an even kernel wrongly on processors with AMX, in
bfloat16 alone, and says nothing.

No torch at import: commands read parameters before they load it.

A GPU rounds the factors of a float32 product to 10 bits of mantissa (TF32) where it may: cuDNN's convolutions and
recurrent networks by torch's own default, matrix products where a user or a container says so. And a kernel may add up
in another order each time. Both are settings of the whole process, so they are changed for as long as it matters, and
put back. So are the modes in which a Python program calls its functions (`as_torch_starts`).
"""

import logging
import os
import platform
import random
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator

from pipeline.errors import ErcError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


LOWEST_COSINE = 0.999  # of a row in reduced precision with the same row in float32
CPUINFO = Path("/proc/cpuinfo")


class PrecisionError(ErcError):
    """Arithmetic in reduced precision gives other answers than float32 on this machine."""


def _refuse_auto(value: object) -> object:
    if value == "auto":
        raise ValueError(
            "'auto' no longer exists, since it gave other numbers on other machines; write float32 (the default), or "
            "bfloat16 where the device is built for it"
        )
    return value


Precision = Annotated[Literal["float32", "bfloat16"], BeforeValidator(_refuse_auto)]


def check_agreement(
    expected: "Mapping[str, Tensor]",
    found: "Mapping[str, Tensor]",
    decisive: Collection[str],
    *,
    who: str,
    key: str,
    device: "torch.device",
) -> None:
    """Compare what the layers of a model gave in float32 (`expected`) and in bfloat16 (`found`), row by row.

    Args:
        expected, found: by layer, in the order of computation, the same rows (rows, dim) of both.
        decisive: the layers whose rows are used, and must agree; the others only help to find the cause.
        who: the model, for the message.
        key: the parameter that asks for bfloat16.

    Raises:
        PrecisionError: a decisive row's cosine is below `LOWEST_COSINE`; the message names the machine, the libraries
            and the first layer that disagrees.
    """
    lowest = {layer: lowest_cosine(rows, found[layer]) for layer, rows in expected.items()}
    worst = min(lowest[layer] for layer in decisive)
    if worst >= LOWEST_COSINE:
        return
    first = next(layer for layer, cosine in lowest.items() if cosine < LOWEST_COSINE)
    raise PrecisionError(
        f"{key} bfloat16: {who} gives other answers than in float32 on this machine ({describe_machine(device)}): "
        f"cosine {worst:.3f} where at least {LOWEST_COSINE} is expected, first in '{first}'; set {key}: float32"
    )


def lowest_cosine(expected: "Tensor", found: "Tensor") -> float:
    """The lowest cosine between rows (..., dim) of the same place; -1 where one is not finite, 1 between zeros."""
    expected, found = expected.double().flatten(0, -2), found.double().flatten(0, -2)
    if not len(expected):
        return 1.0
    lengths = expected.norm(dim=1) * found.norm(dim=1)
    cosines = ((expected * found).sum(dim=1) / lengths).where(lengths != 0, (expected == found).all(dim=1).double())
    return float(cosines.nan_to_num(nan=-1.0).min())


def built_for_bfloat16(device: "torch.device") -> bool:
    """Whether `device` multiplies bfloat16 with instructions made for it."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported()  # every processor with AMX has it too
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def advise_precision(precision: str, device: "torch.device", key: str) -> str | None:
    """A line for the user whose device is built for bfloat16 while float32 runs; else None."""
    if precision != "float32" or not built_for_bfloat16(device):
        return None
    return (
        f"{key} is float32; this device ({processor_name(device)}) is built for bfloat16, in which encoders of base "
        "size and larger take about half the time (docs/extraction.md)"
    )


def describe_machine(device: "torch.device") -> str:
    """Processor or GPU with the versions of the libraries that compute on it, on one line."""
    import torch

    if device.type == "cuda":
        cudnn = torch.backends.cudnn.version()
        return f"{processor_name(device)}; torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {cudnn}"
    found = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
    onednn = f", oneDNN {found[1]}" if found else ""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{processor_name(device)}, {capability}; torch {torch.__version__}{onednn}"


def processor_name(device: "torch.device") -> str:
    """What the maker calls the GPU or the processor."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


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
def as_torch_starts() -> Iterator[None]:
    """Inside, torch is in the modes of a new process: gradients, float32, the processor by default, no autocast.

    Outside they are as the caller had set them. The default dtype is that of the process: where threads are inside at
    the same time, the last that leaves puts it back.
    """
    import torch

    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))  # which turns gradients on as well
        for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            modes.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            modes.enter_context(torch.device("cpu"))
        _default_dtype.enter()
        modes.callback(_default_dtype.leave)
        yield


@contextmanager
def keep_generators() -> Iterator[None]:
    """Afterwards Python's and torch's generators are where they were, however many numbers weights were drawn with."""
    import torch

    numbers = random.getstate()
    with torch.random.fork_rng([]):
        try:
            yield
        finally:
            random.setstate(numbers)


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
                self.before, self.matmul = {name: operations(name).fp32_precision for name in PRECISIONS}, _matmul()
                _set(dict.fromkeys(PRECISIONS, "ieee"), "highest")

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                _set(self.before, self.matmul)


def operations(name: str) -> Any:
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
        operations(name).fp32_precision = precision


class _DefaultDtype:
    """float32 as torch's default while anybody is inside."""

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.before: Any = None

    def enter(self) -> None:
        import torch

        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.before = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)

    def leave(self) -> None:
        import torch

        with self.lock:
            self.inside -= 1
            if not self.inside:
                torch.set_default_dtype(self.before)


_precision = _Precision()
_default_dtype = _DefaultDtype()
