"""What a model learns to predict of an utterance: its label or its score. All that differs between the two is here.

truth      what the feature file says, (utterances,): labels int64, -1 = none; or scores float32, nan = none
outputs    what a head of a model returns, (utterances, outputs), called `logits` in `fusion.batch.Output`
answers    what is made of them, float64: probabilities (utterances, classes), or scores (utterances, 1)
tallies    what is counted of truth and answers, (conversations, sums), from which metrics are computed
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
import scipy  # see `fusion.objective.statistics`
import torch
from torch import Tensor

from fusion.objective.calibration import Calibration, fit_temperature, measure_calibration
from fusion.objective.losses import HeadLoss, LabelLoss, absolute_error, cross_entropy, focal_loss, label_weights
from fusion.objective.metrics import (
    LABEL_METRICS,
    SCORE_METRICS,
    ClassScores,
    Metric,
    Target,
    as_confusion,
    class_scores,
    compute_all,
    conversation_confusions,
    conversation_sums,
)
from pipeline.store import UNLABELLED

DRAWN = 200  # scores at most that stand for those of train

Truth = TypeVar("Truth", Tensor, np.ndarray)


@dataclass(frozen=True)
class LabelTask:
    """Classification: labels are 0 .. classes - 1."""

    classes: int
    target: ClassVar[Target] = "label"
    metrics: ClassVar[Mapping[str, Metric]] = LABEL_METRICS
    counted_are: ClassVar[str] = "labelled utterances"
    floor_is: ClassVar[str] = "the majority label of train"
    chance_is: ClassVar[str] = "labels drawn by their shares in train"

    @property
    def outputs(self) -> int:
        """Of each head."""
        return self.classes

    def truth(self, given: Any) -> Any:
        """Of a batch, a split or the table of utterances."""
        return given.labels

    def counted(self, truth: Truth) -> Truth:
        """(utterances,) boolean: which take part in losses and scores."""
        return truth != UNLABELLED

    def head_loss(self, truth: Tensor, loss: LabelLoss, device: torch.device) -> HeadLoss:
        """Cross-entropy or focal loss; `truth` of train gives the weights of the classes where it is to be balanced."""
        weights = label_weights(truth, self.classes).to(device) if loss.balanced else None
        kind = partial(focal_loss, gamma=loss.gamma) if loss.gamma else cross_entropy
        return partial(kind, class_weights=weights, label_smoothing=loss.smoothing)

    def answers(self, outputs: Tensor) -> np.ndarray:
        """Probabilities."""
        return outputs.double().softmax(-1).cpu().numpy()

    def tally(self, truth: np.ndarray, answers: np.ndarray, conversations: np.ndarray) -> np.ndarray:
        """Confusions of the most probable class, (conversations, classes * classes)."""
        counts = conversation_confusions(truth, answers.argmax(-1), conversations, self.classes)
        return counts.reshape(len(counts), -1)

    def calibration(self, truth: np.ndarray, answers: np.ndarray, temperature: float | None = None) -> Calibration:
        """Of answers for these utterances without a temperature; None: the one that fits them best."""
        counted = self.counted(truth)
        probabilities, labels = answers[counted], truth[counted]
        return measure_calibration(probabilities, labels, temperature or fit_temperature(probabilities, labels))

    def by_class(self, tally: np.ndarray) -> ClassScores:
        """Scores of each class, of one tally."""
        return class_scores(as_confusion(tally))

    def constant(self, truth: np.ndarray) -> np.ndarray:
        """The answer (classes,) that suits `truth` best, whatever is asked: its most frequent label."""
        return np.eye(self.classes)[np.bincount(truth[self.counted(truth)], minlength=self.classes).argmax()]

    def constant_loss(self, truth: np.ndarray, loss: LabelLoss) -> float:
        """The smallest `head_loss` of always giving the same probabilities: the shares of labels, as it weighs them."""
        labels = truth[self.counted(truth)]
        counts = np.bincount(labels, minlength=self.classes).astype(float)
        weights = np.ones(self.classes)
        if loss.balanced:
            weights = label_weights(torch.as_tensor(labels), self.classes).numpy()
        smoothed = (1 - loss.smoothing) * counts + loss.smoothing * counts.sum() / self.classes
        wanted = weights * smoothed / (weights * counts).sum()  # of each class; they need not sum to 1
        shares = wanted / wanted.sum()
        if not loss.gamma:
            return float(wanted.sum() * scipy.special.entr(shares).sum())

        def focal(logits: np.ndarray) -> float:
            log_p = scipy.special.log_softmax(logits)
            return float(-(wanted * (1 - np.exp(log_p)) ** loss.gamma * log_p).sum())

        return float(scipy.optimize.minimize(focal, np.log(shares + 1e-9)).fun)

    def nearly_constant(self, truth: np.ndarray, answers: np.ndarray) -> bool:
        """Whether all labels but one are predicted less than a tenth as often as they are true."""
        counted = self.counted(truth)
        predicted = np.bincount(answers[counted].argmax(-1), minlength=self.classes) / counted.sum()
        return bool(1 - predicted.max() < 0.1 * (1 - np.mean(truth[counted] == predicted.argmax())))

    def chance(self, truth: np.ndarray, train: np.ndarray) -> np.ndarray:
        """The expected tally (sums,) of drawing each label by its share in `train`."""
        counts, drawn = (np.bincount(one[self.counted(one)], minlength=self.classes) for one in (truth, train))
        return np.outer(counts, drawn / max(drawn.sum(), 1)).ravel()


@dataclass(frozen=True)
class ScoreTask:
    """Regression: the score itself, which labels have no part in."""

    target: ClassVar[Target] = "score"
    outputs: ClassVar[int] = 1
    metrics: ClassVar[Mapping[str, Metric]] = SCORE_METRICS
    counted_are: ClassVar[str] = "utterances with a score"
    floor_is: ClassVar[str] = "the median score of train"
    chance_is: ClassVar[str] = "scores drawn from those of train"

    def truth(self, given: Any) -> Any:
        """Of a batch, a split or the table of utterances."""
        return given.scores

    def counted(self, truth: Truth) -> Truth:
        """(utterances,) boolean: which take part in losses and scores."""
        return truth == truth  # nan is not itself, in torch as in numpy

    def head_loss(self, truth: Tensor, loss: LabelLoss, device: torch.device) -> HeadLoss:
        """Mean absolute error in standard deviations of `truth` of train, whatever the loss of labels."""
        return partial(absolute_error, unit=score_scale(truth.numpy())[1])

    def answers(self, outputs: Tensor) -> np.ndarray:
        """The scores as they are."""
        return outputs.double().cpu().numpy()

    def tally(self, truth: np.ndarray, answers: np.ndarray, conversations: np.ndarray) -> np.ndarray:
        """Sums (conversations, sums)."""
        return conversation_sums(truth, answers[:, 0], conversations)

    def calibration(self, truth: np.ndarray, answers: np.ndarray, temperature: float | None = None) -> None:
        """There are no probabilities."""

    def by_class(self, tally: np.ndarray) -> None:
        """There are no classes."""

    def constant(self, truth: np.ndarray) -> np.ndarray:
        """The answer (1,) of the smallest mean absolute error, whatever is asked: the median."""
        return np.median(truth[self.counted(truth)].astype(float), keepdims=True)

    def constant_loss(self, truth: np.ndarray, loss: LabelLoss) -> float:
        """The smallest `head_loss` of always giving the same score, which is the median."""
        return float(np.abs(truth[self.counted(truth)] - self.constant(truth)).mean() / score_scale(truth)[1])

    def nearly_constant(self, truth: np.ndarray, answers: np.ndarray) -> bool:
        """Whether scores differ less than a tenth as much as they do in truth."""
        counted = self.counted(truth)
        return bool(answers[counted, 0].std() < 0.1 * truth[counted].std())

    def chance(self, truth: np.ndarray, train: np.ndarray) -> np.ndarray:
        """The tally (sums,) of giving every utterance each score of `train` in turn, or `DRAWN` of them, evenly."""
        known = train[self.counted(train)].astype(float) if self.counted(train).any() else np.zeros(1)
        count = min(len(known), DRAWN)
        drawn = np.quantile(known, (np.arange(count) + 0.5) / count, method="inverted_cdf")
        true = truth[self.counted(truth)].astype(float)
        return conversation_sums(np.repeat(true, count), np.tile(drawn, len(true)), np.array([0, len(true) * count]))[0]


def score_scale(truth: np.ndarray) -> tuple[float, float]:
    """The median and the standard deviation of the scores `truth` (utterances,), nan = none; 1 where all are alike."""
    known = truth[~np.isnan(truth)].astype(float)
    return float(np.median(known)), float(known.std()) or 1.0


Task = LabelTask | ScoreTask


def find_task(target: Target, classes: int) -> Task:
    """The task of learning `target`, in data with so many classes."""
    return LabelTask(classes) if target == "label" else ScoreTask()


def floor_scores(task: Task, truth: np.ndarray, train: np.ndarray) -> Mapping[str, float]:
    """Every metric on `truth` of the one answer that suits the truth `train` best: looking at neither features."""
    answers = np.tile(task.constant(train), (len(truth), 1))
    return compute_all(task.metrics, task.tally(truth, answers, np.array([0, len(truth)]))[0])


def chance_scores(task: Task, truth: np.ndarray, train: np.ndarray) -> Mapping[str, float]:
    """Every metric on `truth` of answers drawn at random as the truth `train` is distributed, of expected counts."""
    return compute_all(task.metrics, task.chance(truth, train))
