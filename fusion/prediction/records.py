"""What is asked of a trained model and what it answers: one turn in, one prediction out, as JSON lines and as CSV.

A file may go on to a spreadsheet, which takes a cell that begins with = + - @ for a formula: in CSV such a name comes
with an apostrophe in front, as spreadsheets themselves write it. JSON lines have every name as it is.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from fusion.errors import OutputError, RecordingError
from fusion.runtime import try_place, write_file
from fusion.tables import csv_text, number, rounded


@dataclass(frozen=True, eq=False)
class Turn:
    """One turn of a conversation; audio or text may be missing.

    Raises:
        RecordingError: text or audio is of another type.
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
                f"the audio of a turn is {self.audio!r}; expected a path, samples in a numpy array, or None"
            )


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


SUFFIXES = (".jsonl", ".csv")
FORMULA = re.compile(r"[=+\-@\t\r]")
PLAIN_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


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


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write a .jsonl or .csv file; it appears whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    text = to_csv(predictions) if path.suffix.lower() == ".csv" else to_json_lines(predictions)
    write_file(path, text.encode())


def to_json_lines(predictions: Sequence[Prediction], ascii_only: bool = False) -> str:
    """One line a prediction; `ascii_only` for a terminal, whatever its encoding and whatever names hold."""
    return "".join(json.dumps(_record(one), ensure_ascii=ascii_only) + "\n" for one in predictions)


def to_csv(predictions: Sequence[Prediction]) -> str:
    """One row a prediction; probabilities are columns `p_<label>`, as in the predictions of an evaluation."""
    labels = list(predictions[0].probabilities) if predictions else []
    told = "predicted" if labels else "score"
    header = ["conversation", "turn", "speaker", "id", told, *(f"p_{label}" for label in labels), "status", "seeds"]
    rows = (
        [
            _cell(one.conversation),
            one.turn,
            _cell(one.speaker or ""),
            _cell(one.id),
            number(one.score) if one.label is None else _cell(one.label),
            *(number(one.probabilities[label]) for label in labels),
            one.status,
            " ".join(map(str, one.seeds)),
        ]
        for one in predictions
    )
    return csv_text(header, rows)


def summary(predictions: Sequence[Prediction]) -> str:
    """How many there are, and every status but ok with its count."""
    conversations, seeds = len({one.conversation for one in predictions}), len(predictions[0].seeds)
    statuses = Counter(status for one in predictions for status in one.status.split("+") if status != "ok")
    amiss = ", ".join(f"{count} {status}" for status, count in statuses.most_common()) or "all ok"
    turns = len(predictions)
    return (
        f"{turns} {'turn' if turns == 1 else 'turns'} of {conversations} "
        f"{'conversation' if conversations == 1 else 'conversations'}, "
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
    return place | answer | {"status": one.status, "seeds": list(one.seeds)}


def _cell(name: str) -> str:
    """A name that no spreadsheet takes for a formula.

    >>> _cell("=1+1"), _cell("-5"), _cell("Ross")
    ("'=1+1", '-5', 'Ross')
    """
    return f"'{name}" if FORMULA.match(name) and not PLAIN_NUMBER.fullmatch(name) else name
