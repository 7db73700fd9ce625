"""Scores from confusion matrices, against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from fusion.metrics import (
    METRICS,
    all_metrics,
    class_scores,
    confusion_matrix,
    conversation_confusions,
    majority_floor,
)

CLASSES = 4
labels = st.integers(0, CLASSES - 1)
pairs = st.lists(st.tuples(labels, labels), min_size=1, max_size=30)


@settings(deadline=None, max_examples=40)
@given(pairs)
def test_scores_are_those_of_scikit_learn(drawn: list[tuple[int, int]]) -> None:
    true, predicted = np.array(drawn).T
    found = all_metrics(confusion_matrix(true, predicted, CLASSES))
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
    scores = class_scores(confusion_matrix(true, predicted, CLASSES))
    expected = reference.precision_recall_fscore_support(true, predicted, labels=range(CLASSES), zero_division=0.0)
    for found, wanted in zip((scores.precision, scores.recall, scores.f1, scores.support), expected, strict=True):
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
    np.testing.assert_array_equal(confusions.sum(0), confusion_matrix(true, predicted, CLASSES))
    last = slice(offsets[-2], offsets[-1])
    np.testing.assert_array_equal(confusions[-1], confusion_matrix(true[last], predicted[last], CLASSES))


def test_leading_axes_pass_through_every_metric() -> None:
    confusions = np.random.default_rng(0).integers(0, 5, (2, 3, CLASSES, CLASSES))
    for metric in METRICS.values():
        expected = [[metric(one) for one in row] for row in confusions]
        np.testing.assert_allclose(metric(confusions), expected)


def test_the_floor_predicts_the_majority_of_train_not_of_what_it_is_scored_on() -> None:
    true, train = np.array([0, 0, 0, 1]), np.array([1, 1, 0, -1, -1, -1])
    assert majority_floor(true, train, 2)["accuracy"] == 0.25
    assert majority_floor(true, train, 2)["uar"] == 0.5


def test_scores_of_nothing_are_zero() -> None:
    assert set(all_metrics(np.zeros((CLASSES, CLASSES), int)).values()) == {0.0}
