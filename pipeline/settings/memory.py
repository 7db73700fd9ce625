"""How much memory is free, for settings that are found from it: that of a GPU, or of the machine in its container."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")  # a container's limit, where it has one (version 2)
UNKNOWN = 1 << 30  # bytes, where the system does not tell


def free_bytes(device: "torch.device") -> int:
    """Bytes that are free on `device`."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    available = [_available(), _left_in_container()]
    return min((found for found in available if found is not None), default=UNKNOWN)


def _available() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _left_in_container() -> int | None:
    """What files hold in the cache counts as free: the system takes it back where memory is short."""
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        lines = [line.split() for line in (CGROUP / "memory.stat").read_text().splitlines()]
        cached = sum(int(size) for name, size in lines if name in ("inactive_file", "active_file"))
        return None if limit == "max" else max(0, int(limit) - int(used) + cached)
    except (OSError, ValueError):
        return None
