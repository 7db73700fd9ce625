"""The processors that this machine can play, and what a process computes with.

oneDNN (convolutions, all of bfloat16), ATen (what torch compiles itself) and MKL (matrix products in float32) choose
their kernels by what the processor has. Each has a variable that lets it see less:

    python -m tests.processors      runs the tests marked `arithmetic` in this process, then says what it computed with
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

CPUINFO = Path("/proc/cpuinfo")
TESTS = Path(__file__).parent
MARKER = "pytest.mark.arithmetic"
# minutes where bfloat16 is emulated; `make soak` runs it on the processor as it is
TOO_LONG = "tests/pipeline/encoders/test_precision.py::test_bfloat16_is_accepted_at_the_widths_of_base"


@dataclass(frozen=True)
class Level:
    """A processor to play: the flags of /proc/cpuinfo that it takes, and what each library calls it.

    Named are the levels at which kernels for floating point differ: AVX512_CORE_VNNI adds those of 8-bit integers,
    AVX512_CORE_FP16 those of float16, neither of which anything here computes with.
    """

    name: str
    flags: tuple[str, ...]
    onednn: str  # oneDNN 3.10, "CPU Dispatcher Control"
    aten: str
    mkl: str
    shown: str  # how the line `info,cpu,isa:` of ONEDNN_VERBOSE ends

    @property
    def variables(self) -> dict[str, str]:
        """For the environment of a process."""
        return {
            "ONEDNN_MAX_CPU_ISA": self.onednn,
            "ATEN_CPU_CAPABILITY": self.aten,
            "MKL_ENABLE_INSTRUCTIONS": self.mkl,  # on processors of Intel; MKL ignores it on others
        }

    def missing(self) -> list[str]:
        """The flags that this machine's processor lacks."""
        return [flag for flag in self.flags if flag not in processor_flags()]


LEVELS = (
    Level("avx2", ("avx2", "fma"), "AVX2", "avx2", "AVX2", "Intel AVX2"),
    Level(
        "avx512",
        ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
        "AVX512_CORE",
        "avx512",
        "AVX512",
        "Intel AVX-512 with AVX512BW, AVX512VL, and AVX512DQ extensions",
    ),
    Level(
        "bfloat16",
        ("avx512_bf16",),
        "AVX512_CORE_BF16",
        "avx512",
        "AVX512_E3",
        "Intel AVX-512 with Intel DL Boost and bfloat16 support",
    ),
    Level(
        "amx",
        ("amx_bf16", "amx_int8"),
        "AVX512_CORE_AMX",
        "avx512",
        "AVX512_E4",
        "Intel AMX with bfloat16 and 8-bit integer support",
    ),
)


def processor_flags() -> set[str]:
    """What /proc/cpuinfo says that the processor has; nothing where it does not say it."""
    return set(_cpuinfo("flags").split())


def is_intel() -> bool:
    return _cpuinfo("vendor_id") == "GenuineIntel"


def files_of_arithmetic() -> list[str]:
    """The test files that use the marker: collecting all others would take longer than running these."""
    return [str(path) for path in sorted(TESTS.rglob("test_*.py")) if MARKER in path.read_text(encoding="utf-8")]


def show_arithmetic() -> None:
    """Print what each library computes with in this process, in lines of their own.

    oneDNN and MKL say it once, when they are first asked to be verbose.
    """
    print(f"aten,{torch.backends.cpu.get_cpu_capability()}", flush=True)
    with torch.inference_mode(), torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        torch.nn.Conv1d(96, 96, 32, groups=8)(torch.zeros(2, 96, 100))  # smaller ones torch computes by itself
    with torch.backends.mkl.verbose(torch.backends.mkl.VERBOSE_ON):
        torch.zeros(64, 64) @ torch.zeros(64, 64)


def _cpuinfo(name: str) -> str:
    if not CPUINFO.exists():
        return ""
    lines = (line.partition(":") for line in CPUINFO.read_text(encoding="utf-8").splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")


if __name__ == "__main__":
    torch.set_num_threads(1)
    options = ["-m", "arithmetic", "--numprocesses=0", f"--deselect={TOO_LONG}", "-rs", *sys.argv[1:]]
    status = pytest.main([*options, *files_of_arithmetic()])
    show_arithmetic()
    sys.exit(status)
