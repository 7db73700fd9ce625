"""What training writes down of every epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Epoch:
    """Means over one epoch; the losses have `total` and the parts that the loss names."""

    number: int  # from 1
    train: Mapping[str, float]  # losses, while learning (with dropout)
    validation: Mapping[str, float]  # losses, afterwards
    scores: Mapping[str, float]  # of validation, by metric


def best_epoch(history: Sequence[Epoch], metric: str) -> Epoch:
    """The epoch with the highest validation `metric`; the first of equals."""
    return max(history, key=lambda epoch: epoch.scores[metric])


def history_to_json(history: Sequence[Epoch]) -> list[dict[str, Any]]:
    """Plain values; the inverse of `history_from_json`."""
    return [asdict(epoch) for epoch in history]


def history_from_json(content: Sequence[Mapping[str, Any]]) -> list[Epoch]:
    """Raises TypeError or KeyError when `content` is not what `history_to_json` made."""
    return [Epoch(**epoch) for epoch in content]
