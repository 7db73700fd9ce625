"""How large a batch may be, from the memory that is free: the default of `batch: auto`."""

import torch

from pipeline.settings import free_bytes

SHARE = 0.5  # of the free memory; the rest is for the estimate's error and for others


def fitting(bytes_per_unit: float, device: torch.device, largest: int) -> int:
    """Units in a batch that fit into the free memory of `device`: a power of two, at least 1, at most `largest`.

    Powers of two, so that a little more or less free memory gives the same batches.
    """
    units = int(SHARE * free_bytes(device) / bytes_per_unit)
    return min(largest, 1 << max(0, units.bit_length() - 1))
