"""One training run of an ablation table: trained, scored on the test split, and kept as a small file.

    results/ablations/<fingerprint>.npz     finished
    results/ablations/<fingerprint>.state   begun, goes on after the last epoch that was kept; not by runs on a cluster

The fingerprint stands for everything that decides the numbers, and for nothing else: a run is found again after its set
was renamed or other sets came along, and rows of the same parameters share it.
"""

import io
import json
import logging
import time
import zipfile
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fusion.atomic import write_file
from fusion.data import Split
from fusion.errors import TrainingError
from fusion.params import Recipe
from fusion.predict import predict
from fusion.state import State, StateFile
from fusion.tasks import find_task
from fusion.train import fit
from pipeline.settings import SettingsError

# work that an interruption may cost; keeping the state takes as long as a tenth of a small epoch
KEEP_SECONDS = 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """What a run is given."""

    train: Split
    validation: Split
    test: Split  # scored once, by the trained model


@dataclass(frozen=True)
class Run:
    """One model to train."""

    row: str  # of the table; the first one, where rows share it
    recipe: Recipe
    seed: int
    fingerprint: str

    @property
    def name(self) -> str:
        """For messages."""
        return f"row '{self.row}' of ablations: seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """A finished run."""

    answers: np.ndarray  # on the test split: probabilities (utterances, classes), or scores (utterances, 1)
    validation: Mapping[str, float]  # scores of the trained model, by metric
    parameters: int
    epochs: int
    seconds: float | None  # of training, by the clock on the wall; None where it was interrupted


class RunFolder:
    """Where results are kept."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self, run: Run) -> Result | None:
        """The result of `run`; None where it is not finished."""
        path = self._file(run)
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as content:
                return Result(content["answers"], **json.loads(str(content["rest"])))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            log.warning("%s: damaged (%s); the run is done again", path, type(error).__name__)
            return None

    def save(self, run: Run, result: Result) -> None:
        """Keep `result`, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        rest: dict[str, Any] = asdict(result)
        answers = rest.pop("answers")
        buffer = io.BytesIO()
        np.savez(buffer, answers=answers, rest=np.array(json.dumps(rest)))
        write_file(self._file(run), buffer.getvalue())

    def state(self, run: Run) -> StateFile:
        """Where training keeps its state."""
        return _PatientFile(self.path / f"{run.fingerprint[:32]}.state", run.fingerprint)

    def _file(self, run: Run) -> Path:
        return self.path / f"{run.fingerprint[:32]}.npz"


class _PatientFile(StateFile):
    """Keeps the state of a run every now and then, not after every epoch."""

    def save(self, state: State) -> None:
        if not self.path.exists() or time.time() - self.path.stat().st_mtime > KEEP_SECONDS:
            super().save(state)


class _Plain(io.TextIOBase):
    """A stream that is no terminal: messages pass, progress bars are not drawn. The bar here is that of the runs."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(text)


def train_run(run: Run, splits: Splits, classes: int, folder: RunFolder, stderr: TextIO) -> None:
    """Train, score on the test split, keep the result in `folder`.

    Raises:
        TrainingError: training cannot go on.
        OutputError: the result cannot be written.
    """
    state = folder.state(run)
    folder.save(run, compute_run(run, splits, classes, state, stderr))
    state.delete()


def compute_run(run: Run, splits: Splits, classes: int, state: StateFile | None, stderr: TextIO) -> Result:
    """Train, score on the test split; raises as `train_run`."""
    whole = state is None or not state.path.exists()
    began = time.perf_counter()
    try:
        with redirect_stderr(_Plain(stderr)):
            done = fit(splits.train, splits.validation, run.recipe, run.seed, classes=classes, state=state)
    except (TrainingError, SettingsError) as error:
        raise TrainingError(f"row '{run.row}' of ablations: {error}") from error
    seconds = time.perf_counter() - began
    return Result(
        answers=predict(done.model, splits.test, find_task(run.recipe.train.target, classes)),
        validation=done.validation["fused"],
        parameters=sum(weights.numel() for weights in done.model.parameters()),
        epochs=len(done.history),
        seconds=seconds if whole else None,
    )
