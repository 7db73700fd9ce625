"""GRUs along the turns of each conversation, and along the frames or tokens of each utterance."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fusion.layers import launches
from fusion.layers.gru import run_grus
from fusion.turns import Turns, take_rows

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
        self.width = dim // directions
        self.grus = nn.ModuleList(nn.GRU(dim, self.width, batch_first=True) for _ in range(directions))

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
        if len(self.grus) == 1:
            return self.run([x])
        index = _from_last_to_first(mask)
        forth, back = self.run([x, _reorder(x, index)])
        return [forth, _reorder(back, index)]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The GRU of each direction along inputs of its own, with cuDNN where there is it."""
        first = inputs[0].new_zeros(1, len(inputs[0]), self.width)
        return [gru(x, first)[0] for gru, x in zip(self.grus, inputs, strict=True)]


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
        if launches.dominate(x):
            return self._with_cudnn(x, turns)
        return turns.to_flat(self.gru(turns.to_grid(x), turns.mask))

    def _with_cudnn(self, x: Tensor, turns: Turns) -> Tensor:
        """Each way has a grid of its own, both filled from the left, so that padding lies behind what is real."""
        ways = [(turns.rows, turns.places), (turns.rows_back, turns.places_back)][: len(self.gru.grus)]
        states = self.gru.run([take_rows(x, rows) for rows, _ in ways])
        found = [take_rows(state.flatten(0, 1), places) for state, (_, places) in zip(states, ways, strict=True)]
        return torch.cat(found, dim=-1)


class _Reorder(torch.autograd.Function):
    """x (sequences, positions, dim) in the order of an index that is its own inverse.

    So is the way back, which saves a sum over what the index names, one number at a time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        return x.gather(1, index.expand_as(x))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return gradients[0].gather(1, index.expand_as(gradients[0])), None


def _reorder(x: Tensor, index: Tensor) -> Tensor:
    return _Reorder.apply(x, index) if x.requires_grad else x.gather(1, index.expand_as(x))


def _from_last_to_first(mask: Tensor) -> Tensor:
    """(sequences, positions, 1) int64: the real positions of each sequence reversed; padding stays behind them."""
    position = torch.arange(mask.shape[1], device=mask.device)
    target = mask.sum(dim=1, keepdim=True) - 1 - position
    return target.where(target >= 0, position)[..., None]
