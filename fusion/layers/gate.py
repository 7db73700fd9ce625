"""Learned decisions between 0 and 1, taken from two tensors that describe the same positions."""

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    """sigmoid(W [x; y]): how far to open, for each dimension or for each position as a whole.

    Shape:
        x, y: (..., dim)
        returns: (..., width), where width is dim, or 1 for one decision per position
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * dim, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.linear(torch.cat([x, y], dim=-1)).sigmoid()
