"""Train one model: whole-conversation batches, selection on validation, early stopping, resume after interruption.

A model is trained in the stages that it names (`fusion.models.interface`), mostly one. `fit` is given the train and the
validation split and cannot see another one. Its numbers depend on the splits, the recipe, the seed, the device and
torch's version: an interrupted run ends with the bits of an undisturbed one.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from fusion.batch import Batch
from fusion.data import Split
from fusion.errors import TrainingError
from fusion.inference import CONVERSATIONS, fit_ensembles, predict_heads, score_heads
from fusion.layers import LinearPath, ScoreScale, Standardise, path_weights
from fusion.linear import LinearReference, fit_linear
from fusion.models import Sizes, build_model
from fusion.objective import (
    Calibration,
    Epoch,
    Sought,
    Task,
    find_task,
    history_from_json,
    score_scale,
    signs_of_no_learning,
)
from fusion.params import Recipe
from fusion.runtime import place, reproducible
from fusion.training.resume import StateFile
from fusion.training.stage import StageRun, Training
from pipeline.settings import repeatably

LINE_SECONDS = 60.0  # between two lines of progress where there is no terminal


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained model: the weights of its best epochs on validation, ready to predict."""

    model: nn.Module
    history: list[Epoch]  # of all stages
    selected: Mapping[str, int]  # `<stage>.<head>` -> the number of the epoch whose weights that head has
    validation: Mapping[str, Mapping[str, float]]  # of `answers`, by head and metric
    calibration: Calibration | None  # of `answers`; None of scores
    answers: Mapping[str, np.ndarray]  # on validation, by head, not calibrated, before the linear path learned from it

    @property
    def best(self) -> Epoch:
        """The epoch whose weights the last stage has; the later one where its branches have one each."""
        return self.history[max(self.selected.values()) - 1]


def build_split_model(split: Split, recipe: Recipe, classes: int) -> nn.Module:
    """A new model of `recipe` for the features of `split`, on its device; its heads know so many `classes`."""
    sizes = Sizes(
        audio_dim=split.audio.dim,
        text_dim=split.text.dim,
        audio_layers=split.audio.layers,
        text_layers=split.text.layers,
        classes=find_task(recipe.train.target, classes).outputs,
    )
    model: nn.Module = build_model(recipe.model.name, recipe.own, sizes, recipe.wanted)
    return model.to(split.device)


def scale_to(model: nn.Module, train: Split, robust: bool = False) -> nn.Module:
    """The same model, which from now on standardises features as those of `train` ask for, if it does at all.

    Where it gives scores, they are on the scale of those of `train`.
    """
    for part in model.modules():
        if isinstance(part, Standardise):
            part.fit(lambda name: getattr(train, name).robust_columns if robust else getattr(train, name).columns)
        elif isinstance(part, ScoreScale) and not train.scores.isnan().all():  # else it is a single label
            part.fit(*score_scale(train.scores.numpy()))
    return model


def fit(
    train: Split,
    validation: Split,
    recipe: Recipe,
    seed: int,
    *,
    classes: int,
    state: StateFile | None = None,
    linear: LinearReference | None = None,
) -> Fit:  # seven: what is learned from, how, and what several seeds share
    """Train `recipe` on `train` from `seed`, select on `validation`.

    Args:
        train, validation: on the device that trains.
        classes: labels are 0 .. classes - 1; for scores it does not matter.
        state: where to keep the state between epochs, and to go on from if it is there.
        linear: what `fit_linear` makes of these splits and this recipe, if it is known already.

    Raises:
        SettingsError: the model does not accept its parameters.
        TrainingError: a loss is not finite.
        OutputError: the state cannot be written.
    """

    def learn(strict: bool) -> Training:
        with reproducible(seed, train.device, strict):
            model = build_split_model(train, recipe, classes)
            model = scale_to(model, train, recipe.model.standardise == "robust").eval()
            training = Training(model, train, validation, recipe, seed, classes)
            _train(training, f"seed {seed}", state)
        return training

    try:
        training = repeatably(learn, f"seed {seed}")
    except TrainingError as error:
        raise TrainingError(f"seed {seed}, {error}") from None
    model, task = training.model, training.task
    fit_ensembles(model, validation, task)
    if isinstance(path := getattr(model, "linear_path", None), LinearPath):
        linear = linear or fit_linear(train, validation, recipe, classes)
        answers = _fit_linear_path(path, linear, model, validation, task)
    else:
        answers = predict_heads(model, validation, task)
    return Fit(
        model=model,
        history=training.history,
        selected={
            f"{stage.name}.{branch}": best.number
            for stage in training.stages
            for branch, best in training.best_epochs(stage).items()
        },
        validation=score_heads(task, validation, answers),
        calibration=task.calibration(task.truth(validation).numpy(), answers["fused"]),
        answers=answers,
    )


def find_signs(result: Fit, task: Task, splits: Sequence[Split], recipe: Recipe) -> tuple[str, ...]:
    """Why the model of `result` seems to have learned nothing of `splits`, train and validation; mostly nothing."""
    train, known = (task.truth(split).numpy() for split in splits)
    sought = Sought(recipe.train.metric, recipe.loss.of_labels)
    return tuple(signs_of_no_learning(result.history, task, train, known, result.answers["fused"], sought))


def _fit_linear_path(
    path: LinearPath, reference: LinearReference, model: nn.Module, validation: Split, task: Task
) -> dict[str, np.ndarray]:
    """Put the linear reference beside the trained model, both with the weights that suit `validation` best.

    Returns what the model answers on `validation` with linear models of train alone; those that it keeps have learned
    from validation, too.
    """
    truth = task.truth(validation)
    counted = task.counted(truth).numpy()  # as numpy: one value of torch would be taken for an index
    deep = _outputs(lambda batch: model(batch).logits, validation)[counted]
    path.fit(reference.weights(on_train=True))
    linear = _outputs(path, validation)[counted]
    weights = path_weights(deep, linear, truth[counted].numpy(), task.target == "score")
    path.weigh(*weights)
    answers = predict_heads(model, validation, task)
    path.fit(reference.weights())
    path.weigh(*weights)
    return answers


def _outputs(model: Callable[[Batch], Tensor], split: Split) -> np.ndarray:
    """(utterances, outputs) float64."""
    with reproducible(0, split.device), torch.no_grad():
        return torch.cat([model(batch) for batch in split.batches(CONVERSATIONS)]).double().cpu().numpy()


def _train(training: Training, name: str, file: StateFile | None) -> None:
    """All stages, or those that are not done according to `file`; `name` is that of the progress bars."""
    begun = file.load() if file else None
    if begun:
        training.model.load_state_dict(begun.model)
        training.history = history_from_json(begun.history)
    for stage in training.stages:
        if begun and begun.stage != stage.name:
            continue  # its weights are in the state
        run = StageRun(stage, training)
        if begun:
            run.restore(begun)
            begun = None
        with _Progress(f"{name}, {stage.name}", training.params.epochs, len(run.epochs)) as progress:
            while not run.finished:
                epoch = run.advance()
                if file:
                    file.save(run.state())
                metric = training.params.metric
                progress.add({"loss": epoch.train["total"], metric: epoch.scores[metric]})
        run.select()


class _Progress:
    """A bar on a terminal; elsewhere, as in the log of a cluster, a line now and then."""

    def __init__(self, name: str, epochs: int, done: int) -> None:
        # of several processes, each has a line of its own for as long as it works
        line: dict[str, Any] = {"position": place(), "leave": None}
        self.bar = tqdm(total=epochs, initial=done, desc=name, unit="epoch", disable=None, **line)
        self.name, self.epochs, self.done = name, epochs, done
        stream = sys.__stderr__  # a table of runs has a bar of its own there
        self.due = math.inf if stream is None or stream.isatty() else time.monotonic() + LINE_SECONDS

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *raised: object) -> None:
        self.bar.close()

    def add(self, shown: Mapping[str, float]) -> None:
        """Count an epoch."""
        self.done += 1
        self.bar.update()
        self.bar.set_postfix(shown)
        if time.monotonic() >= self.due:
            self.due = time.monotonic() + LINE_SECONDS
            numbers = ", ".join(f"{name} {value:.3f}" for name, value in shown.items())
            print(f"{self.name}: epoch {self.done} of at most {self.epochs}, {numbers}", file=sys.stderr, flush=True)
