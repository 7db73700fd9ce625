"""Train one model: whole-conversation batches, selection on validation, early stopping, resume after interruption.

`fit` is given the train and the validation split and cannot see another one. Its numbers depend on the splits, the
recipe, the seed, the device and torch's version: an interrupted run ends with the bits of an undisturbed one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fusion.criterion import Criterion, LossMeans
from fusion.data import Split
from fusion.device import reproducible
from fusion.errors import TrainingError
from fusion.history import Epoch, best_epoch, history_from_json, history_to_json
from fusion.metrics import all_metrics, confusion_matrix
from fusion.models import build_model
from fusion.params import Recipe, TrainParams, model_arguments
from fusion.state import State, StateFile


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained model: the weights of its best epoch on validation, ready to predict."""

    model: nn.Module
    best: Epoch
    history: list[Epoch]


def build_split_model(split: Split, recipe: Recipe, classes: int) -> nn.Module:
    """A new model of `recipe` for the features of `split`, on its device."""
    model = build_model(
        recipe.model.name,
        audio_dim=split.audio.dim,
        text_dim=split.text.dim,
        audio_layers=split.audio.layers,
        text_layers=split.text.layers,
        classes=classes,
        **model_arguments(recipe.model, recipe.loss),
    )
    return model.to(split.device)


def _optimizer(model: nn.Module, params: TrainParams) -> torch.optim.Optimizer:
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[params.optimizer]
    return optimizer(model.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay)


class _Run:
    """A training run between two epochs."""

    def __init__(self, train: Split, validation: Split, recipe: Recipe, seed: int, classes: int) -> None:
        self.train, self.validation, self.classes = train, validation, classes
        self.params, self.seed = recipe.train, seed
        self.model = build_split_model(train, recipe, classes)
        self.optimizer = _optimizer(self.model, recipe.train)
        self.loss = Criterion(recipe.loss, train, classes)
        self.shuffle = torch.Generator().manual_seed(seed)
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}

    @property
    def epochs(self) -> int:
        return len(self.history)

    @property
    def finished(self) -> bool:
        if not self.history:
            return False
        waited = self.epochs - best_epoch(self.history, self.params.metric).number
        return self.epochs >= self.params.epochs or waited >= self.params.patience

    def advance(self) -> Epoch:
        """One epoch of learning and its validation."""
        epoch = self._validate(self._learn())
        self.history.append(epoch)
        if best_epoch(self.history, self.params.metric) is epoch:
            self.best = {name: weight.detach().clone() for name, weight in self.model.state_dict().items()}
        return epoch

    def _learn(self) -> Mapping[str, float]:
        self.model.train()
        means = LossMeans()
        for batch in self.train.batches(self.params.conversations, self.shuffle):
            losses = self.loss(self.model(batch), batch)
            self.optimizer.zero_grad()
            losses.total.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.params.gradient_clip)
            self.optimizer.step()
            means.add(losses, batch)
        return self._finite(means)

    @torch.no_grad()
    def _validate(self, train_losses: Mapping[str, float]) -> Epoch:
        self.model.eval()
        means, logits = LossMeans(), []
        for batch in self.validation.batches(self.params.conversations):
            output = self.model(batch)
            means.add(self.loss(output, batch), batch)
            logits.append(output.logits)
        predicted = torch.cat(logits).argmax(-1).cpu().numpy()
        confusion = confusion_matrix(self.validation.labels.numpy(), predicted, self.classes)
        return Epoch(self.epochs + 1, train_losses, self._finite(means), all_metrics(confusion))

    def _finite(self, means: LossMeans) -> Mapping[str, float]:
        losses = means.compute()
        if not math.isfinite(losses["total"]):
            raise TrainingError(
                f"seed {self.seed}, epoch {self.epochs + 1}: the loss is {losses['total']}; lower train.learning_rate "
                f"(now {self.params.learning_rate}), and check the features with pipeline-inspect --verify"
            )
        return losses

    def state(self) -> State:
        random = {"torch": torch.get_rng_state(), "shuffle": self.shuffle.get_state()}
        if self.train.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.train.device)
        return State(
            self.model.state_dict(), self.best, self.optimizer.state_dict(), random, history_to_json(self.history)
        )

    def restore(self, state: State) -> None:
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        self.best = {name: weight.to(self.train.device) for name, weight in state.best.items()}
        self.history = history_from_json(state.history)
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
        classes: labels are 0 .. classes - 1.
        state: where to keep the state after every epoch, and to go on from if it is there.

    Raises:
        SettingsError: the model does not accept its parameters.
        TrainingError: a loss is not finite.
        OutputError: the state cannot be written.
    """
    metric = recipe.train.metric
    with reproducible(seed, train.device):
        run = _Run(train, validation, recipe, seed, classes)
        if state and (found := state.load()):
            run.restore(found)
        with tqdm(
            total=recipe.train.epochs, initial=run.epochs, desc=f"seed {seed}", unit="epoch", disable=None
        ) as bar:
            while not run.finished:
                epoch = run.advance()
                if state:
                    state.save(run.state())
                bar.update()
                bar.set_postfix({"loss": epoch.train["total"], metric: epoch.scores[metric]})
    run.model.load_state_dict(run.best)
    return Fit(run.model.eval(), best_epoch(run.history, metric), run.history)
