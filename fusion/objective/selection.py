"""What training writes down of every epoch, which epoch is the best, whose weights are kept, and whether it learned."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fusion.objective.losses import LabelLoss
from fusion.objective.metrics import METRICS
from fusion.objective.tasks import Task, chance_scores, floor_scores

NO_LOWER = 0.99  # of a loss: chance moves that of an epoch by less than the rest


@dataclass(frozen=True)
class Sought:
    """What a run was asked for, as far as it shows whether it learned."""

    metric: str
    loss: LabelLoss


LOSS_SHARE = 0.1  # of a head's validation loss, in the choice of its best epoch


@dataclass(frozen=True)
class Epoch:
    """Means over one epoch; the losses have `total` and the parts that the loss names.

    On validation those of `fused`, `audio` and `text` are over the whole split. Contrasts are among the utterances of a
    batch, so they and `total` are means over batches there, too.
    """

    number: int  # from 1, over all stages
    train: Mapping[str, float]  # losses, while learning (with dropout)
    validation: Mapping[str, float]  # losses, afterwards
    scores: Mapping[str, float]  # of the fused head on validation, by metric
    stage: str = "fusion"
    # the same of heads `audio` and `text`, over the utterances that have this modality
    heads: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    updates: int = 0  # of the weights, since the stage began

    def score(self, head: str, metric: str) -> float:
        """The validation score of one head."""
        return (self.scores if head == "fused" else self.heads[head])[metric]


def best_epoch(history: Sequence[Epoch], metric: str | None, head: str = "fused", stage: str | None = None) -> Epoch:
    """The epoch (of `stage`, if given) with the best validation `metric` of `head`; the first of equals.

    A tenth of the head's validation loss, without contrast, counts against it (`LOSS_SHARE`): a metric of few
    utterances wavers. Where `metric` is None, that loss alone counts.
    """
    epochs = [epoch for epoch in history if stage in (None, epoch.stage)]
    if metric is None:
        return min(epochs, key=lambda epoch: epoch.validation[head])
    sign = -1 if METRICS[metric].lower_is_better else 1
    return max(epochs, key=lambda epoch: sign * epoch.score(head, metric) - LOSS_SHARE * epoch.validation.get(head, 0))


def signs_of_no_learning(
    history: Sequence[Epoch], task: Task, train: np.ndarray, known: np.ndarray, answers: np.ndarray, recipe: Sought
) -> list[str]:
    """What shows that a run has not learned, in words; none where nothing does.

    Args:
        history: of the run.
        train, known: truth of train and of validation.
        answers: of the trained model on validation.
        recipe: what it sought.
    """
    signs = []
    losses = [epoch.train["fused"] for epoch in history if epoch.stage == history[-1].stage]
    constant = task.constant_loss(train, recipe.loss)
    if min(losses) >= NO_LOWER * constant > 0:
        what = "the shares of the labels" if task.target == "label" else "the median score"
        lowest = f"{min(losses):.3f}, without the linear path"
        signs.append(
            f"its training loss ({lowest}) never fell clearly below that of always giving {what} ({constant:.3f})"
        )
    if len(np.unique(known[task.counted(known)])) == 1:
        what = "label" if task.target == "label" else "score"
        return [*signs, f"validation has one {what} alone, by which no epoch or weight could be chosen"]
    if task.nearly_constant(known, answers):
        signs.append("its predictions on validation are nearly constant")
    metric = METRICS[recipe.metric]
    score = float(metric(task.tally(known, answers, np.array([0, len(known)]))[0]))
    floors = [float(scores(task, known, train)[recipe.metric]) for scores in (floor_scores, chance_scores)]
    best = (min if metric.lower_is_better else max)(floors)
    if score >= best if metric.lower_is_better else score <= best:
        signs.append(f"its validation {recipe.metric} of {score:.3f} is not better than the floor, {best:.3f}")
    return signs


def history_to_json(history: Sequence[Epoch]) -> list[dict[str, Any]]:
    """Plain values; the inverse of `history_from_json`."""
    return [asdict(epoch) for epoch in history]


def history_from_json(content: Sequence[Mapping[str, Any]]) -> list[Epoch]:
    """Raises TypeError, ValueError or AttributeError when `content` is not what `history_to_json` made."""
    history = [Epoch(**epoch) for epoch in content]
    groups = [group for one in history for group in (one.train, one.validation, one.scores, *one.heads.values())]
    if not history or any(type(value) not in (int, float) for group in groups for value in group.values()):
        raise ValueError("a history is of one epoch or more, and of numbers")
    return history
