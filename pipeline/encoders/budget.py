"""How large a batch may be, from the memory that is free: the default of `batch: auto`."""

from pathlib import Path

import torch

SHARE = 0.5  # of the free memory; the rest is for the estimate's error and for others
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")  # a container's limit, where it has one (version 2)


def fitting(bytes_per_unit: float, device: torch.device, largest: int) -> int:
    """Units in a batch that fit into the free memory of `device`: a power of two, at least 1, at most `largest`.

    Powers of two, so that a little more or less free memory gives the same batches.
    """
    units = int(SHARE * free_bytes(device) / bytes_per_unit)
    return min(largest, 1 << max(0, units.bit_length() - 1))


def free_bytes(device: torch.device) -> int:
    """Memory that is free on `device`: that of the GPU, or of the machine within its container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = [_available(), _left_in_container()]
    return min((found for found in available if found is not None), default=1 << 30)


def _available() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _left_in_container() -> int | None:
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return None if limit == "max" else max(0, int(limit) - int(used))
    except (OSError, ValueError):
        return None
