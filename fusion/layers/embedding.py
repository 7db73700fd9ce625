"""Vectors of length 1, which contrastive losses compare."""

import torch.nn.functional as F
from torch import Tensor, nn


class Embedding(nn.Module):
    """A linear map to vectors of length 1, (utterances, dim) -> (utterances, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.linear(x), dim=-1)
