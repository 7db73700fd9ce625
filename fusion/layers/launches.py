"""Where a layer spares operations, and where it spares work."""

from torch import Tensor


def dominate(x: Tensor) -> bool:
    """Whether launching an operation on `x` takes longer than computing it, as on a GPU at the sizes of this project.

    A layer that can do the same in fewer operations does so there. On a CPU it takes the way of least work, whose bits
    the scores of published runs depend on.
    """
    return x.is_cuda
