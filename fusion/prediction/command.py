"""What fusion-predict does: find out what is asked for, have it predicted, hand it on.

torch is imported behind `Asked.check` alone, so that a wrong command line is told at once.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from fusion.errors import RecordingError
from fusion.prediction.records import Prediction, Turn, check_output, summary, to_json_lines, write_predictions
from fusion.runtime import check_model_folder
from pipeline.settings import say, sole_writer
from pipeline.store import read_features

if TYPE_CHECKING:
    from fusion.prediction.predictor import Predictor


@dataclass(frozen=True)
class Asked:
    """The options that say what to predict from, with what, and where to write it, as the user typed them."""

    model: Path
    table: Path | None = None
    audio: Sequence[str] = ()  # one a turn, "" where it has none
    text: Sequence[str] = ()
    speaker: Sequence[str] = ()
    features: Path | None = None
    stream: bool = False
    root: Path | None = None
    split: str | None = None
    output: Path | None = None
    params: Path | None = None
    overrides: Sequence[str] = ()
    overwrite: bool = False

    @property
    def turns(self) -> list[Turn]:
        """Those of --audio, --text and --speaker: one conversation."""
        return [
            Turn(text, audio or None, speaker=speaker or None)
            for audio, text, speaker in zip_longest(self.audio, self.text, self.speaker)
        ]

    def check(self) -> None:
        """See that the options go together, that what they name is there and that the output can be written.

        Raises:
            RecordingError: there is no source or several, an option that another source has, or no such file.
            OutputError: the output cannot be written.
            ModelError: there is no such model folder.
        """
        turns = bool(self.audio or self.text)
        sources = {
            "--table": self.table is not None,
            "--audio and --text": turns,
            "--features": self.features is not None,
            "--stream": self.stream,
        }
        given = [name for name, there in sources.items() if there]
        if len(given) != 1:
            found = " and also ".join(given) or "none of them"
            raise RecordingError(f"give one of --table, --audio and --text, --features, --stream; found {found}")
        for name, there, fitting in (
            ("--root", self.root is not None, ("--table", "--stream")),
            ("--split", self.split is not None, ("--features",)),
            ("--speaker", bool(self.speaker), ("--audio and --text",)),
            ("--output", self.output is not None, ("--table", "--audio and --text", "--features")),
        ):
            if there and given[0] not in fitting:
                raise RecordingError(f"{name} goes with {' or '.join(fitting)}, not with {given[0]}; leave it out")
        self._check_counts()
        self._check_files()
        if self.output is not None:
            check_output(self.output, [path for path in (self.table, self.features) if path is not None])
        check_model_folder(self.model)

    def _check_counts(self) -> None:
        counts = {
            name: len(values)
            for name, values in (("--audio", self.audio), ("--text", self.text), ("--speaker", self.speaker))
            if values
        }
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise RecordingError(
                f"{told}: give as many of each, the first ones for the first turn, '' where it has none"
            )

    def _check_files(self) -> None:
        """Not the recordings that a table or a stream names: the status of such a turn says what is missing."""
        named = [
            ("--table", "table", str(self.table or "")),
            ("--features", "feature file", str(self.features or "")),
            *(("--audio", "recording", audio) for audio in self.audio),
        ]
        for option, kind, path in named:
            # of os.path, which takes a name that is too long for one that is not there
            if path and not os.path.isfile(path):  # noqa: PTH113
                found = "a folder" if os.path.isdir(path) else "no such file"  # noqa: PTH112
                raise RecordingError(f"{path}: {found}, expected a {kind}; fix {option}")
        if self.root is not None and not self.root.is_dir():
            raise RecordingError(f"{self.root}: no such folder; --root names the one in which the recordings lie")

    def predict(self, predictor: "Predictor") -> list[Prediction]:
        """What the models say; raises as `Predictor` does, and RecordingError where no typed turn can be used."""
        if self.table is not None:
            return predictor.predict_table(self.table, self.root, self.params, self.overrides)
        if self.features is not None:
            return predictor.predict_features(read_features(self.features), self.split)
        predictions = predictor.predict(self.turns)
        self._check_used(predictions)
        return predictions

    def _check_used(self, predictions: Sequence[Prediction]) -> None:
        """Refuse typed turns of which the model has seen nothing: its answer would be the same for any such turn."""
        statuses = [one.status.split("+") for one in predictions]
        if not all("context-only" in status for status in statuses):
            return
        told = []
        for index, (turn, status) in enumerate(zip(self.turns, statuses, strict=True)):
            name = f"turn {index} ({turn.audio})" if turn.audio else f"turn {index}"
            told.append(f"{name} is {', '.join(issue for issue in status if issue != 'context-only')}")
        raise RecordingError(
            f"nothing that was given can be used: {'; '.join(told)}; give a recording that can be decoded, or words, "
            "whichever the model looks at"
        )


def predict(asked: Asked, predictor: "Predictor") -> None:
    """Write what is predicted, or answer line by line, and say in a line how it went.

    Without an output file predictions go to standard output, and that line to standard error.

    Raises:
        ErcError: as `Predictor` does; the output cannot be written.
    """
    if asked.stream:
        from fusion.prediction.stream import answer_stream

        predictor.load_encoders()
        print(answer_stream(predictor, sys.stdin.buffer, sys.stdout, asked.root or Path()), file=sys.stderr)
        return
    if asked.output is not None:
        with sole_writer(asked.output):
            _hand_on(asked, predictor)
    else:
        _hand_on(asked, predictor)


def _hand_on(asked: Asked, predictor: "Predictor") -> None:
    predictions = asked.predict(predictor)
    told = [*filter(None, [predictor.score(predictions)]), summary(predictions)]
    if asked.output is None:
        print(to_json_lines(predictions, ascii_only=True), end="")
        say("\n".join(told), sys.stderr)
    else:
        changed = write_predictions(asked.output, predictions, asked.overwrite)
        told[-1] = f"{asked.output}: {told[-1]}{'' if changed else '; it was there already, unchanged'}"
        say("\n".join(told))
