"""Dropout for sequences of frames or tokens."""

import torch.nn.functional as F
from torch import Tensor, nn


class SequenceDropout(nn.Module):
    """Drops a dimension at all positions of an utterance, or at none.

    Neighbouring frames are much alike: what is dropped at one would be learned from the next. One decision for all
    positions is also a hundred times less work than one for each.

    Shape:
        x: (utterances, positions, dim)
        returns: (utterances, positions, dim)
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout1d(x.transpose(1, 2), self.share, self.training).transpose(1, 2)
