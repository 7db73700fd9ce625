"""The precision of arithmetic, and the proof that a reduced one gives the same answers on this very machine.

Nothing chooses a precision behind the user's back: float32 is the default everywhere, and whoever asks for bfloat16 has
it checked first. Library kernels can be right on one processor and wrong on another: torch 2.11 with oneDNN 3.10.2
computes a grouped convolution with fewer than 16 channels a group and an even kernel wrongly on processors with AMX, in
bfloat16 alone, and says nothing.

No torch at import: commands read parameters before they load it.
"""

import platform
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator

from pipeline.settings.sections import ErcError

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
            "'auto' no longer exists, since it gave other features on other machines; write float32 (the default), or "
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
        f"{key} is float32; this device ({processor_name(device)}) is built for bfloat16, which is faster at a small "
        "loss of precision (docs/extraction.md)"
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
