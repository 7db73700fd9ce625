"""What is asked of a trained model, and what it answers: one turn in, one prediction out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusion.errors import RecordingError


@dataclass(frozen=True, eq=False)
class Turn:
    """One turn of a conversation; audio or text may be missing.

    Raises:
        RecordingError: text or audio is of another type.
    """

    text: str | None = ""
    audio: Path | str | np.ndarray | None = None  # a recording, or (samples,) in [-1, 1]
    sample_rate: int | None = None  # of samples, in Hz
    speaker: str | None = None
    conversation: str = "0"
    start: float | None = None  # seconds in the recording; None: from its beginning
    end: float | None = None  # None: to its end

    def __post_init__(self) -> None:
        if not isinstance(self.text, str | None):
            raise RecordingError(f"the text of a turn is {self.text!r}; expected a str, or None where it has none")
        if not isinstance(self.audio, Path | str | np.ndarray | None):
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
