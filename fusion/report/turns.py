"""What models say of every turn: in its conversation, alone, and from each modality by itself; and the turns as one
JSON object that `assets/*.js` reads: texts once, numbers as base64 of little-endian bytes.

Axes: seeds, utterances, outputs (classes, or 1 where scores are predicted).

Probabilities are in 255 steps, scores float32. What is not known is null, or -1 in an index.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from fusion.checkpoint import LoadedModel
from fusion.data import Split
from fusion.evaluation import Record
from fusion.inference import CONVERSATIONS, predict_heads
from fusion.objective import Task
from fusion.report.utterances import Sound
from fusion.report.views import Axis
from fusion.runtime import side_by_side, single_thread
from fusion.tables import DIRECTIONS, isolated
from pipeline.store import UNLABELLED, Features

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
        """(utterances,) boolean: audio and text, both there, predict other labels, or scores farther apart than the
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


@dataclass(frozen=True, eq=False)
class Beside:
    """Another model on the same turns."""

    name: str
    said: Said


ESCAPES = {ord(symbol): f"\\u{ord(symbol):04x}" for symbol in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class Views:
    """What is shown of one model."""

    seed: int
    axes: Mapping[str, Sequence[Axis]] = field(default_factory=dict)  # by name
    content: Mapping[int, bytes] = field(default_factory=dict)  # by utterance
    words: Mapping[int, Sequence[str]] = field(default_factory=dict)  # of those utterances, where they are known
    constants: Mapping[str, Sequence[float]] = field(default_factory=dict)  # weights of the model as a whole
    note: str = ""  # of which part of the model they are, where not of the whole


def describe_turns(
    features: Features,
    splits: Sequence[Split],
    said: Said,
    seeds: Sequence[int],
    records: Mapping[str, Record],
    views: Views,
    sounds: Mapping[str, Sound],
    name: str = "",
    beside: Beside | None = None,
) -> dict[str, Any]:
    """Everything that the explorer shows of the model `name`, and what the one `beside` it says."""
    ids = [name for split in splits for name in split.ids]
    row = {name: index for index, name in enumerate(features.utterances.ids)}
    speakers = [features.utterances.speakers[row[name]] for name in ids]
    named = {name: index for index, name in enumerate(sounds)}
    here = [records.get(name) for name in ids]
    audio = [named.get(one.audio, -1) if one and one.audio else -1 for one in here]
    counts = [len(split.conversations) - 1 for split in splits]
    is_label = said.task.target == "label"
    return {
        "target": said.task.target,
        "labels": list(features.label_names) if is_label else [],
        "unlabelled": UNLABELLED,
        "seeds": list(seeds),
        "typicalError": said.typical_error if not is_label else None,
        "splits": [split.name for split in splits],
        "conversations": [name for split in splits for name in _conversation_names(split)],
        "splitOf": np.repeat(np.arange(len(splits)), counts).tolist(),
        "starts": _bytes(np.cumsum([0, *(int(n) for split in splits for n in split.conversations.diff())]), "<i4"),
        "ids": ids,
        "texts": [_clean(one.text) if one else None for one in here] if records else None,
        "speakers": _indexed(speakers),
        "statuses": _indexed([one.status if one else "" for one in here]) if records else None,
        "seconds": _bytes(np.array([one.seconds if one and one.seconds else 0 for one in here]), "<f4"),
        "frames": _bytes(said.frames, "<u4"),
        "tokens": _bytes(said.tokens, "<u4"),
        "true": _bytes(said.true, "<i2" if is_label else "<f4"),
        "mean": _answers(said.mean, is_label),
        "answers": [_answers(one, is_label) for one in said.answers],
        "alone": _answers(said.alone, is_label),
        "audio": None if said.audio is None else _answers(said.audio, is_label),
        "text": None if said.text is None else _answers(said.text, is_label),
        "predicted": _bytes(said.mean.argmax(-1), "<i2"),
        "predictedBySeed": [_bytes(one.argmax(-1), "<i2") for one in said.answers] if is_label else [],
        "name": _clean(name),
        "beside": None
        if beside is None
        else {
            "name": _clean(beside.name),
            "mean": _answers(beside.said.mean, is_label),
            "predicted": _bytes(beside.said.mean.argmax(-1), "<i2"),
            "wrong": _bytes(beside.said.wrong, "u1"),
        },
        "wrong": _bytes(said.wrong, "u1"),
        "disagree": None if said.disagree is None else _bytes(said.disagree, "u1"),
        "change": _bytes(said.change, "<f4"),
        "views": {
            "seed": views.seed,
            "note": views.note,
            "shown": [
                {"name": name, "axes": [{"kind": axis.kind, "extra": axis.extra} for axis in axes]}
                for name, axes in views.axes.items()
            ],
            "content": {str(index): base64.b64encode(content).decode() for index, content in views.content.items()},
            "words": {str(index): [_clean(word) for word in words] for index, words in views.words.items()},
        },
        "sounds": [{"name": _clean(one.name), "source": one.source, "inside": one.inside} for one in sounds.values()],
        "soundOf": _bytes(np.array(audio), "<i4"),
        "begin": _bytes(np.array([one.start if one and one.start is not None else -1 for one in here]), "<f4"),
        "end": _bytes(np.array([one.end if one and one.end is not None else -1 for one in here]), "<f4"),
    }


def _isolated_all(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _isolated_all(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_isolated_all(value) for value in content]
    return isolated(content) if isinstance(content, str) else content


def script_json(content: Any) -> str:
    """JSON that may stand inside <script>: nothing in it can end the element, or is a line end to JavaScript alone.

    >>> script_json("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    dump = partial(json.dumps, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = dump(content)
    return (dump(_isolated_all(content)) if DIRECTIONS.search(text) else text).translate(ESCAPES)


def _answers(answers: np.ndarray, is_label: bool) -> str:
    return _bytes(np.rint(answers * 255), "u1") if is_label else _bytes(answers, "<f4")


def _bytes(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values.astype(kind)).tobytes()).decode()


def _indexed(values: Sequence[str]) -> dict[str, Any]:
    """Each text once, and which one each turn has."""
    names = {name: index for index, name in enumerate(dict.fromkeys(values))}
    return {"names": [_clean(name) for name in names], "of": _bytes(np.array([names[one] for one in values]), "<i4")}


def _clean(text: str) -> str:
    """Without halves of characters, which no file can hold."""
    return text.encode("utf-8", "replace").decode()


def _conversation_names(split: Split) -> list[str]:
    return [split.conversation_ids[start] for start in split.conversations[:-1].tolist()]
