"""The turns around each turn."""

import torch
from torch import Tensor


def gather_neighbours(x: Tensor, turn_mask: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """For each utterance, the vectors of the turns at `offsets` from it in its own conversation, and which exist.

    Shape:
        x: (utterances, dim)
        turn_mask: (conversations, turns)
        offsets: (offsets,) int64, in turns, negative for earlier ones
        returns: (utterances, offsets, dim), arbitrary where no such turn exists, and (utterances, offsets) boolean

    >>> x = torch.tensor([[10], [11], [12], [20]])
    >>> turn_mask = torch.tensor([[True, True, True], [True, False, False]])
    >>> neighbours, mask = gather_neighbours(x, turn_mask, torch.tensor([-1, 1]))
    >>> [row[real].flatten().tolist() for row, real in zip(neighbours, mask)]
    [[11], [10, 12], [11], []]
    """
    turn = (turn_mask.cumsum(dim=1) - 1)[turn_mask]  # (utterances,), 0 for the first of a conversation
    turns = turn_mask.sum(dim=1, keepdim=True).expand_as(turn_mask)[turn_mask]
    target = turn[:, None] + offsets
    exists = (target >= 0) & (target < turns[:, None])
    index = torch.arange(len(x), device=x.device)[:, None] + offsets
    return x[index.clamp(0, len(x) - 1)], exists
