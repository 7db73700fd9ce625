"""What a metric is, and those of a classification, all computed from confusion matrices.

A metric is computed from tallies (..., sums): what a conversation adds to it, so that the tallies of conversations add
up to that of a split. Leading axes (seeds, conversations, resamples) pass through, and a thousand bootstrap resamples
cost one pass over an array. The tally of a classification is a confusion matrix, row by row: true classes in rows,
predicted ones in columns. scikit-learn has these scores for one list of predictions at a time; the tests hold ours
against its.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.store import UNLABELLED


@dataclass(frozen=True)
class Metric:
    """One number for a tally: called with tallies (..., sums), it returns (...)."""

    title: str  # in tables
    compute: Callable[[np.ndarray], np.ndarray]
    bounds: tuple[float, float] = (0.0, 1.0)  # of the numbers that it can give
    lower_is_better: bool = False

    def __call__(self, tallies: np.ndarray) -> np.ndarray:
        return self.compute(tallies)


def compute_all(metrics: Mapping[str, Metric], tally: np.ndarray) -> Mapping[str, float]:
    """Every one of `metrics` of one tally (sums,), by name."""
    return {name: float(metric(tally)) for name, metric in metrics.items()}


@dataclass(frozen=True)
class ClassScores:
    """Scores of each class, arrays of (..., classes)."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray  # true utterances


def conversation_confusions(
    true: np.ndarray, predicted: np.ndarray, conversations: np.ndarray, classes: int
) -> np.ndarray:
    """Counts (conversations, classes, classes), one matrix a conversation; `conversations` are a split's offsets."""
    turns = np.diff(conversations)
    conversation = np.repeat(np.arange(len(turns)), turns)
    labelled = true != UNLABELLED
    cells = (conversation * classes + true)[labelled] * classes + predicted[labelled]
    return np.bincount(cells, minlength=len(turns) * classes * classes).reshape(-1, classes, classes)


def class_scores(confusion: np.ndarray) -> ClassScores:
    """Precision, recall, F1 and support of each class; 0 where a class was never predicted or never true."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    support = confusion.sum(-1)
    predicted = confusion.sum(-2)
    return ClassScores(
        precision=ratio(hits, predicted),
        recall=ratio(hits, support),
        f1=ratio(2 * hits, support + predicted),
        support=support,
    )


def weighted_f1(confusion: np.ndarray) -> np.ndarray:
    """F1 of each class, weighted by its support."""
    scores = class_scores(confusion)
    return ratio((scores.f1 * scores.support).sum(-1), scores.support.sum(-1))


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Mean F1 of the classes that were true or predicted somewhere."""
    seen = (confusion.sum(-1) + confusion.sum(-2)) > 0
    return ratio(class_scores(confusion).f1.sum(-1), seen.sum(-1))


def accuracy(confusion: np.ndarray) -> np.ndarray:
    """Share of utterances whose class was predicted."""
    return ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum((-2, -1)))


def uar(confusion: np.ndarray) -> np.ndarray:
    """Unweighted average recall, over the classes that were true somewhere."""
    scores = class_scores(confusion)
    return ratio(scores.recall.sum(-1), (scores.support > 0).sum(-1))


def as_confusion(tallies: np.ndarray) -> np.ndarray:
    """Tallies (..., classes * classes) as confusion matrices (..., classes, classes)."""
    classes = math.isqrt(tallies.shape[-1])
    return tallies.reshape(*tallies.shape[:-1], classes, classes)


LABEL_METRICS: dict[str, Metric] = {
    "weighted_f1": Metric("weighted F1", lambda tallies: weighted_f1(as_confusion(tallies))),
    "macro_f1": Metric("macro F1", lambda tallies: macro_f1(as_confusion(tallies))),
    "accuracy": Metric("accuracy", lambda tallies: accuracy(as_confusion(tallies))),
    "uar": Metric("UAR", lambda tallies: uar(as_confusion(tallies))),
}


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where there is no whole."""
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) > 0)
