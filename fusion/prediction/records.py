"""What is asked of a trained model and what it answers: one turn in, one prediction out, as JSON lines and as CSV.

A file may go on to a spreadsheet, which takes a cell that begins with = + - @ for a formula: in CSV such a name comes
with an apostrophe in front, as spreadsheets themselves write it. JSON lines have every name as it is.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from fusion.errors import OutputError, RecordingError
from fusion.runtime import holds, try_place, write_file
from fusion.tables import csv_text, number, number_of, plain_cell, rounded


@dataclass(frozen=True, eq=False)
class Turn:
    """One turn of a conversation; audio or text may be missing.

    Raises:
        RecordingError: a field is of another type, or a time is no finite number.
    """

    text: str | None = ""
    audio: str | PathLike[str] | np.ndarray | None = None  # a recording, or (samples,) in [-1, 1]
    sample_rate: int | None = None  # of samples, in Hz
    speaker: str | None = None
    conversation: str = "0"
    start: float | None = None  # seconds in the recording; None: from its beginning
    end: float | None = None  # None: to its end

    def __post_init__(self) -> None:
        if not isinstance(self.text, str | None):
            raise RecordingError(f"the text of a turn is {self.text!r}; expected a str, or None where it has none")
        if not isinstance(self.audio, str | PathLike | np.ndarray | None):
            raise RecordingError(
                f"the audio of a turn is {_described(self.audio)}; expected a path, samples in a numpy array "
                "(np.asarray(x, np.float32)), or None"
            )
        if not isinstance(self.conversation, str):
            raise RecordingError(f"the conversation of a turn is {self.conversation!r}; expected its name, a str")
        if not isinstance(self.speaker, str | None):
            raise RecordingError(f"the speaker of a turn is {self.speaker!r}; expected a str, or None where unknown")
        for name in ("start", "end"):
            seconds = getattr(self, name)
            number = isinstance(seconds, int | float | np.integer | np.floating) and not isinstance(seconds, bool)
            if seconds is not None and not (number and math.isfinite(seconds)):
                raise RecordingError(f"the {name} of a turn is {seconds!r}; expected seconds, or None for the whole")


def _described(audio: Any) -> str:
    """What is given as audio, without its numbers."""
    try:
        return f"a {type(audio).__name__} of length {len(audio)}"
    except TypeError:
        return repr(audio)


@dataclass(frozen=True)
class Prediction:
    """What the models of all seeds say of a turn, on average."""

    conversation: str
    turn: int  # from 0, in its conversation
    speaker: str | None
    id: str  # of a table or a feature file; else `<conversation>/<turn>`
    label: str | None  # the most probable one; None where models tell scores
    score: float | None  # None where they tell labels
    probabilities: Mapping[str, float]  # by label, in the order of the classes
    status: str  # ok, or what was amiss with the turn (`pipeline.manifest`, `pipeline.recordings`)
    seeds: tuple[int, ...]  # of the models
    true: str | float | None = None  # the label or score that a table gives; None where it gives none
    carried: Mapping[str, str] = field(default_factory=dict)  # the other columns of a table


SUFFIXES = (".jsonl", ".csv")


def check_output(path: Path, sources: Sequence[Path]) -> None:
    """See that predictions can be written to `path`, before it takes long to make them.

    Raises:
        OutputError: its ending is of no kind that is written, it is one of `sources`, or it cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"--output {path}: must end in {' or '.join(SUFFIXES)}")
    if any(source.resolve() == path.resolve() for source in sources):
        raise OutputError(f"--output {path}: is what predictions are made from; name another file")
    try_place(path)


def write_predictions(path: Path, predictions: Sequence[Prediction], overwrite: bool = False) -> bool:
    """Write a .jsonl or .csv file, which appears whole or not at all; false where the very same was there.

    Raises:
        OutputError: it cannot be written, or other predictions are there and `overwrite` is not given.
    """
    text = to_csv(predictions) if path.suffix.lower() == ".csv" else to_json_lines(predictions)
    if holds(path, text.encode()):
        return False
    if path.exists() and not overwrite:
        raise OutputError(f"--output {path}: holds something else; name another file, or replace it with --overwrite")
    write_file(path, text.encode())
    return True


def to_json_lines(predictions: Sequence[Prediction], ascii_only: bool = False) -> str:
    """One line a prediction; `ascii_only` for a terminal, whatever its encoding and whatever names hold."""
    return "".join(json.dumps(_record(one), ensure_ascii=ascii_only) + "\n" for one in predictions)


def to_csv(predictions: Sequence[Prediction]) -> str:
    """One row a prediction; probabilities are columns `p_<label>`, as in the predictions of an evaluation."""
    labels = list(predictions[0].probabilities) if predictions else []
    told = "predicted" if labels else "score"
    header = ["conversation", "turn", "speaker", "id", told, *(f"p_{label}" for label in labels), "status", "seeds"]
    carried = dict.fromkeys(name for one in predictions for name in one.carried)
    rows = (
        [
            plain_cell(one.conversation),
            one.turn,
            plain_cell(one.speaker or ""),
            plain_cell(one.id),
            number(one.score) if one.label is None else plain_cell(one.label),
            *(number(one.probabilities[label]) for label in labels),
            one.status,
            " ".join(map(str, one.seeds)),
            *(plain_cell(one.carried.get(name, "")) for name in carried),
        ]
        for one in predictions
    )
    return csv_text([*header, *(plain_cell(_apart(name, header)) for name in carried)], rows)


def summary(predictions: Sequence[Prediction]) -> str:
    """How many there are, and every status but ok with its count."""
    conversations, seeds = len({one.conversation for one in predictions}), len(predictions[0].seeds)
    found = (status for one in predictions for status in one.status.split("+") if status != "ok")
    statuses = Counter(re.sub(r" \d.*", "", status) for status in found)  # without the seconds that it names
    amiss = ", ".join(f"{count} {status}" for status, count in statuses.most_common()) or "all ok"
    return (
        f"{number_of(len(predictions), 'turn')} of {number_of(conversations, 'conversation')}, "
        f"{'1 model' if seeds == 1 else f'mean of {seeds} models'}; {amiss}"
    )


def _record(one: Prediction) -> dict[str, Any]:
    place = {"conversation": one.conversation, "turn": one.turn, "speaker": one.speaker, "id": one.id}
    answer: dict[str, Any] = (
        {"score": rounded(one.score)}
        if one.score is not None
        else {
            "predicted": one.label,
            "probabilities": {label: rounded(share) for label, share in one.probabilities.items()},
        }
    )
    own = place | answer | {"status": one.status, "seeds": list(one.seeds)}
    return own | {_apart(name, own): value for name, value in one.carried.items()}


def _apart(name: str, own: Collection[str]) -> str:
    """The name of a column that is carried along, which no column of ours has."""
    return f"input_{name}" if name in own else name
