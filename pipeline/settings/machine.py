"""What this process may use of its machine: cores and free memory, within the limits of its container or job.

Limits are those of control groups, version 2, of the process' own group and of all groups above it: containers, systemd
and Slurm set them. Version 1 is not looked at.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MEMINFO = Path("/proc/meminfo")
OWN_GROUP = Path("/proc/self/cgroup")
CGROUP = Path("/sys/fs/cgroup")
UNKNOWN = 1 << 30  # bytes, where the system does not tell
# what other errors say: of the allocator on the CPU; of CUDA itself, pinned memory included; of libraries' handles
OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)


def count_cores() -> int:
    """Cores that this process may keep busy, at least 1: those it is bound to, or the share of time that it has."""
    quotas = [quota for folder in _groups() if (quota := _quota(folder)) is not None]
    return max(1, min(len(os.sched_getaffinity(0)), *map(int, quotas))) if quotas else len(os.sched_getaffinity(0))


def free_bytes(device: "torch.device", share: float = 1.0) -> int:
    """Bytes that are free on `device`; of a GPU's, no more than `share` of all that it has."""
    if device.type == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info(device)
        return min(free, int(share * total))
    available = [_available(), *(_left_in(folder) for folder in _groups())]
    return min((found for found in available if found is not None), default=UNKNOWN)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory, of a GPU or of the machine, did not suffice."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def _groups() -> Iterator[Path]:
    """Folders of the groups that the process is in, its own first."""
    try:
        lines = OWN_GROUP.read_text().splitlines()
    except OSError:
        lines = []
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    folder = CGROUP / own  # in a container with a view of its own the root is its group
    yield folder
    while folder != CGROUP and CGROUP in folder.parents:
        folder = folder.parent
        yield folder


def _quota(folder: Path) -> float | None:
    """Cores' worth of time that a group may take."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _available() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _left_in(folder: Path) -> int | None:
    """What files hold in the cache counts as free: the system takes it back where memory is short."""
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        lines = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
        cached = sum(int(size) for name, size in lines if name in ("inactive_file", "active_file"))
        return None if limit == "max" else max(0, int(limit) - int(used) + cached)
    except (OSError, ValueError):
        return None
