"""What fusion-predict does: find out what is asked for, have it predicted, hand it on."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from fusion.errors import RecordingError
from fusion.prediction import Prediction, Turn
from fusion.prediction_files import check_output, summary, to_json_lines, write_predictions
from fusion.predictor import Predictor
from fusion.stream import answer_stream
from pipeline.store import read_features


@dataclass(frozen=True)
class Asked:
    """The options that say what to predict from and where to write it, as the user typed them."""

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

    @property
    def turns(self) -> list[Turn]:
        """Those of --audio, --text and --speaker: one conversation."""
        return [
            Turn(text, audio or None, speaker=speaker or None)
            for audio, text, speaker in zip_longest(self.audio, self.text, self.speaker)
        ]

    def check(self) -> None:
        """See that the options go together and that the output can be written.

        Raises:
            RecordingError: there is no source or several, or an option that another source has.
            OutputError: the output cannot be written.
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
        if self.output is not None:
            check_output(self.output, [path for path in (self.table, self.features) if path is not None])

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

    def predict(self, predictor: Predictor) -> list[Prediction]:
        """What the models say; raises as `Predictor` does."""
        if self.table is not None:
            return predictor.predict_table(self.table, self.root, self.params, self.overrides)
        if self.features is not None:
            return predictor.predict_features(read_features(self.features), self.split)
        return predictor.predict(self.turns)


def predict(asked: Asked, predictor: Predictor) -> None:
    """Write what is predicted, or answer line by line, and say in a line how it went.

    Without an output file predictions go to standard output, and that line to standard error.

    Raises:
        ErcError: as `Predictor` does; the output cannot be written.
    """
    if asked.stream:
        predictor.load_encoders()
        print(answer_stream(predictor, sys.stdin.buffer, sys.stdout, asked.root or Path()), file=sys.stderr)
        return
    predictions = asked.predict(predictor)
    if asked.output is None:
        print(to_json_lines(predictions, ascii_only=True), end="")
        print(summary(predictions), file=sys.stderr)
    else:
        write_predictions(asked.output, predictions)
        print(f"{asked.output}: {summary(predictions)}")
