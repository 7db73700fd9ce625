"""Softmax over what is real."""

import torch
from torch import Tensor


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis in which padding weighs exactly zero, and everything does where nothing is real.

    Shape:
        scores: (..., positions)
        mask: boolean, broadcastable to scores
        returns: (..., positions), each row summing to 1, or to 0 where nothing is real

    >>> masked_softmax(torch.zeros(2, 3), torch.tensor([[True, True, False], [False, False, False]])).tolist()
    [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    """
    # the lowest number instead of -inf: a row with nothing real stays finite, and so does its gradient
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(dim=-1) * mask
