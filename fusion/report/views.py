"""What a model shows of itself for each turn, as bytes that a browser draws: no model is known here by its name.

A view (`Output.views`) is recognised by its shape. In the batch that is made here frames, tokens and everything
else each have another width, so that an axis shows what lies along it:

    (utterances, positions)                      a curve over frames or tokens
    (utterances, positions, width)               a curve, the mean over the width
    (utterances, heads, turns)                   a curve over turns, the mean over the heads
    (utterances, heads, positions, positions)    a map, the mean over the heads; tokens may be followed by other keys
    (anything else,)                             weights of the model as a whole, the same for every utterance

Frames and tokens beyond `LONGEST` are averaged in neighbouring blocks. A view becomes one float32, its largest value,
and a byte for each value, the share of it in 255 steps; those of an utterance are joined and deflated.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fusion.batch import Batch, Output
from fusion.checkpoint import LoadedModel
from fusion.data import Split
from fusion.inference import CONVERSATIONS
from fusion.layers import LinearPath
from pipeline.settings import full_float32

LONGEST = 32  # positions of an axis


@dataclass(frozen=True)
class Axis:
    """What lies along a view."""

    kind: str  # frames | tokens | turns
    extra: int = 0  # other keys behind them, such as neighbouring turns


@dataclass(frozen=True)
class Shown:
    """The views of one utterance."""

    utterance: int  # of the split
    content: bytes  # deflated


@dataclass
class Viewer:
    """Collects views of `loaded`; `axes` and `constants` are known once an utterance has been shown."""

    loaded: LoadedModel
    axes: dict[str, tuple[Axis, ...]] = field(default_factory=dict)  # by name, in the order of the bytes
    constants: dict[str, list[float]] = field(default_factory=dict)  # weights of the model as a whole, by name

    def show(self, split: Split, conversations: Sequence[int]) -> Iterator[Shown]:
        """The views of every turn of these conversations of `split`; none from a model that shows none."""
        batch = _spread(split.gather(torch.tensor(conversations)), self._taken())
        with torch.inference_mode(), full_float32():
            output: Output = self.loaded.model.eval()(batch, views=True)
        group = batch.groups[0]
        widths = {"frames": group.audio.shape[1], "tokens": group.text.shape[1], "turns": batch.turns.mask.shape[1]}
        shown = {}
        for name, view in output.views.items():
            axes = _axes(tuple(view.shape), len(batch.labels), widths)
            if axes:
                self.axes[name] = axes
                shown[name] = _reduce(view, axes).float().cpu().numpy()
            elif view.dim() == 1:
                self.constants[name] = view.tolist()
        lengths = {
            "frames": group.audio_mask.sum(1).tolist(),
            "tokens": group.text_mask.sum(1).tolist(),
            "turns": batch.turns.count.tolist(),
        }
        first = [range(*split.conversations[one : one + 2].tolist()) for one in conversations]
        for row, utterance in enumerate(index for turns in first for index in turns):
            here = {kind: int(own[row]) for kind, own in lengths.items()}
            content = b"".join(_encode(shown[name][row], axes, here, widths) for name, axes in self.axes.items())
            yield Shown(utterance, zlib.compress(content, 9))

    def _taken(self) -> set[int]:
        """Widths that mean something else."""
        model = self.loaded.provenance.recipe.model
        return {1, 3, 4, model.heads, model.dim}  # 3 experts, 4 vectors of both modalities


@dataclass(frozen=True)
class Parts:
    """What the deep part of a model and the linear path beside it add to its logits (or scores).

    The spreads are standard deviations over turns, of all outputs together, after the mean over the outputs of each
    turn is taken out where these are labels: what moves all of them alike changes no probability.
    """

    factor: float  # that of the deep part; the linear path holds its own already
    deep: float
    linear: float


def weigh_parts(models: Sequence[LoadedModel], splits: Sequence[Split], answers: np.ndarray) -> list[Parts]:
    """The parts of each of `models`, which gave these `answers` for the turns of `splits`; none without linear paths.

    Shape:
        answers: (seeds, utterances, outputs), probabilities calibrated, or scores
    """
    parts = []
    for one, said in zip(models, answers, strict=True):
        path, temperature = getattr(one.model, "linear_path", None), one.provenance.temperature
        if not isinstance(path, LinearPath):
            return []
        whole = said if temperature is None else temperature * np.log(np.maximum(said, np.finfo(float).tiny))
        with torch.inference_mode(), full_float32():
            found = [path(batch).double().cpu().numpy() for split in splits for batch in split.batches(CONVERSATIONS)]
        linear = np.concatenate(found)
        if temperature is not None:
            whole, linear = (logits - logits.mean(-1, keepdims=True) for logits in (whole, linear))
        deep, own = (float(np.sqrt(logits.var(0).mean())) for logits in (whole - linear, linear))
        parts.append(Parts(float(path.deep), deep, own))
    return parts


def _spread(batch: Batch, taken: set[int]) -> Batch:
    """The same in one group, padded so that tokens are wider than frames and neither is one of `taken`."""
    group = batch.joined().groups[0]
    frames = next(width for width in count(max(group.audio.shape[1], 2)) if width not in taken)
    tokens = next(width for width in count(max(group.text.shape[1], frames + 1)) if width not in taken)
    return Batch.padded(
        audio=_widen(group.audio, frames),
        audio_mask=_widen(group.audio_mask, frames),
        text=_widen(group.text, tokens),
        text_mask=_widen(group.text_mask, tokens),
        labels=batch.labels,
        scores=batch.scores,
        turn_mask=batch.turns.mask,
        speakers=batch.turns.speakers,
    )


def _widen(x: Tensor, width: int) -> Tensor:
    return F.pad(x, [0, 0] * (x.dim() - 2) + [0, width - x.shape[1]])


def _axes(shape: tuple[int, ...], utterances: int, widths: dict[str, int]) -> tuple[Axis, ...]:
    """What lies along a view, apart from utterances, heads and width; nothing where this is not known.

    >>> _axes((2, 4, 5, 9), 2, {"frames": 5, "tokens": 6, "turns": 1})
    (Axis(kind='frames', extra=0), Axis(kind='tokens', extra=3))
    """
    known = {widths["frames"]: Axis("frames"), widths["tokens"]: Axis("tokens")}
    match shape:
        case (first, positions) | (first, positions, _) if first == utterances and positions in known:
            return (known[positions],)
        case (first, _, turns) if first == utterances and turns == widths["turns"]:
            return (Axis("turns"),)
        case (first, _, queries, keys) if first == utterances and queries in known:
            if keys in known:
                return known[queries], known[keys]
            if keys > widths["tokens"]:
                return known[queries], Axis("tokens", keys - widths["tokens"])
    return ()


def _reduce(view: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """Without heads or width: (utterances, positions) or (utterances, positions, positions)."""
    if view.dim() == 2:
        return view
    return view.mean(2) if view.dim() == 3 and axes[0].kind != "turns" else view.mean(1)


def _encode(view: np.ndarray, axes: Sequence[Axis], lengths: dict[str, int], widths: dict[str, int]) -> bytes:
    """The real positions of one utterance's view."""
    for number, axis in enumerate(axes):
        real, padded = lengths[axis.kind], widths[axis.kind]
        own = _shorten(view.take(np.arange(real), number), number)
        extra = view.take(np.arange(padded, padded + axis.extra), number)
        view = np.concatenate([own, extra], number)
    largest = float(view.max(initial=0.0))
    steps = np.rint(view * (255 / largest)) if largest > 0 else np.zeros_like(view)
    seen = np.maximum(steps, view > 0)  # the page counts what could be looked at
    return np.float32(largest).tobytes() + seen.astype(np.uint8).tobytes()


def _shorten(view: np.ndarray, axis: int) -> np.ndarray:
    """Means of `LONGEST` neighbouring blocks, of which the first begins with the first position."""
    length = view.shape[axis]
    if length <= LONGEST:
        return view
    bounds = np.arange(LONGEST) * length // LONGEST
    counts = np.diff([*bounds, length])
    shape: list[Any] = [1] * view.ndim
    shape[axis] = -1
    means: np.ndarray = np.add.reduceat(view, bounds, axis) / counts.reshape(shape)
    return means
