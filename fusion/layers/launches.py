"""Where the number of operations costs more than what they compute."""

from torch import Tensor


def dominate(x: Tensor) -> bool:
    """Whether launching an operation on `x` takes longer than computing it, as on a GPU at the sizes of this project.

    A layer that can do the same in fewer operations does so there. On a CPU sums keep their order, results their bits.
    """
    return x.is_cuda
