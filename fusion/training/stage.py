"""The training of one stage, epoch by epoch: `StageRun.advance`, which keeps the weights of the best epoch.

Which epoch is the best is `best_epoch` of `fusion.objective.selection`, and nothing else.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from fusion.batch import Batch, Output
from fusion.data import Split, encode_split
from fusion.errors import TrainingError
from fusion.inference import score_answers, score_some
from fusion.models import Stage
from fusion.objective import (
    Epoch,
    Losses,
    LossTerms,
    Task,
    best_epoch,
    find_task,
    fusion_loss,
    head_masks,
    history_to_json,
)
from fusion.params import LossParams, Recipe, TrainParams, losses_of
from fusion.training.precision import check_precision
from fusion.training.resume import State

HEAD_LOSS = {"kind", "gamma", "class_weights", "label_smoothing"}  # keys of section `loss`: what a head's loss is

EARLY = 9  # updates after which a running mean keeps half of what it was


class Criterion:
    """The loss of one batch under the parameters of section `loss`; `branches` are the heads that learn."""

    def __init__(self, params: LossParams, train: Split, task: Task) -> None:
        self.task = task
        self.head_loss = task.head_loss(task.truth(train), params.of_labels, train.device)
        self.terms = LossTerms(**params.model_dump(include=losses_of(task.target) - HEAD_LOSS))

    def __call__(self, output: Output, batch: Batch, branches: Collection[str]) -> Losses:
        truth = self.task.truth(batch)
        masks = head_masks(self.task.counted(truth), batch.audio_present, batch.text_present)
        return fusion_loss(output, truth, masks, self.head_loss, self.terms, branches)

    def of_split(self, logits: Mapping[str, Tensor], split: Split, masks: Mapping[str, Tensor]) -> dict[str, float]:
        """The loss of each head over a whole split, without contrast: no matter in which batches it was read."""
        truth = self.task.truth(split).to(split.device)
        losses = [self.head_loss(one, truth, masks[head].to(split.device)) for head, one in logits.items()]
        return dict(zip(logits, torch.stack(losses).tolist(), strict=True))


class LossMeans:
    """Means of what batches lose, by how many utterances count in each, summed on the device until `compute` asks."""

    def __init__(self) -> None:
        self.sums: list[Tensor] = []
        self.counts: list[Tensor] = []
        self.names = [field.name for field in fields(Losses)]

    def add(self, losses: Losses, count: Tensor) -> None:
        """Count the losses of one batch, in which so many utterances (a scalar) took part."""
        self.sums.append(torch.stack([getattr(losses, name).detach() for name in self.names]) * count)
        self.counts.append(count)

    def compute(self) -> dict[str, float]:
        """By name, `total` and the terms; the only wait for the device in an epoch."""
        means = torch.stack(self.sums).sum(0) / torch.stack(self.counts).sum()
        return dict(zip(self.names, means.tolist(), strict=True))


def scheduled_rate(params: TrainParams, done: int) -> float:
    """The learning rate of the epoch after so many of a stage, without its warm-up.

    >>> [scheduled_rate(TrainParams(schedule="step", step_epochs=2, step_factor=0.5), done) for done in range(5)]
    [0.002, 0.002, 0.001, 0.001, 0.0005]
    """
    if params.schedule == "step":
        return params.learning_rate * params.step_factor ** (done // params.step_epochs)
    if params.schedule == "cosine":
        return params.learning_rate * (1 + math.cos(math.pi * done / params.epochs)) / 2
    return params.learning_rate


class RunningMean:
    """Exponential means of weights over updates: as good as a rate that decays, whenever learning ends.

    The first ones are averaged over less, so that the random weights of the beginning are soon forgotten.

    Args:
        weights: that learn.
        keep: share of the mean before; 0: the mean is the weights themselves.
    """

    def __init__(self, weights: Sequence[nn.Parameter], keep: float) -> None:
        self.weights, self.keep = weights, keep
        self.means = [weight.detach().clone() for weight in weights] if keep else []

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Count the weights as they are after so many updates."""
        if self.keep:
            keep = min(self.keep, updates / (updates + EARLY))
            torch._foreach_lerp_(self.means, list(self.weights), 1 - keep)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The means are the weights while the context is open."""
        if not self.keep:
            yield
            return
        learning = [weight.detach().clone() for weight in self.weights]
        with torch.no_grad():
            torch._foreach_copy_(list(self.weights), self.means)
            yield
            torch._foreach_copy_(list(self.weights), learning)


class Training:
    """What the stages of one training run share; an epoch changes the weights, the shuffling and the history.

    Args:
        model: on the device that trains.
        train, validation: as stored, on that device.
        classes: labels are 0 .. classes - 1; for scores it does not matter.
    """

    def __init__(self, model: Any, train: Split, validation: Split, recipe: Recipe, seed: int, classes: int) -> None:
        self.model: nn.Module = model
        self.stages: list[Stage] = model.stages()
        self.train, self.validation, self.params = train, validation, recipe.train
        self.task = find_task(recipe.train.target, classes)
        self.loss = Criterion(recipe.loss, train, self.task)
        self.shuffle = torch.Generator().manual_seed(seed)  # gives the order of batches
        self.history: list[Epoch] = []  # of all stages so far

    def best_epochs(self, stage: Stage) -> dict[str, Epoch]:
        """The best epoch so far of each branch of a stage: the one whose weights are kept."""
        metric = self.params.metric if self.params.select == "metric" else None
        return {branch: best_epoch(self.history, metric, branch, stage.name) for branch in stage.branches}


class StageRun:
    """The training of one stage between two epochs; the stages before it are done."""

    def __init__(self, stage: Stage, training: Training) -> None:
        self.stage, self.training, self.params = stage, training, training.params
        self.train, self.validation = (
            encode_split(split, stage.encode) if stage.encode else split
            for split in (training.train, training.validation)
        )
        counted = training.task.counted(training.task.truth(self.validation))
        present = (getattr(self.validation, name).lengths > 0 for name in ("audio", "text"))
        self.masks = head_masks(counted, *present)  # of validation: who counts for a head
        if self.params.precision == "bfloat16":
            check_precision(stage.module, self.validation)
        self.weights = [weight for branch in stage.branches.values() for weight in branch.parameters()]
        self.optimizer = make_optimizer(self.weights, self.params)
        self.average = RunningMean(self.weights, self.params.average)
        self.rate = self.params.learning_rate  # of this epoch
        self.updates = 0
        self.best: dict[str, dict[str, Tensor]] = {}  # weights by branch

    @property
    def epochs(self) -> list[Epoch]:
        """Those of this stage."""
        return [epoch for epoch in self.training.history if epoch.stage == self.stage.name]

    @property
    def finished(self) -> bool:
        """Whether no branch has become better for long enough, or all epochs are over."""
        if not self.epochs:
            return False
        best = max(self.training.best_epochs(self.stage).values(), key=lambda epoch: epoch.number)
        epochs = self.training.history[-1].number - best.number
        enough = self.updates - best.updates >= self.params.patience_updates
        return len(self.epochs) >= self.params.epochs or (epochs >= self.params.patience and enough)

    def advance(self) -> Epoch:
        """One epoch of learning and its validation; branches that it makes better than ever keep their weights."""
        losses = self._learn()
        with self.average.in_place():
            epoch = self._validate(losses)
            self.training.history.append(epoch)
            for branch, best in self.training.best_epochs(self.stage).items():
                if best is epoch:
                    weights = self.stage.branches[branch].state_dict()
                    self.best[branch] = {name: weight.detach().clone() for name, weight in weights.items()}
        return epoch

    def select(self) -> None:
        """Give every branch the weights of its best epoch."""
        for branch, module in self.stage.branches.items():
            module.load_state_dict(self.best[branch])
        self.stage.module.eval()

    def step(self, batch: Batch) -> Losses:
        """Learn from one batch."""
        losses = self.training.loss(self.ask(batch), batch, self.stage.branches)
        self.optimizer.zero_grad()
        losses.total.backward()
        nn.utils.clip_grad_norm_(self.weights, self.params.gradient_clip)
        self.updates += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, self.updates / max(1, self.params.warmup_updates))
        self.optimizer.step()
        self.average.update(self.updates)
        return losses

    def ask(self, batch: Batch) -> Output:
        """What the stage makes of the batch, in the precision asked for."""
        reduced = self.params.precision == "bfloat16"
        with torch.autocast(batch.labels.device.type, torch.bfloat16, enabled=reduced):
            output = self.stage.module(batch)
        expected = len(batch.labels), self.training.task.outputs
        return check_output(output, expected, f"{type(self.training.model).__name__}, stage {self.stage.name}")

    def _learn(self) -> Mapping[str, float]:
        self.stage.module.train()
        self.rate = scheduled_rate(self.params, len(self.epochs))
        means = LossMeans()
        for batch in self.train.batches(self.params.conversations, self.training.shuffle):
            means.add(self.step(batch), self._count(batch))
        return self._finite(means)

    @torch.no_grad()
    def _validate(self, train_losses: Mapping[str, float]) -> Epoch:
        self.stage.module.eval()
        task, means, outputs = self.training.task, LossMeans(), []
        for batch in self.validation.batches(self.params.conversations):
            output = self.ask(batch)
            means.add(self.training.loss(output, batch, self.stage.branches), self._count(batch))
            outputs.append({head: logits for head, logits in output.heads().items() if "." not in head})
        logits = {head: torch.cat([batch[head] for batch in outputs]) for head in outputs[0]}
        losses = {**self._finite(means), **self.training.loss.of_split(logits, self.validation, self.masks)}
        answers = {head: task.answers(one) for head, one in logits.items()}
        fused = score_answers(task, self.validation, answers.pop("fused"))
        scores = {head: score_some(task, self.validation, one, self.masks[head]) for head, one in answers.items()}
        number = len(self.training.history) + 1
        return Epoch(number, train_losses, losses, fused, self.stage.name, scores, self.updates)

    def _count(self, batch: Batch) -> Tensor:
        task = self.training.task
        return task.counted(task.truth(batch)).sum()

    def _finite(self, means: LossMeans) -> Mapping[str, float]:
        losses = means.compute()
        if not math.isfinite(losses["total"]):
            raise TrainingError(
                f"epoch {len(self.training.history) + 1}: the loss is {losses['total']}; lower train.learning_rate "
                f"(now {self.params.learning_rate}), and check the features with pipeline-inspect --verify"
            )
        return losses

    def state(self) -> State:
        """All that this run needs to go on from here."""
        device, shuffle = self.train.device, self.training.shuffle
        random = {"torch": torch.get_rng_state(), "shuffle": shuffle.get_state()}
        if device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(device)
        return State(
            model=self.training.model.state_dict(),
            stage=self.stage.name,
            best=self.best,
            optimizer=self.optimizer.state_dict(),
            average=self.average.means,
            random=random,
            history=history_to_json(self.training.history),
        )

    def restore(self, state: State) -> None:
        """Go on from `state`, which is of this stage; the model and the history are as in it."""
        device = self.train.device
        self.optimizer.load_state_dict(state.optimizer)
        self.updates = self.epochs[-1].updates
        self.average.means = [mean.to(device) for mean in state.average]
        self.best = {
            branch: {name: weight.to(device) for name, weight in weights.items()}
            for branch, weights in state.best.items()
        }
        torch.set_rng_state(state.random["torch"])
        self.training.shuffle.set_state(state.random["shuffle"])
        if "cuda" in state.random:
            torch.cuda.set_rng_state(state.random["cuda"], device)


def check_output(output: Any, expected: tuple[int, int], who: str) -> Output:
    """`output` as it is; raises TrainingError unless it is an Output whose heads are (utterances, outputs)."""
    if not isinstance(output, Output):
        raise TrainingError(
            f"model {who}: forward returns {type(output).__name__}, expected a fusion.batch.Output; "
            "docs/adding-a-model.md shows one"
        )
    for head, logits in output.heads().items():
        if tuple(logits.shape) != expected:
            raise TrainingError(
                f"model {who}: the logits of head {head} have the shape {tuple(logits.shape)}, expected {expected}: "
                "(utterances, classes), a row for each utterance of the batch"
            )
    return output


def make_optimizer(weights: list[nn.Parameter], params: TrainParams) -> torch.optim.Optimizer:
    """The one that `params` names, over these weights."""
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[params.optimizer]
    # fused: one kernel for all weights instead of a loop over hundreds of small ones
    return optimizer(weights, lr=params.learning_rate, weight_decay=params.weight_decay, fused=True)
