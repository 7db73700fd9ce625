"""What training writes down of every epoch, and which epoch is the best: its weights are kept."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fusion.objective.metrics import METRICS

LOSS_SHARE = 0.1  # of a head's validation loss, in the choice of its best epoch


@dataclass(frozen=True)
class Epoch:
    """Means over one epoch; the losses have `total` and the parts that the loss names."""

    number: int  # from 1, over all stages
    train: Mapping[str, float]  # losses, while learning (with dropout)
    validation: Mapping[str, float]  # losses, afterwards
    scores: Mapping[str, float]  # of the fused head on validation, by metric
    stage: str = "fusion"
    heads: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # the same of the other heads
    updates: int = 0  # of the weights, since the stage began

    def score(self, head: str, metric: str) -> float:
        """The validation score of one head."""
        return (self.scores if head == "fused" else self.heads[head])[metric]


def best_epoch(history: Sequence[Epoch], metric: str, head: str = "fused", stage: str | None = None) -> Epoch:
    """The epoch (of `stage`, if given) with the best validation `metric` of `head`; the first of equals.

    A tenth of the head's validation loss counts against it (`LOSS_SHARE`): a metric of few utterances wavers.
    """
    epochs = [epoch for epoch in history if stage in (None, epoch.stage)]
    sign = -1 if METRICS[metric].lower_is_better else 1
    return max(epochs, key=lambda epoch: sign * epoch.score(head, metric) - LOSS_SHARE * epoch.validation.get(head, 0))


def history_to_json(history: Sequence[Epoch]) -> list[dict[str, Any]]:
    """Plain values; the inverse of `history_from_json`."""
    return [asdict(epoch) for epoch in history]


def history_from_json(content: Sequence[Mapping[str, Any]]) -> list[Epoch]:
    """Raises TypeError or KeyError when `content` is not what `history_to_json` made."""
    return [Epoch(**epoch) for epoch in content]
