"""The turns around each turn."""

import torch
from torch import Tensor

from fusion.turns import Turns, take_rows


def gather_neighbours(x: Tensor, turns: Turns, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """For each utterance, the vectors of the turns at `offsets` from it in its own conversation, and which exist.

    Shape:
        x: (utterances, dim)
        offsets: (offsets,) int64, in turns, negative for earlier ones
        returns: (utterances, offsets, dim), arbitrary where no such turn exists, and (utterances, offsets) boolean

    >>> x = torch.tensor([[10], [11], [12], [20]])
    >>> turns = Turns.of(torch.tensor([[True, True, True], [True, False, False]]))
    >>> neighbours, mask = gather_neighbours(x, turns, torch.tensor([-1, 1]))
    >>> [row[real].flatten().tolist() for row, real in zip(neighbours, mask)]
    [[11], [10, 12], [11], []]
    """
    target = turns.number[:, None] + offsets
    exists = (target >= 0) & (target < turns.count[:, None])
    index = torch.arange(x.shape[0], device=x.device)[:, None] + offsets
    return take_rows(x, index.clamp(0, x.shape[0] - 1)), exists
