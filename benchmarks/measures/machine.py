"""The machine: what it is, how fast it multiplies, how much memory something takes."""

import ctypes
import gc
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
# (rows, inner, columns): frames times the two larger weights of a transformer layer, and a large square
CPU_PRODUCTS = ((1_500, 768, 3_072), (1_500, 3_072, 768), (2_048, 2_048, 2_048))
GPU_PRODUCTS = ((32_768, 768, 3_072), (32_768, 3_072, 768), (8_192, 8_192, 8_192))


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    processor: str
    cores: int
    threads: int
    device: str
    torch: str


def describe(device: str) -> Machine:
    """This machine, without its name."""
    names = [line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    cores = len(os.sched_getaffinity(0))
    return Machine((names or [platform.processor()])[0], cores, torch.get_num_threads(), gpu, torch.__version__)


def matrix_rate(precision: str, device: str, seconds: float) -> float:
    """Floating-point operations a second of a matrix product: the highest of a few sizes, each tried for `seconds`."""
    products = GPU_PRODUCTS if device.startswith("cuda") else CPU_PRODUCTS
    return max(_product_rate(*sizes, getattr(torch, precision), device, seconds) for sizes in products)


def _product_rate(rows: int, inner: int, columns: int, dtype: torch.dtype, device: str, seconds: float) -> float:
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(inner, columns, device=device).to(dtype)
    repeats, elapsed = 1, _multiply(left, right, 1)
    while elapsed < seconds:  # so many at once that starting them costs nothing
        repeats = max(repeats + 1, int(repeats * 1.3 * seconds / elapsed))
        elapsed = _multiply(left, right, repeats)
    return 2 * rows * inner * columns * repeats / elapsed


def _multiply(left: torch.Tensor, right: torch.Tensor, repeats: int) -> float:
    """Seconds."""
    (left[:1] @ right).sum().item()  # the library is ready, and the device waits
    started = time.perf_counter()
    for _ in range(repeats):
        product = left @ right
    product[0, 0].item()  # waits for the device
    return time.perf_counter() - started


@dataclass
class Peak:
    """Bytes above what was held before; None where the system does not tell."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: str) -> Iterator[Peak]:
    """Measures the most memory that a block takes: of the GPU if `device` is one, else of this process."""
    before = _begin_anew(device)
    peak = Peak()
    yield peak
    highest = torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else process_peak()
    peak.bytes = None if before is None or highest is None else max(0, highest - before)


def _begin_anew(device: str) -> int | None:
    """Bytes that are held now; the peak is counted from here."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()  # what another one left cached is not this one's to use
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed shall not count as held
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:
        return None
    return _status_bytes("VmRSS")


@contextmanager
def sampled_peak(interval_seconds: float = 0.02) -> Iterator[Peak]:
    """Measures the most memory of its own that this process holds during a block, looking every now and then.

    What it maps of files is not counted: the system takes that back where memory is short.
    """
    peak, over = Peak(), threading.Event()

    def look() -> None:
        while True:
            held = [_status_bytes(field) for field in ("RssAnon", "RssShmem")]
            if all(size is not None for size in held):
                peak.bytes = max(peak.bytes or 0, sum(size or 0 for size in held))
            if over.wait(interval_seconds):
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def process_peak() -> int | None:
    """Most bytes that this process has held in memory.

    Not `ru_maxrss`, which begins with what the parent process held when it started this one.
    """
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int | None:
    found = [line.split()[1] for line in _lines(STATUS) if line.startswith(f"{field}:")]
    return int(found[0]) * 1024 if found else None


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
