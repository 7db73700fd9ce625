"""How sure a score is: percentile bootstrap intervals over whole conversations.

Turns of one conversation depend on each other, so the conversation is what is drawn, with replacement.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """Bounds of a confidence interval."""

    low: float
    high: float


def bootstrap(
    confusions: np.ndarray, metric: Callable[[np.ndarray], np.ndarray], resamples: int, seed: int
) -> np.ndarray:
    """`metric` on `resamples` draws of as many conversations as there are.

    The draws depend on `seed` and the number of conversations alone, so all models scored on one split, and all
    metrics, share them: their differences and means can be taken draw by draw.

    Args:
        confusions: (..., conversations, classes, classes), one confusion matrix a conversation; those of
            conversations without a label are left out of the draws.
        metric: from confusion matrices (..., classes, classes) to scores (...).

    Returns:
        scores of (..., resamples).
    """
    counted = confusions.sum((-2, -1)).reshape(-1, confusions.shape[-3]).any(0)
    confusions = confusions[..., counted, :, :]
    *leading, conversations, classes, _ = confusions.shape
    draws = np.random.default_rng(seed).multinomial(
        conversations, np.full(conversations, 1 / conversations), size=resamples
    )  # (resamples, conversations): how often each one was drawn
    flat = confusions.reshape(*leading, conversations, classes * classes)
    return metric((draws @ flat).reshape(*leading, resamples, classes, classes))


def percentile_interval(scores: np.ndarray, confidence: float) -> Interval:
    """The interval that holds the middle `confidence` of the bootstrap `scores` (resamples,)."""
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))
