"""GRUs along the turns of each conversation, and along the frames or tokens of each utterance."""

from typing import Literal

import torch
from torch import Tensor, nn

from fusion.layers import launches
from fusion.layers.gru import run_grus
from fusion.turns import Turns

Direction = Literal["past", "both"]


class SequenceGRU(nn.Module):
    """One state per position, from the positions up to it (`past`) or from all of its sequence (`both`).

    Each direction of `both` has half the width. Padding never enters.

    Shape:
        x: (sequences, positions, dim)
        mask: (sequences, positions), filled from the left
        returns: (sequences, positions, dim), zeros at padding
    """

    def __init__(self, dim: int, direction: Direction = "both") -> None:
        super().__init__()
        directions = {"past": 1, "both": 2}[direction]
        self.grus = nn.ModuleList(nn.GRU(dim, dim // directions, batch_first=True) for _ in range(directions))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if not x.shape[1]:
            return x
        few = launches.dominate(x) or torch.compiler.is_compiling()
        states = self._with_cudnn(x, mask) if few else self._on_cpu(x, mask)
        return torch.cat(states, dim=-1) * mask[..., None]

    def _on_cpu(self, x: Tensor, mask: Tensor) -> list[Tensor]:
        """The way back begins with the padding, at which its state stays zero."""
        forth, real = x.transpose(0, 1), mask.T  # (positions, sequences, ...)
        ways = [(forth, real), (forth.flip(0), real.flip(0))][: len(self.grus)]
        inputs, reals = (torch.stack(both) for both in zip(*ways, strict=True))
        with torch.autocast("cpu", enabled=False):
            exact = inputs.float() if inputs.dtype == torch.bfloat16 else inputs
            found = run_grus(self.grus, exact, None if mask.all() else reals)
        states = [found[0], *(one.flip(0) for one in found[1:])]
        return [one.transpose(0, 1).to(x.dtype) for one in states]

    def _with_cudnn(self, x: Tensor, mask: Tensor) -> list[Tensor]:
        """The way back begins with the last real position; padding lies behind what is real, and does not enter it."""
        forth, _ = self.grus[0](x)
        if len(self.grus) == 1:
            return [forth]
        back, _ = self.grus[1](_reversed(x, mask))
        return [forth, _reversed(back, mask)]


class TurnGRU(nn.Module):
    """One state per utterance, from the turns up to it (`past`) or from all of its conversation (`both`).

    Shape:
        x: (utterances, dim)
        returns: (utterances, dim)
    """

    def __init__(self, dim: int, direction: Direction) -> None:
        super().__init__()
        self.gru = SequenceGRU(dim, direction)

    def forward(self, x: Tensor, turns: Turns) -> Tensor:
        return turns.to_flat(self.gru(turns.to_grid(x), turns.mask))


def _reversed(x: Tensor, mask: Tensor) -> Tensor:
    """The real positions of each sequence from last to first; padding stays behind them."""
    position = torch.arange(x.shape[1], device=x.device)
    target = mask.sum(dim=1, keepdim=True) - 1 - position
    return x.take_along_dim(target.where(target >= 0, position)[..., None], dim=1)
