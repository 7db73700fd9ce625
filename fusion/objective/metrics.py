"""What a metric is: those of a classification, computed from confusion matrices, and those of a regression.

A metric is computed from tallies (..., sums): what a conversation adds to it, so that the tallies of conversations add
up to that of a split. Leading axes (seeds, conversations, resamples) pass through, and a thousand bootstrap resamples
cost one pass over an array. The tally of a classification is a confusion matrix, row by row: true classes in rows,
predicted ones in columns. scikit-learn has these scores for one list of predictions at a time; the tests hold ours
against its.

Those of a regression are of opinions on a scale around zero, computed from sums over utterances.
Beside mean absolute error and correlation there are those of classes that true and predicted scores fall into:

    accuracy_7                  seven classes: both rounded to whole numbers, a half to the even one, cut at -3 and 3
    ..._2                       two classes, convention "non-negative": score >= 0 against score < 0, of all utterances
    ..._2_nonzero               two classes, convention "positive": score > 0 against the rest, without the utterances
                                whose true score is 0

Papers report either convention of the two, often without saying which; they differ by points.

A tally is SUMS numbers, which add up over utterances and conversations (see `fusion.objective.metrics`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

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


HIGHEST = 3  # class; the lowest is -3
ROUNDING = 1e-12  # share of a sum of squares below which what varies is taken for rounding

# a tally: utterances, absolute errors, true and predicted scores, their squares and products, hits of seven classes,
COUNT, ERRORS, TRUE, PREDICTED, TRUE_SQUARES, PREDICTED_SQUARES, PRODUCTS, HITS = range(8)
NON_NEGATIVE, POSITIVE = slice(8, 12), slice(12, 16)  # and the confusion matrices of two classes
SUMS = 16


def to_seven(scores: np.ndarray) -> np.ndarray:
    """The class of each score, int64 from -3 to 3."""
    return np.clip(np.rint(scores), -HIGHEST, HIGHEST).astype(np.int64)


def conversation_sums(true: np.ndarray, predicted: np.ndarray, conversations: np.ndarray) -> np.ndarray:
    """Tallies (conversations, SUMS) of scores (utterances,), nan = none; `conversations` are a split's offsets."""
    counted = ~np.isnan(true)
    t, p = true.astype(float)[counted], predicted.astype(float)[counted]
    columns = [np.ones_like(t), np.abs(t - p), t, p, t * t, p * p, t * p, to_seven(t) == to_seven(p)]
    columns += _confusion_cells(t >= 0, p >= 0, np.ones_like(t, bool))
    columns += _confusion_cells(t > 0, p > 0, t != 0)
    turns = np.diff(conversations)
    conversation = np.repeat(np.arange(len(turns)), turns)[counted]
    return np.stack([np.bincount(conversation, column, len(turns)) for column in columns], axis=-1)


def _confusion_cells(true: np.ndarray, predicted: np.ndarray, counted: np.ndarray) -> list[np.ndarray]:
    """Which utterances are in each cell of the matrix of two classes, row by row."""
    return [
        counted & (true == row) & (predicted == column)
        for row, column in [(False, False), (False, True), (True, False), (True, True)]
    ]


def mean_absolute_error(tallies: np.ndarray) -> np.ndarray:
    """Mean distance between true and predicted score."""
    return ratio(tallies[..., ERRORS], tallies[..., COUNT])


def correlation(tallies: np.ndarray) -> np.ndarray:
    """Pearson's correlation of true and predicted scores, -1 to 1.

    0 where it is not defined: fewer than two utterances, or scores that are all alike, but for rounding.
    """
    count, t, p = tallies[..., COUNT], tallies[..., TRUE], tallies[..., PREDICTED]
    true_spread = _spread(count, t, tallies[..., TRUE_SQUARES])
    predicted_spread = _spread(count, p, tallies[..., PREDICTED_SQUARES])
    shared = count * tallies[..., PRODUCTS] - t * p
    return np.clip(ratio(shared, np.sqrt(true_spread * predicted_spread)), -1, 1)


def concordance(tallies: np.ndarray) -> np.ndarray:
    """Lin's concordance correlation coefficient (1989), -1 to 1: correlation that distance from the truth lowers."""
    count, t, p = tallies[..., COUNT], tallies[..., TRUE], tallies[..., PREDICTED]
    true, predicted = _spread(count, t, tallies[..., TRUE_SQUARES]), _spread(count, p, tallies[..., PREDICTED_SQUARES])
    shared = np.where(true * predicted > 0, count * tallies[..., PRODUCTS] - t * p, 0.0)  # else it is rounding alone
    return ratio(2 * shared, true + predicted + np.square(t - p))


def _spread(count: np.ndarray, total: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """count^2 times the variance, 0 where it is lost in rounding."""
    spread = count * squares - total * total
    return np.where(spread > ROUNDING * count * squares, spread, 0.0)


SCORE_METRICS: dict[str, Metric] = {
    "mae": Metric("MAE", mean_absolute_error, bounds=(0.0, np.inf), lower_is_better=True),
    "correlation": Metric("correlation", correlation, bounds=(-1.0, 1.0)),
    "ccc": Metric("CCC", concordance, bounds=(-1.0, 1.0)),
    "accuracy_2": Metric("acc-2 (>= 0)", lambda tallies: accuracy(as_confusion(tallies[..., NON_NEGATIVE]))),
    "accuracy_2_nonzero": Metric("acc-2 (> 0)", lambda tallies: accuracy(as_confusion(tallies[..., POSITIVE]))),
    "accuracy_7": Metric("acc-7", lambda tallies: ratio(tallies[..., HITS], tallies[..., COUNT])),
    "weighted_f1_2": Metric("F1 (>= 0)", lambda tallies: weighted_f1(as_confusion(tallies[..., NON_NEGATIVE]))),
    "weighted_f1_2_nonzero": Metric("F1 (> 0)", lambda tallies: weighted_f1(as_confusion(tallies[..., POSITIVE]))),
}


Target = Literal["label", "score"]


METRICS_OF: dict[Target, Mapping[str, Metric]] = {"label": LABEL_METRICS, "score": SCORE_METRICS}  # the first leads
METRICS: dict[str, Metric] = LABEL_METRICS | SCORE_METRICS
