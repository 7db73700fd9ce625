"""Train one model: whole-conversation batches, selection on validation, early stopping, resume after interruption.

A model is trained in the stages that it names (`fusion.models.interface`), mostly one. `fit` is given the train and the
validation split and cannot see another one. Its numbers depend on the splits, the recipe, the seed, the device and
torch's version: an interrupted run ends with the bits of an undisturbed one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from fusion.data import Split
from fusion.errors import TrainingError
from fusion.inference import fit_ensembles, predict_heads, score_heads
from fusion.models import Sizes, Stage, build_model
from fusion.objective import Calibration, Epoch, best_epoch, find_task, history_from_json, history_to_json
from fusion.params import Recipe
from fusion.runtime import place, reproducible
from fusion.training.resume import State, StateFile
from fusion.training.stage import Criterion, StageRun
from pipeline.settings import repeatably


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained model: the weights of its best epochs on validation, ready to predict."""

    model: nn.Module
    history: list[Epoch]  # of all stages
    selected: Mapping[str, int]  # `<stage>.<head>` -> the number of the epoch whose weights that head has
    validation: Mapping[str, Mapping[str, float]]  # of the trained model, by head and metric
    calibration: Calibration | None  # on validation; None of scores
    answers: Mapping[str, np.ndarray]  # on validation, by head, not calibrated

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


class _Training:
    """A model in training, stage by stage."""

    def __init__(self, train: Split, validation: Split, recipe: Recipe, seed: int, classes: int) -> None:
        self.train, self.validation, self.params, self.seed = train, validation, recipe.train, seed
        self.task = find_task(recipe.train.target, classes)
        self.model: Any = build_split_model(train, recipe, classes).eval()
        self.loss = Criterion(recipe.loss, train, self.task)
        self.shuffle = torch.Generator().manual_seed(seed)
        self.history: list[Epoch] = []

    def run(self, file: StateFile | None) -> None:
        """All stages, or those that are not done according to `file`."""
        begun = file.load() if file else None
        if begun:
            self.model.load_state_dict(begun.model)
            self.history = history_from_json(begun.history)
        for stage in self.model.stages():
            if begun and begun.stage != stage.name:
                continue  # its weights are in the state
            self._run_stage(stage, begun, file)
            begun = None

    def selected(self) -> dict[str, int]:
        """The epoch whose weights each head has, by `<stage>.<head>`."""
        metric = self.params.metric
        return {
            f"{stage.name}.{head}": best_epoch(self.history, metric, head, stage.name).number
            for stage in self.model.stages()
            for head in stage.branches
        }

    def _run_stage(self, stage: Stage, begun: State | None, file: StateFile | None) -> None:
        run = StageRun(
            stage, self.train, self.validation, self.loss, self.params, self.shuffle, self.history, self.task
        )
        if begun:
            run.restore(begun)
            self._restore_random(begun)
        name = f"seed {self.seed}, {stage.name}"
        epochs, metric = self.params.epochs, self.params.metric
        # of several processes, each has a line of its own for as long as it works
        line: dict[str, Any] = {"position": place(), "leave": None}
        with tqdm(total=epochs, initial=len(run.epochs), desc=name, unit="epoch", disable=None, **line) as bar:
            while not run.finished:
                epoch = run.advance()
                if file:
                    file.save(self._state(run))
                bar.update()
                bar.set_postfix({"loss": epoch.train["total"], metric: epoch.scores[metric]})
        run.select()

    def _state(self, run: StageRun) -> State:
        random = {"torch": torch.get_rng_state(), "shuffle": self.shuffle.get_state()}
        if self.train.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.train.device)
        return State(
            model=self.model.state_dict(),
            stage=run.stage.name,
            best=run.best,
            optimizer=run.optimizer.state_dict(),
            random=random,
            history=history_to_json(self.history),
        )

    def _restore_random(self, state: State) -> None:
        torch.set_rng_state(state.random["torch"])
        self.shuffle.set_state(state.random["shuffle"])
        if "cuda" in state.random:
            torch.cuda.set_rng_state(state.random["cuda"], self.train.device)


def fit(
    train: Split, validation: Split, recipe: Recipe, seed: int, *, classes: int, state: StateFile | None = None
) -> Fit:
    """Train `recipe` on `train` from `seed`, select on `validation`.

    Args:
        train, validation: on the device that trains.
        classes: labels are 0 .. classes - 1; for scores it does not matter.
        state: where to keep the state after every epoch, and to go on from if it is there.

    Raises:
        SettingsError: the model does not accept its parameters.
        TrainingError: a loss is not finite.
        OutputError: the state cannot be written.
    """

    def learn(strict: bool) -> _Training:
        with reproducible(seed, train.device, strict):
            training = _Training(train, validation, recipe, seed, classes)
            training.run(state)
        return training

    try:
        training = repeatably(learn, f"seed {seed}")
    except TrainingError as error:
        raise TrainingError(f"seed {seed}, {error}") from None
    fit_ensembles(training.model, validation, training.task)
    answers = predict_heads(training.model, validation, training.task)
    scores = score_heads(training.task, validation, answers)
    calibration = training.task.calibration(training.task.truth(validation).numpy(), answers["fused"])
    return Fit(training.model, training.history, training.selected(), scores, calibration, answers)
