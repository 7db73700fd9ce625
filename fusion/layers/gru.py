"""A gated recurrent unit on the CPU, several at once, without an autograd node for every operation of every step.

torch's own GRU is a chain of twenty small operations a step there, each recorded for the way back. Here a step has
seven, all directions in each of them, and what does not depend on the step before is done for all steps at once.
Equations and weights are those of `torch.nn.GRU` (Cho et al., arXiv 1406.1078, with the reset gate behind the product):

    r, z = sigmoid(x Wr + h Ur), sigmoid(x Wz + h Uz)    n = tanh(x Wn + r * (h Un))    h = (1 - z) * n + z * h

Axes: steps, directions, rows (sequences), width.
"""

from typing import Any

import torch
from torch import Tensor, nn


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
    states: Tensor = _Recurrence.apply(by_step, keep, weights("weight_hh_l0"), weights("bias_hh_l0"))
    return states.transpose(0, 1)


class _Recurrence(torch.autograd.Function):
    """pushes (steps, directions, rows, 3 width), keep (steps, directions, rows, 1) -> (steps, directions, rows, width).

    `pushes` is what the inputs say to the reset gate, the update gate and the candidate, one behind the other.
    """

    @staticmethod
    def forward(ctx: Any, pushes: Tensor, keep: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
        width = weight.shape[2]
        pushes, recurrent, offset = pushes.contiguous(), weight.transpose(1, 2).contiguous(), bias[:, None]
        shape = (*pushes.shape[:3], width)
        states, candidates, pulls = pushes.new_empty(shape), pushes.new_empty(shape), pushes.new_empty(shape)
        gates = pushes.new_empty(*shape[:3], 2 * width)
        state = pushes.new_zeros(shape[1:])
        for step in range(len(pushes)):
            pull = torch.baddbmm(offset, state, recurrent)
            gate = torch.add(pushes[step, ..., : 2 * width], pull[..., : 2 * width], out=gates[step]).sigmoid_()
            pulls[step] = pull[..., 2 * width :]
            candidate = torch.addcmul(
                pushes[step, ..., 2 * width :], gate[..., :width], pulls[step], out=candidates[step]
            ).tanh_()
            torch.lerp(candidate, state, gate[..., width:], out=states[step])
            state = states[step] if keep is None else states[step].mul_(keep[step])
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
        of_reset = pulls * reset * (1 - reset)
        pushed, pulled = (states.new_empty(*states.shape[:3], 3 * width) for _ in range(2))
        later = torch.zeros_like(states[0])
        for step in reversed(range(len(states))):
            gradient = gradients[0][step] + later
            gradient = gradient if keep is None else gradient.mul_(keep[step])
            push, pull = pushed[step], pulled[step]
            candidate = torch.mul(gradient, of_candidate[step], out=push[..., 2 * width :])
            torch.mul(gradient, of_update[step], out=push[..., width : 2 * width])
            torch.mul(candidate, of_reset[step], out=push[..., :width])
            pull[..., : 2 * width] = push[..., : 2 * width]
            torch.mul(candidate, reset[step], out=pull[..., 2 * width :])
            later = torch.baddbmm(gradient.mul_(update[step]), pull, weight)
        by_direction = pulled.transpose(0, 1).flatten(1, 2)  # (directions, steps * rows, 3 width)
        of_weight = by_direction.transpose(1, 2) @ before.transpose(0, 1).flatten(1, 2)
        return pushed, None, of_weight, by_direction.sum(1)
