"""How many operations a training step asks a GPU for, counted without one.

A step of this size is bound by launching work, not by the work, so its time on a GPU goes with their number. They are
counted on the CPU, below autograd, with the layers taking the way that they take on CUDA (`fusion.layers.primitives`).

An operation is a call that computes or copies; views and empty tensors are left out. On a GPU most are one kernel. What
is not counted: a GRU is one operation forwards and one backwards here, inside which cuDNN launches several kernels for
each step of the sequence; the backward pass of a norm or of attention, and each product that is split, may be two or
three; and what writes rows by index (`INDEXED`, counted apart too) sorts the index first where torch is to be
deterministic, as `fusion-train` has it. Dropout of single numbers is one kernel forwards there, and three operations
here.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fusion.data import load_split
from fusion.data.batches import GROUPING, make_plan
from fusion.layers import primitives
from fusion.params import Recipe
from fusion.training import build_split_model
from fusion.training.stage import StageRun, Training
from pipeline.store import Features

PHASES = ("gather", "forward", "loss", "backward", "optimizer")
WITHOUT_WORK = {  # beside views, which their schema shows
    "_unsafe_view",
    "detach",
    "empty",
    "empty_like",
    "empty_strided",
    "lift_fresh",
    "new_empty",
    "new_empty_strided",
}
INDEXED = {"index_add", "index_copy", "index_put", "_index_put_impl", "scatter", "scatter_add"}
GRU = "gru"


@dataclass(frozen=True)
class StepOperations:
    """Of one step of one stage of a model, by phase."""

    model: str
    stage: str
    by_phase: dict[str, int]
    grus: int  # of these, forwards and backwards
    indexed: int  # of these, `INDEXED`

    @property
    def total(self) -> int:
        """Of all phases."""
        return sum(self.by_phase.values())


@dataclass
class _Tally:
    phase: str = PHASES[0]
    found: dict[str, Counter[str]] = field(default_factory=lambda: {phase: Counter() for phase in PHASES})

    def add(self, name: str) -> None:
        self.found[self.phase][name] += 1

    def of(self, names: set[str]) -> int:
        """Those with these names, also where they work in place."""
        return sum(
            count for one in self.found.values() for name, count in one.items() if name.removesuffix("_") in names
        )


def _is_view(operation: Any) -> bool:
    """Whether all that it returns is memory it was given, described anew."""
    returned = [value.alias_info for value in operation._schema.returns]
    return bool(returned) and all(alias is not None and not alias.is_write for alias in returned)


class _Counting(TorchDispatchMode):
    def __init__(self, tally: _Tally) -> None:
        super().__init__()
        self.tally = tally

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "aten" and not _is_view(func) and func.overloadpacket.__name__ not in WITHOUT_WORK:
            self.tally.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class _GRU(torch.autograd.Function):
    """Stands for cuDNN's: the right shapes, any numbers."""

    @staticmethod
    def forward(ctx: Any, tally: _Tally, x: Tensor, *weights: Tensor) -> Tensor:
        tally.add(GRU)
        ctx.tally = tally
        ctx.save_for_backward(x, *weights)
        return x.new_empty(*x.shape[:2], weights[1].shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.tally.add(GRU)
        return None, *(torch.empty_like(one) for one in ctx.saved_tensors)


def measure_operations(model: str, features: Features, recipe: Recipe) -> list[StepOperations]:
    """The operations of one step of each stage of `model`, on the first `train.conversations` of train."""
    target, classes = recipe.train.target, len(features.label_names)
    split = load_split(features, "train", modalities="both", audio_frames=recipe.model.audio_frames, target=target)
    training = Training(build_split_model(split, recipe, classes), split, split, recipe, 0, classes)
    results = []
    for stage in training.stages:
        run = StageRun(stage, training)
        stage.module.train()
        _step(run, _Tally())  # the optimizer makes its state in the first
        tally = _Tally()
        _step(run, tally)
        by_phase = {phase: tally.found[phase].total() for phase in PHASES}
        results.append(StepOperations(model, stage.name, by_phase, tally.of({GRU}), tally.of(INDEXED)))
    return results


def _step(run: StageRun, tally: _Tally) -> None:
    """One step as `fusion-train` takes it, with the groups that a batch has on a GPU."""
    conversations = torch.arange(min(run.params.conversations, len(run.train.conversations) - 1))
    lengths = run.train.audio.lengths, run.train.text.lengths
    plan = make_plan(conversations, run.train.conversations, *lengths, GROUPING["cuda"])

    def gru(x: Tensor, state: Tensor, weights: list[Tensor], *settings: Any) -> tuple[Tensor, Tensor]:
        return _GRU.apply(tally, x, *weights), state

    with (
        patch.object(primitives, "dominate", lambda x: True),
        patch.object(torch._VF, "gru", gru, create=True),
        patch.object(run, "ask", _in_phase(run.ask, tally, "forward", "loss")),
        patch.object(run.optimizer, "zero_grad", _in_phase(run.optimizer.zero_grad, tally, "backward", "backward")),
        patch.object(torch.nn.utils, "clip_grad_norm_", _clip(tally)),
        _Counting(tally),
    ):
        run.step(run.train.gather_one(plan, plan))


def _in_phase(function: Callable[..., Any], tally: _Tally, during: str, after: str) -> Callable[..., Any]:
    def called(*arguments: Any) -> Any:
        tally.phase = during
        result = function(*arguments)
        tally.phase = after
        return result

    return called


def _clip(tally: _Tally) -> Callable[..., Any]:
    return _in_phase(torch.nn.utils.clip_grad_norm_, tally, "optimizer", "optimizer")
