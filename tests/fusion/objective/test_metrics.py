"""Scores from confusion matrices, against scikit-learn."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from fusion.objective import LABEL_METRICS, class_scores, compute_all, conversation_confusions, floor_scores
from fusion.objective.tasks import LabelTask

CLASSES = 4
labels = st.integers(0, CLASSES - 1)


def confusion_matrix(true: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Of one conversation."""
    return conversation_confusions(true, predicted, np.array([0, len(true)]), classes)[0]


def scores(confusion: np.ndarray) -> Mapping[str, float]:
    return compute_all(LABEL_METRICS, confusion.ravel())


pairs = st.lists(st.tuples(labels, labels), min_size=1, max_size=30)


@settings(deadline=None, max_examples=40)
@given(pairs)
def test_scores_are_those_of_scikit_learn(drawn: list[tuple[int, int]]) -> None:
    true, predicted = np.array(drawn).T
    found = scores(confusion_matrix(true, predicted, CLASSES))
    options = {"zero_division": 0.0}
    assert found == pytest.approx(
        {
            "weighted_f1": reference.f1_score(true, predicted, average="weighted", **options),
            "macro_f1": reference.f1_score(true, predicted, average="macro", **options),
            "accuracy": reference.accuracy_score(true, predicted),
            "uar": reference.recall_score(true, predicted, average="macro", labels=np.unique(true), **options),
        }
    )


@settings(deadline=None, max_examples=40)
@given(pairs)
def test_class_scores_are_those_of_scikit_learn(drawn: list[tuple[int, int]]) -> None:
    true, predicted = np.array(drawn).T
    by_class = class_scores(confusion_matrix(true, predicted, CLASSES))
    expected = reference.precision_recall_fscore_support(true, predicted, labels=range(CLASSES), zero_division=0.0)
    for found, wanted in zip(
        (by_class.precision, by_class.recall, by_class.f1, by_class.support), expected, strict=True
    ):
        np.testing.assert_allclose(found, wanted)


@settings(deadline=None, max_examples=40)
@given(pairs, st.integers(0, 10))
def test_unlabelled_utterances_are_left_out(drawn: list[tuple[int, int]], unlabelled: int) -> None:
    true, predicted = np.array(drawn).T
    more = np.concatenate([np.full(unlabelled, -1), true]), np.concatenate([np.zeros(unlabelled, int), predicted])
    np.testing.assert_array_equal(confusion_matrix(*more, CLASSES), confusion_matrix(true, predicted, CLASSES))


@settings(deadline=None, max_examples=40)
@given(st.lists(pairs, min_size=1, max_size=4))
def test_conversations_add_up(conversations: list[list[tuple[int, int]]]) -> None:
    true, predicted = np.array([pair for pairs in conversations for pair in pairs]).T
    true[0] = -1
    offsets = np.cumsum([0, *map(len, conversations)])
    confusions = conversation_confusions(true, predicted, offsets, CLASSES)
    expected = np.zeros((CLASSES, CLASSES), int)
    np.add.at(expected, (true[true >= 0], predicted[true >= 0]), 1)
    np.testing.assert_array_equal(confusions.sum(0), expected)
    last = slice(offsets[-2], offsets[-1])
    np.testing.assert_array_equal(confusions[-1], confusion_matrix(true[last], predicted[last], CLASSES))


def test_leading_axes_pass_through_every_metric() -> None:
    confusions = np.random.default_rng(0).integers(0, 5, (2, 3, CLASSES, CLASSES))
    for metric in LABEL_METRICS.values():
        expected = [[metric(one.ravel()) for one in row] for row in confusions]
        np.testing.assert_allclose(metric(confusions.reshape(2, 3, -1)), expected)


def test_the_floor_predicts_the_majority_of_train_not_of_what_it_is_scored_on() -> None:
    true, train = np.array([0, 0, 0, 1]), np.array([1, 1, 0, -1, -1, -1])
    assert floor_scores(LabelTask(2), true, train)["accuracy"] == 0.25
    assert floor_scores(LabelTask(2), true, train)["uar"] == 0.5


def test_scores_of_nothing_are_zero() -> None:
    assert set(scores(np.zeros((CLASSES, CLASSES), int)).values()) == {0.0}
