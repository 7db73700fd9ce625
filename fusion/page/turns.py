"""What models say of every turn: in its conversation, alone, and from each modality by itself.

Axes: seeds, utterances, outputs (classes, or 1 where scores are told).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from fusion.checkpoint import LoadedModel
from fusion.data import Split
from fusion.predict import predict_heads
from fusion.tasks import Task


@dataclass(frozen=True, eq=False)
class Said:
    """What the models of all seeds say of the turns of one split, or of several one behind the other."""

    task: Task
    true: np.ndarray  # (utterances,), as `Task.truth`
    answers: np.ndarray  # (seeds, utterances, outputs), probabilities calibrated
    alone: np.ndarray  # (seeds, utterances, outputs), every turn a conversation of its own
    audio: np.ndarray | None  # (utterances, outputs), mean over seeds, not calibrated; None: there is no such head
    text: np.ndarray | None
    frames: np.ndarray  # (utterances,) as the models are given them; 0: no audio
    tokens: np.ndarray

    @cached_property
    def mean(self) -> np.ndarray:
        """(utterances, outputs): over seeds, what the page calls the prediction."""
        return self.answers.mean(0)

    @cached_property
    def counted(self) -> np.ndarray:
        """(utterances,) boolean: which have a truth."""
        return self.task.counted(self.true)

    @cached_property
    def typical_error(self) -> float:
        """Of scores: the mean absolute error on these turns."""
        errors = np.abs(self.mean[:, 0] - self.true)[self.counted]
        return float(errors.mean()) if len(errors) else 0.0

    @cached_property
    def wrong(self) -> np.ndarray:
        """(utterances,) boolean: another label than the true one; of scores, farther off than the mean error."""
        if self.task.target == "score":
            return self.counted & (np.abs(self.mean[:, 0] - np.nan_to_num(self.true)) > self.typical_error)
        return self.counted & (self.mean.argmax(-1) != self.true)

    @cached_property
    def change(self) -> np.ndarray:
        """(utterances,): how far answers move without the other turns, mean over seeds (`moved`)."""
        return moved(self.answers, self.alone).mean(0)

    @cached_property
    def disagree(self) -> np.ndarray | None:
        """(utterances,) boolean: audio and text, both there, tell other labels, or scores farther apart than the
        mean error; None where the models have no head of each."""
        if self.audio is None or self.text is None:
            return None
        both = (self.frames > 0) & (self.tokens > 0)
        if self.task.target == "score":
            return both & (moved(self.audio, self.text) > self.typical_error)
        return both & (self.audio.argmax(-1) != self.text.argmax(-1))


def moved(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(..., outputs) twice -> (...): total variation between probabilities, absolute difference of scores.

    >>> moved(np.array([0.9, 0.1]), np.array([0.4, 0.6])).round(3).item(), moved(np.ones(1), np.zeros(1)).item()
    (0.5, 1.0)
    """
    distance: np.ndarray = np.abs(one - other).sum(-1)
    return distance if one.shape[-1] == 1 else distance / 2


def ask(models: Sequence[LoadedModel], split: Split, task: Task) -> Said:
    """What `models` say of the turns of `split`."""
    apart = replace(split, conversations=torch.arange(len(split.ids) + 1))
    by_head = [predict_heads(one.model, split, task, one.provenance.temperature) for one in models]
    alone = [predict_heads(one.model, apart, task, one.provenance.temperature)["fused"] for one in models]
    heads = {name: np.mean([answers[name] for answers in by_head], axis=0) for name in by_head[0]}
    audio, text = _single_heads(list(heads))
    return Said(
        task=task,
        true=task.truth(split).numpy(),
        answers=np.stack([answers["fused"] for answers in by_head]),
        alone=np.stack(alone),
        audio=heads.get(audio),
        text=heads.get(text),
        frames=split.audio.lengths.numpy(),
        tokens=split.text.lengths.numpy(),
    )


def _single_heads(names: Sequence[str]) -> tuple[str, str]:
    """The heads of one modality each: the model's own, else those of the last stage that has them.

    >>> _single_heads(["fused", "utterance.audio", "utterance.text", "conversation.audio", "conversation.text"])
    ('conversation.audio', 'conversation.text')
    """
    if "audio" in names:
        return "audio", "text"
    stages = [name.removesuffix("audio") for name in names if name.endswith(".audio")]
    return (f"{stages[-1]}audio", f"{stages[-1]}text") if stages else ("audio", "text")


def join(parts: Sequence[Said]) -> Said:
    """Those of several splits, one behind the other."""

    def along(name: str, axis: int) -> np.ndarray | None:
        arrays = [getattr(one, name) for one in parts]
        return None if arrays[0] is None else np.concatenate(arrays, axis)

    joined = {name: along(name, 0) for name in ("true", "audio", "text", "frames", "tokens")}
    return replace(parts[0], **joined, answers=along("answers", 1), alone=along("alone", 1))  # type: ignore[arg-type]
