"""Several versions of the same thing, such as an encoder's layers, to one."""

from functools import reduce

import torch
from torch import Tensor, nn


class WeightedMix(nn.Module):
    """Weighted mean of the versions, by learned weights that are equal at first.

    Shape:
        versions: so many tensors of one shape
        returns: that shape
    """

    def __init__(self, versions: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(versions))

    def forward(self, *versions: Tensor) -> Tensor:
        weighted = (weight * version for weight, version in zip(self.weights(), versions, strict=True))
        return reduce(torch.add, weighted)

    def weights(self) -> Tensor:
        """(versions,), summing to 1."""
        return self.scores.softmax(dim=0)

    def views(self, *versions: Tensor) -> dict[str, Tensor]:
        return {"weights": self.weights()}
