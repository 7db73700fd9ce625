"""An encoder whose memory is small, and whose rows show in which company an input was encoded.

As on a GPU, other company gives other bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from pipeline.encoders import Rows
from pipeline.extraction.engine import Encoded, LocalEngine

SEARCH = (
    "\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/cuda/cuda-runtime-api/ for more information."
)
# as torch 2.11 with CUDA 13 and cuDNN 9 says it
SHORTAGES: list[Exception] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory" + SEARCH),  # cudaHostAlloc, with pin_memory
    RuntimeError("CUDA error: out of memory" + SEARCH),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4503599627370496 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough memory: you tried to ..."),
    MemoryError(),
]


@dataclass
class Tight:
    """Fails with more than `largest` inputs, from the call of this number on."""

    largest: float = float("inf")
    from_call: int = 1
    shortage: Exception = field(default_factory=lambda: SHORTAGES[0])
    at_fetching: bool = False  # as errors of a device do, which works on while the caller goes on
    sizes: list[int] = field(default_factory=list)  # of all calls

    def start(self, inputs: Sequence[int]) -> Rows:
        """Begin to encode."""
        self.sizes.append(len(inputs))
        fails = len(self.sizes) >= self.from_call and len(inputs) > self.largest
        if not self.at_fetching:
            self.allocate(fails)

        def rows() -> list[np.ndarray]:
            self.allocate(fails)
            return [np.array([[value, inputs[0], len(inputs)]], np.float32) for value in inputs]

        return rows

    def allocate(self, fails: bool) -> None:
        """The moment at which a lack of memory shows."""
        if fails:
            raise self.shortage


def told(pieces: int, batches: Sequence[Sequence[int]]) -> list[Encoded]:
    """What an engine with enough memory makes of the batches, cut into `pieces` from the start."""
    engine = LocalEngine(int, Tight().start, str)
    engine.cut_into(pieces)
    return list(engine.run(batches))
