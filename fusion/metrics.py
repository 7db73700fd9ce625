"""Scores of a classification, all computed from confusion matrices, and the majority-class floor beside them.

A confusion matrix (..., classes, classes) counts true classes in rows and predicted ones in columns; leading axes
(seeds, conversations, resamples) pass through, so that a thousand bootstrap resamples cost one pass over an array.
scikit-learn has these scores for one list of predictions at a time; the tests hold ours against its.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.store import UNLABELLED


@dataclass(frozen=True)
class ClassScores:
    """Scores of each class, arrays of (..., classes)."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray  # true utterances


def confusion_matrix(true: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts (classes, classes) of (true, predicted) pairs, both (utterances,); unlabelled utterances are left out."""
    labelled = true != UNLABELLED
    pairs = true[labelled] * classes + predicted[labelled]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


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
        precision=_ratio(hits, predicted),
        recall=_ratio(hits, support),
        f1=_ratio(2 * hits, support + predicted),
        support=support,
    )


def weighted_f1(confusion: np.ndarray) -> np.ndarray:
    """F1 of each class, weighted by its support."""
    scores = class_scores(confusion)
    return _ratio((scores.f1 * scores.support).sum(-1), scores.support.sum(-1))


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Mean F1 of the classes that were true or predicted somewhere."""
    seen = (confusion.sum(-1) + confusion.sum(-2)) > 0
    return _ratio(class_scores(confusion).f1.sum(-1), seen.sum(-1))


def accuracy(confusion: np.ndarray) -> np.ndarray:
    """Share of utterances whose class was predicted."""
    return _ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum((-2, -1)))


def uar(confusion: np.ndarray) -> np.ndarray:
    """Unweighted average recall, over the classes that were true somewhere."""
    scores = class_scores(confusion)
    return _ratio(scores.recall.sum(-1), (scores.support > 0).sum(-1))


METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "weighted_f1": weighted_f1,
    "macro_f1": macro_f1,
    "accuracy": accuracy,
    "uar": uar,
}


def all_metrics(confusion: np.ndarray) -> Mapping[str, float]:
    """Every metric of one confusion matrix (classes, classes), by name."""
    return {name: float(metric(confusion)) for name, metric in METRICS.items()}


def majority_floor(true: np.ndarray, train: np.ndarray, classes: int) -> Mapping[str, float]:
    """Every metric of always predicting the most frequent class of the labels `train`, on the labels `true`."""
    majority = np.bincount(train[train != UNLABELLED], minlength=classes).argmax()
    return all_metrics(confusion_matrix(true, np.full_like(true, majority), classes))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) > 0)
