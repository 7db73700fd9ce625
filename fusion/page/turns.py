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
from fusion.predict import CONVERSATIONS, predict_heads
from fusion.side_by_side import side_by_side, single_thread
from fusion.tasks import Task

ALONE = 8 * CONVERSATIONS  # turns at a time that are conversations of their own, as many as there are in the others


@dataclass(frozen=True, eq=False)
class Said:
    """What the models of all seeds say of turns."""

    task: Task
    true: np.ndarray  # (utterances,), as `Task.truth`
    answers: np.ndarray  # (seeds, utterances, outputs), probabilities calibrated
    alone: np.ndarray  # (utterances, outputs) of the first seed, every turn a conversation of its own
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
        """(utterances,): how far the first seed's answers move without the other turns (`moved`)."""
        return moved(self.answers[0], self.alone)

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


@dataclass(frozen=True)
class Question:
    """What one model is asked: about the turns of one split, in their conversations or alone."""

    split: int
    model: int
    alone: bool


def ask(models: Sequence[LoadedModel], splits: Sequence[Split], task: Task, jobs: int = 1) -> Said:
    """What `models` say of the turns of `splits`, one behind the other; `jobs` models speak at a time."""
    apart = [replace(split, conversations=torch.arange(len(split.ids) + 1)) for split in splits]

    def answer(question: Question) -> tuple[Question, dict[str, np.ndarray]]:
        one, split = models[question.model], (apart if question.alone else splits)[question.split]
        together = ALONE if question.alone else CONVERSATIONS
        return question, predict_heads(one.model, split, task, one.provenance.temperature, together)

    questions = [Question(split, 0, True) for split in range(len(splits))]
    questions += [Question(split, model, False) for split in range(len(splits)) for model in range(len(models))]
    if jobs > 1:
        with single_thread(jobs) as threads, side_by_side(questions, answer, jobs, threads) as answered:
            found = dict(answered)
    else:
        found = dict(map(answer, questions))

    def joined(model: int, head: str, alone: bool = False) -> np.ndarray:
        return np.concatenate([found[Question(split, model, alone)][head] for split in range(len(splits))])

    everyone = range(len(models))
    audio, text = (
        None if head is None else np.mean([joined(model, head) for model in everyone], axis=0)
        for head in _single_heads(list(found[questions[-1]]))
    )
    return Said(
        task=task,
        true=np.concatenate([task.truth(split).numpy() for split in splits]),
        answers=np.stack([joined(model, "fused") for model in everyone]),
        alone=joined(0, "fused", alone=True),
        audio=audio,
        text=text,
        frames=np.concatenate([split.audio.lengths.numpy() for split in splits]),
        tokens=np.concatenate([split.text.lengths.numpy() for split in splits]),
    )


def _single_heads(names: Sequence[str]) -> tuple[str | None, str | None]:
    """The heads of one modality each: the model's own, else those of the last stage that has them, else none.

    >>> _single_heads(["fused", "utterance.audio", "utterance.text", "conversation.audio", "conversation.text"])
    ('conversation.audio', 'conversation.text')
    """
    if "audio" in names:
        return "audio", "text"
    stages = [name.removesuffix("audio") for name in names if name.endswith(".audio")]
    return (f"{stages[-1]}audio", f"{stages[-1]}text") if stages else (None, None)
