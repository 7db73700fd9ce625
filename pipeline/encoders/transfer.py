"""Inputs on their way to the device and rows on their way back, neither of which the host waits for; and how large a
batch may be, from the memory that is free.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.encoders.batching import Rows
from pipeline.settings import count_cores, free_bytes

SHARE = 0.5  # of the free memory; the rest is for the estimate's error and for others


def fitting(bytes_per_unit: float, device: torch.device, largest: int) -> int:
    """Units in a batch that fit into the free memory of `device`: a power of two, at least 1, at most `largest`.

    Powers of two, so that a little more or less free memory gives the same batches.
    """
    units = int(SHARE * free_bytes(device) / bytes_per_unit)
    return min(largest, 1 << max(0, units.bit_length() - 1))


def batches_at_once(device: torch.device, largest: float) -> int:
    """How many batches a processor encodes at the same time, each by one core; 0 on other devices.

    Args:
        largest: bytes that the largest piece may need which is never cut, a window; as many as fit are encoded at once.
    """
    if device.type != "cpu":
        return 0
    cores = min(torch.get_num_threads(), count_cores())
    return max(1, min(cores, int(SHARE * free_bytes(device) / largest)))


ALIGNED = 16  # bytes at which each tensor of an upload begins


def upload(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The same tensors on `device`, by one copy from pinned memory that the host does not wait for."""
    if device.type == "cpu":
        return list(tensors)
    sent = packed(tensors).pin_memory().to(device, non_blocking=True)
    return unpacked(sent, tensors)


def packed(tensors: Sequence[Tensor]) -> Tensor:
    """The bytes of all tensors, one behind the other."""
    sizes = [-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors]
    whole = torch.empty(sum(sizes), dtype=torch.uint8)
    for part, tensor in zip(whole.split(sizes), tensors, strict=True):
        part[: tensor.nbytes] = tensor.contiguous().flatten().view(torch.uint8)
    return whole


def unpacked(whole: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of the types and shapes of `like` from their packed bytes; views, no copies."""
    parts = whole.split([-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in like])
    return [
        part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape) for part, tensor in zip(parts, like, strict=True)
    ]


def fetched(flat: Tensor, lengths: Sequence[int]) -> Rows:
    """Start to copy rows (all rows, ...) to the host; what is returned waits for them and splits them by `lengths`."""
    if flat.device.type == "cpu":
        whole = flat.numpy()
        return lambda: _split(whole, lengths)
    host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
    host.copy_(flat, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(flat.device))

    def wait() -> list[np.ndarray]:
        copied.synchronize()
        return _split(host.numpy(), lengths)

    return wait


def _split(rows: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    return np.split(rows, np.cumsum(lengths)[:-1])
