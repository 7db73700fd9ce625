"""The turns as one JSON object that `assets/*.js` reads: texts once, numbers as base64 of little-endian bytes.

Probabilities are in 255 steps, scores float32. What is not known is null, or -1 in an index.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusion.data import Split
from fusion.page.manifest import Record
from fusion.page.sounds import Sound
from fusion.page.turns import Said
from fusion.page.views import Axis
from pipeline.store import UNLABELLED, Features

ESCAPES = {ord(symbol): f"\\u{ord(symbol):04x}" for symbol in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class Views:
    """What is shown of one model."""

    seed: int
    axes: Mapping[str, Sequence[Axis]] = field(default_factory=dict)  # by name
    content: Mapping[int, bytes] = field(default_factory=dict)  # by utterance
    words: Mapping[int, Sequence[str]] = field(default_factory=dict)  # of those utterances, where they are known
    constants: Mapping[str, Sequence[float]] = field(default_factory=dict)  # weights of the model as a whole


def describe_turns(
    features: Features,
    splits: Sequence[Split],
    said: Said,
    seeds: Sequence[int],
    records: Mapping[str, Record],
    views: Views,
    sounds: Mapping[str, Sound],
) -> dict[str, Any]:
    """Everything that the explorer shows."""
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
        "wrong": _bytes(said.wrong, "u1"),
        "disagree": None if said.disagree is None else _bytes(said.disagree, "u1"),
        "change": _bytes(said.change, "<f4"),
        "views": {
            "seed": views.seed,
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


def script_json(content: Any) -> str:
    """JSON that may stand inside <script>: nothing in it can end the element, or is a line end to JavaScript alone.

    >>> script_json("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(ESCAPES)


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
