"""GRUs along the turns of each conversation, and along the frames or tokens of each utterance.

On the CPU several run at once, without an autograd node for every operation of every step.
torch's own GRU is a chain of twenty small operations a step there, each recorded for the way back. Here a step has
seven, all directions in each of them, and what does not depend on the step before is done for all steps at once.
Equations and weights are those of `torch.nn.GRU` (Cho et al., arXiv 1406.1078, with the reset gate behind the product):

    r, z = sigmoid(x Wr + h Ur), sigmoid(x Wz + h Uz)    n = tanh(x Wn + r * (h Un))    h = (1 - z) * n + z * h

Axes: steps, directions, rows (sequences), width.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import rnn

from fusion.batch import Turns, take_rows
from fusion.layers import primitives


def run_grus(grus: nn.ModuleList, inputs: Tensor, real: Tensor | None) -> Tensor:
    """States of several one-layer `torch.nn.GRU` of one size, each along its own inputs.

    Shape:
        inputs: (directions, steps, rows, dim), float32 or float64
        real: (directions, steps, rows) boolean; the state after a step that is not real is zero. None: all are
        returns: (directions, steps, rows, width)
    """

    def weights(name: str) -> Tensor:
        return torch.stack([getattr(gru, name) for gru in grus])

    flat = inputs.flatten(1, 2)
    pushes = torch.baddbmm(weights("bias_ih_l0")[:, None], flat, weights("weight_ih_l0").transpose(1, 2))
    by_step = pushes.unflatten(1, inputs.shape[1:3]).transpose(0, 1)
    keep = None if real is None else real.transpose(0, 1)[..., None].to(inputs.dtype)
    states: Tensor = Recurrence.apply(by_step, keep, weights("weight_hh_l0"), weights("bias_hh_l0"))
    return states.transpose(0, 1)


def _by_step(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Of each tensor (steps, ...) its steps: all views at once, as one by one they take as long as the arithmetic."""
    return (tensor.unbind(0) for tensor in tensors)


class Recurrence(torch.autograd.Function):
    """pushes (steps, directions, rows, 3 width), keep (steps, directions, rows, 1) -> (steps, directions, rows, width).

    `pushes` is what the inputs say to the reset gate, the update gate and the candidate, one behind the other.
    """

    @staticmethod
    def forward(ctx: Any, pushes: Tensor, keep: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
        width = weight.shape[2]
        pushes, recurrent, offset = pushes.contiguous(), weight.transpose(1, 2).contiguous(), bias[:, None]
        shape = (*pushes.shape[:3], width)
        states, candidates, pulls = pushes.new_empty(shape), pushes.new_empty(shape), torch.empty_like(pushes)
        gates = pushes.new_empty(*shape[:3], 2 * width)
        state = pushes.new_zeros(shape[1:])
        parts = [2 * width, width]  # both gates, the candidate
        push_gates, push_candidate, pull_gates, pull_candidate = _by_step(
            *pushes.split(parts, dim=-1), *pulls.split(parts, dim=-1)
        )
        pull, gate, reset, update, candidate, found = _by_step(
            pulls, gates, *gates.chunk(2, dim=-1), candidates, states
        )
        for step in range(len(pushes)):
            torch.baddbmm(offset, state, recurrent, out=pull[step])
            torch.add(push_gates[step], pull_gates[step], out=gate[step]).sigmoid_()
            torch.addcmul(push_candidate[step], reset[step], pull_candidate[step], out=candidate[step]).tanh_()
            state = torch.lerp(candidate[step], state, update[step], out=found[step])
            state = state if keep is None else state.mul_(keep[step])
        ctx.save_for_backward(weight, keep, states, candidates, pulls, gates)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        weight, keep, states, candidates, pulls, gates = ctx.saved_tensors
        width = weight.shape[2]
        reset, update = gates.chunk(2, dim=-1)
        before = torch.cat([torch.zeros_like(states[:1]), states[:-1]])
        of_candidate = (1 - update) * (1 - candidates.square())
        of_update = (before - candidates) * update * (1 - update)
        of_reset = pulls[..., 2 * width :] * reset * (1 - reset)
        pushed, pulled = (states.new_empty(*states.shape[:3], 3 * width) for _ in range(2))
        later = torch.zeros_like(states[0])
        given, by_candidate, by_update, by_reset, opened, kept = _by_step(
            gradients[0], of_candidate, of_update, of_reset, reset, update
        )
        push_gates, push_reset, push_update, push_candidate = _by_step(
            pushed[..., : 2 * width], *pushed.chunk(3, dim=-1)
        )
        pull, pull_gates, pull_candidate = _by_step(pulled, *pulled.split([2 * width, width], dim=-1))
        for step in reversed(range(len(states))):
            gradient = given[step] + later
            gradient = gradient if keep is None else gradient.mul_(keep[step])
            candidate = torch.mul(gradient, by_candidate[step], out=push_candidate[step])
            torch.mul(gradient, by_update[step], out=push_update[step])
            torch.mul(candidate, by_reset[step], out=push_reset[step])
            pull_gates[step].copy_(push_gates[step])
            torch.mul(candidate, opened[step], out=pull_candidate[step])
            later = torch.baddbmm(gradient.mul_(kept[step]), pull[step], weight)
        by_direction = pulled.transpose(0, 1).flatten(1, 2)  # (directions, steps * rows, 3 width)
        of_weight = by_direction.transpose(1, 2) @ before.transpose(0, 1).flatten(1, 2)
        return pushed, None, of_weight, by_direction.sum(1)


Direction = Literal["past", "both"]


class SequenceGRU(nn.Module):
    """One state per position, from the positions up to it (`past`) or from all of its sequence (`both`).

    Each direction of `both` has half the width. Padding never enters.

    Args:
        width: of the state of each direction, where it is another one.

    Shape:
        x: (sequences, positions, dim)
        mask: (sequences, positions), filled from the left
        returns: (sequences, positions, dim), zeros at padding
    """

    def __init__(self, dim: int, direction: Direction = "both", width: int | None = None) -> None:
        super().__init__()
        directions = {"past": 1, "both": 2}[direction]
        self.width = width or dim // directions
        self.grus = nn.ModuleList(nn.GRU(dim, self.width, batch_first=True) for _ in range(directions))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if not x.shape[1]:
            return x
        few = primitives.dominate(x) or torch.compiler.is_compiling()
        states = self.with_cudnn(x, mask) if few else self.on_cpu(x, mask)
        return torch.cat(states, dim=-1) * mask[..., None]

    def on_cpu(self, x: Tensor, mask: Tensor) -> list[Tensor]:
        """The way back begins with the padding, at which its state stays zero."""
        forth, real = x.transpose(0, 1), mask.T  # (positions, sequences, ...)
        ways = [(forth, real), (forth.flip(0), real.flip(0))][: len(self.grus)]
        inputs, reals = (torch.stack(both) for both in zip(*ways, strict=True))
        with torch.autocast("cpu", enabled=False):
            exact = inputs.float() if inputs.dtype == torch.bfloat16 else inputs
            found = run_grus(self.grus, exact, None if mask.all() else reals)
        states = [found[0], *(one.flip(0) for one in found[1:])]
        return [one.transpose(0, 1).to(x.dtype) for one in states]

    def with_cudnn(self, x: Tensor, mask: Tensor) -> list[Tensor]:
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
        if primitives.dominate(x):
            return self.with_cudnn(x, turns)
        return turns.to_flat(self.gru(turns.to_grid(x), turns.mask))

    def with_cudnn(self, x: Tensor, turns: Turns) -> Tensor:
        """Each way has a grid of its own, both filled from the left, so that padding lies behind what is real."""
        ways = [(turns.rows, turns.places), (turns.rows_back, turns.places_back)][: len(self.gru.grus)]
        states = self.gru.run([take_rows(x, rows) for rows, _ in ways])
        found = [take_rows(state.flatten(0, 1), places) for state, (_, places) in zip(states, ways, strict=True)]
        return torch.cat(found, dim=-1)


class SideBySide(nn.Module):
    """GRUs of one size, each with its own inputs, as one wide GRU whose weights are their blocks and zeros between.

    For a GPU, which launches as many kernels for a wide GRU as for one of them. Zeros add nothing to a sum, so states
    are the same. All weights come out of one tensor, in cuDNN's order, which it takes as it is.

    Shape:
        x: (sequences, positions, grus * dim)
        returns: (sequences, positions, grus * width)
    """

    index: Tensor
    inverse: Tensor
    zero: Tensor

    def __init__(self, grus: int, dim: int, width: int) -> None:
        super().__init__()
        gates = 3 * width
        shapes = [(gates, dim), (gates, width), (gates,), (gates,)]
        own = torch.arange(grus * gates * (dim + width + 2)).view(grus, -1)  # the weights of each, one behind the other
        index = []
        for (rows, *columns), part in zip(shapes, own.split([math.prod(shape) for shape in shapes], 1), strict=True):
            blocks = torch.full((3, grus, rows // 3, *([grus, *columns] if columns else [])), own.numel())  # a zero
            for gru in range(grus):
                place = blocks[:, gru, :, gru] if columns else blocks[:, gru]
                place.copy_(part[gru].view(place.shape))
            index.append(blocks.flatten())
        self.shapes = [(grus * rows, *(grus * size for size in columns)) for rows, *columns in shapes]
        self.register_buffer("index", torch.cat(index), persistent=False)
        self.register_buffer("zero", torch.zeros(1), persistent=False)
        self.register_buffer("inverse", self.index.argsort()[: own.numel()], persistent=False)

    def forward(self, grus: Sequence[nn.Module], x: Tensor) -> Tensor:
        weights = [weight for gru in grus for weight in gru.parameters()]
        flat = _Blocks.apply(self.index, self.inverse, self.zero, *weights)
        parts = flat.split([math.prod(shape) for shape in self.shapes])
        wide = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        first = x.new_zeros(1, len(x), self.shapes[1][1])
        states: Tensor = rnn._VF.gru(x, first, wide, True, 1, 0.0, self.training, False, True)[0]
        return states


class _Blocks(torch.autograd.Function):
    """Weights and a zero behind them, in the order of `index`, where each weight has one place: that in `inverse`."""

    @staticmethod
    def forward(ctx: Any, index: Tensor, inverse: Tensor, zero: Tensor, *weights: Tensor) -> Tensor:
        ctx.shapes = [weight.shape for weight in weights]
        ctx.save_for_backward(inverse)
        return torch.cat([*(weight.flatten() for weight in weights), zero]).index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        parts = gradients[0].index_select(0, ctx.saved_tensors[0]).split([shape.numel() for shape in ctx.shapes])
        return None, None, None, *(part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True))


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
