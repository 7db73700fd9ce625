"""GRUs along the turns of each conversation, and along the frames or tokens of each utterance."""

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


class SequenceGRU(nn.Module):
    """One state per position, from all positions of its utterance; half the width from each direction.

    Shape:
        x: (utterances, positions, dim)
        mask: (utterances, positions), filled from the left
        returns: (utterances, positions, dim), zeros at padding
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.forth = nn.GRU(dim, dim // 2, batch_first=True)
        self.back = nn.GRU(dim, dim // 2, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if not x.shape[1]:
            return x
        forth, _ = self.forth(x)  # padding lies behind what is real and does not enter it
        back, _ = self.back(_reversed(x, mask))
        return torch.cat([forth, _reversed(back, mask)], dim=-1) * mask[..., None]


def _reversed(x: Tensor, mask: Tensor) -> Tensor:
    """The real positions of each utterance from last to first; padding stays behind them."""
    position = torch.arange(x.shape[1], device=x.device)
    target = mask.sum(dim=1, keepdim=True) - 1 - position
    return x.take_along_dim(target.where(target >= 0, position)[..., None], dim=1)


def _forth(gru: nn.Module, x: Tensor, turn_mask: Tensor) -> Tensor:
    states, _ = gru(to_grid(x, turn_mask))
    return to_flat(states, turn_mask)


def _back(gru: nn.Module, x: Tensor, turn_mask: Tensor) -> Tensor:
    # flipping the flat utterances reverses the turns of every conversation, and the order of conversations with them
    return _forth(gru, x.flip(0), turn_mask.flip(0)).flip(0)
