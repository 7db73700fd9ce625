"""One training run of an ablation table, trained, scored on the test split and kept as a small file; and the splits
that the rows of a table need.

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
import zlib
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from fusion.ablation.variants import Variant
from fusion.data import Resident, Split, hold, load_split, report_features, withhold
from fusion.errors import TrainingError
from fusion.inference import predict_heads
from fusion.linear import LinearReference, fit_linear
from fusion.objective import find_task
from fusion.params import Modalities, Recipe
from fusion.runtime import Held, write_file
from fusion.training import KEEP_SECONDS, StateFile, find_signs, fit
from pipeline.settings import SettingsError
from pipeline.store import Features

# work that an interruption may cost; keeping the state takes as long as a tenth of a small epoch
DAMAGE = (OSError, ValueError, LookupError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)

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
    fold: int | None = None  # None: there is but one

    @property
    def name(self) -> str:
        """For messages."""
        fold = "" if self.fold is None else f"fold {self.fold + 1}, "
        return f"row '{self.row}' of ablations: {fold}seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """A finished run."""

    answers: np.ndarray  # on the test split: calibrated probabilities (utterances, classes), or scores (utterances, 1)
    validation: Mapping[str, float]  # scores before the linear path learned from validation, by metric
    parameters: int
    epochs: int
    seconds: float | None  # of training, by the clock on the wall; None where it was interrupted
    note: str = ""  # of the linear reference: what it is the mean of
    unlearned: Sequence[str] = ()  # why it seems to have learned nothing; of folds, those of which this is so


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
        except DAMAGE as error:
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
        return StateFile(self.path / f"{run.fingerprint[:32]}.state", run.fingerprint, KEEP_SECONDS)

    def _file(self, run: Run) -> Path:
        return self.path / f"{run.fingerprint[:32]}.npz"


class _Plain(io.TextIOBase):
    """A stream that is no terminal: messages pass, progress bars are not drawn. The bar here is that of the runs."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(text)


NAMES = ("train", "validation", "test")
Place = tuple[int, int]  # the number of a fold, and model.audio_frames


class SplitTable:
    """Splits by fold and by what the models of rows are given.

    Attributes:
        held: the splits by the number of the fold and model.audio_frames.
    """

    def __init__(self, on_device: Mapping[Place, Splits], off_device: Mapping[Place, Splits]) -> None:
        self.held = Held(on_device, off_device)
        self._references: dict[tuple[Any, ...], LinearReference] = {}

    def reference(self, recipe: Recipe, classes: int, fold: int | None = None) -> LinearReference:
        """What `fit_linear` makes of the splits of `find`; fitted once in a process, for all runs that share it."""
        model, train = recipe.model, recipe.train
        given = (fold or 0, model.audio_frames, model.modalities, tuple(model.looks_at), model.direction)
        key = (*given, model.standardise, recipe.loss.class_weights, train.metric, train.target)
        if key not in self._references:
            splits = self.find(recipe, fold)
            self._references[key] = fit_linear(splits.train, splits.validation, recipe, classes)
        return self._references[key]

    def find(self, recipe: Recipe, fold: int | None = None) -> Splits:
        """What a model of `recipe` is given; a withheld modality costs no copy of the other one."""
        found, modalities = self.held.here[fold or 0, recipe.model.audio_frames], recipe.model.modalities
        return Splits(*(withhold(split, modalities) for split in (found.train, found.validation, found.test)))


def train_run(run: Run, splits: SplitTable, classes: int, folder: RunFolder, stderr: TextIO) -> None:
    """Train, score on the test split, keep the result in `folder`.

    Raises:
        TrainingError: training cannot go on.
        OutputError: the result cannot be written.
    """
    state = folder.state(run)
    folder.save(run, compute_run(run, splits, classes, state, stderr))
    state.delete()


def compute_run(run: Run, table: SplitTable, classes: int, state: StateFile | None, stderr: TextIO) -> Result:
    """Train, score on the test split; raises as `train_run`."""
    splits = table.find(run.recipe, run.fold)
    linear = table.reference(run.recipe, classes, run.fold) if run.recipe.own.linear_path else None
    whole = state is None or not state.path.exists()
    began = time.perf_counter()
    try:
        with redirect_stderr(_Plain(stderr)):
            done = fit(
                splits.train, splits.validation, run.recipe, run.seed, classes=classes, state=state, linear=linear
            )
    except (TrainingError, SettingsError) as error:
        raise TrainingError(f"row '{run.row}' of ablations: {error}") from error
    seconds = time.perf_counter() - began
    task = find_task(run.recipe.train.target, classes)
    temperature = done.calibration.temperature if done.calibration else None
    return Result(
        answers=predict_heads(done.model, splits.test, task, temperature)["fused"],
        validation=done.validation["fused"],
        parameters=sum(weights.numel() for weights in done.model.parameters()),
        epochs=len(done.history),
        seconds=seconds if whole else None,
        unlearned=find_signs(done, task, (splits.train, splits.validation), run.recipe),
    )


def fit_reference(recipe: Recipe, table: SplitTable, classes: int, fold: int) -> Result:
    """The linear reference of models of `recipe` on the test split; seconds, so it is not kept."""
    began = time.perf_counter()
    reference = table.reference(recipe, classes, fold)
    return Result(
        answers=reference.answer(table.find(recipe, fold).test),
        validation=reference.scores,
        parameters=reference.parameters,
        epochs=0,
        seconds=time.perf_counter() - began,
        note=reference.name,
    )


def load_splits(
    folds: Sequence[Features], variants: Sequence[Variant], device: torch.device, memory: int | None
) -> SplitTable:
    """The splits of all `variants`, whose rows take at most `memory` bytes of the device's or stay in the file.

    `folds` are the same features with different splits, and share their rows.

    Raises:
        FeatureError: the features lack what a row needs.
    """
    splits: list[Split] = []
    given, target = [one.recipe.model for one in variants], variants[0].recipe.train.target
    places = [
        (fold, frames) for fold in range(len(folds)) for frames in dict.fromkeys(one.audio_frames for one in given)
    ]
    for fold, frames in places:
        wanted = {one.modalities for one in given if one.audio_frames == frames}
        modalities: Modalities = wanted.pop() if len(wanted) == 1 else "both"
        given_to_it: dict[str, Any] = {"modalities": modalities, "audio_frames": frames}
        for name in NAMES:
            needed = None if name == "test" and len(folds) > 1 else target  # what others test may suffice
            splits.append(load_split(folds[fold], name, **given_to_it, target=needed, device=device, resident=False))
    on_device = _by_place(places, hold(splits, memory))
    for (fold, frames), found in on_device.items():
        recipes = [one.recipe for one in variants if one.recipe.model.audio_frames == frames]
        report_features(found.train, recipes, aloud=not fold)
    return SplitTable(on_device, _by_place(places, splits))


def place_splits(loaded: Mapping[Place, Splits], device: torch.device, memory: int) -> SplitTable:
    """Splits in the memory of this machine; on a GPU they take at most `memory` bytes."""
    splits = [split for one in loaded.values() for split in (one.train, one.validation, one.test)]
    off_device = [_leave(split, device) for split in splits]
    on_device = splits if device.type == "cpu" else hold(off_device, memory)
    return SplitTable(_by_place(list(loaded), on_device), _by_place(list(loaded), off_device))


def _leave(split: Split, device: torch.device) -> Split:
    audio, text = (rows.leave(device) if isinstance(rows, Resident) else rows for rows in (split.audio, split.text))
    return replace(split, audio=audio, text=text)


def _by_place(places: Sequence[Place], splits: Sequence[Split]) -> dict[Place, Splits]:
    return {place: Splits(*splits[3 * number :][:3]) for number, place in enumerate(places)}
