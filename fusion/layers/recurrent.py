"""GRUs that pass along the turns of each conversation."""

from typing import Literal

import torch
from torch import Tensor, nn

from fusion.batch import to_flat, to_grid

Direction = Literal["past", "both"]


class TurnGRU(nn.Module):
    """One state per utterance, from the turns up to it (`past`) or from all of its conversation (`both`).

    Each direction of `both` has half the width. Padded turns never enter: they lie behind the real ones.

    Shape:
        x: (utterances, dim)
        turn_mask: (conversations, turns)
        returns: (utterances, dim)
    """

    def __init__(self, dim: int, direction: Direction) -> None:
        super().__init__()
        passes = {"past": [_forth], "both": [_forth, _back]}[direction]
        self.passes = passes
        self.grus = nn.ModuleList(nn.GRU(dim, dim // len(passes), batch_first=True) for _ in passes)

    def forward(self, x: Tensor, turn_mask: Tensor) -> Tensor:
        states = [run(gru, x, turn_mask) for run, gru in zip(self.passes, self.grus, strict=True)]
        return torch.cat(states, dim=-1)


def _forth(gru: nn.Module, x: Tensor, turn_mask: Tensor) -> Tensor:
    states, _ = gru(to_grid(x, turn_mask))
    return to_flat(states, turn_mask)


def _back(gru: nn.Module, x: Tensor, turn_mask: Tensor) -> Tensor:
    # flipping the flat utterances reverses the turns of every conversation, and the order of conversations with them
    return _forth(gru, x.flip(0), turn_mask.flip(0)).flip(0)
