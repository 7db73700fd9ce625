"""Bootstrap intervals over conversations."""

import numpy as np
import pytest

from fusion.metrics import accuracy, confusion_matrix, conversation_confusions, weighted_f1
from fusion.statistics import bootstrap, percentile_interval

CLASSES = 3


def made_confusions(conversations: int, turns: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    true = random.integers(0, CLASSES, conversations * turns)
    predicted = np.where(random.random(true.shape) < 0.6, true, random.integers(0, CLASSES, true.shape))
    return conversation_confusions(true, predicted, np.arange(0, len(true) + 1, turns), CLASSES)


def test_a_draw_is_the_score_of_the_drawn_conversations() -> None:
    """Against a loop that repeats each conversation as often as it was drawn."""
    confusions = made_confusions(7, 4)
    draws = np.random.default_rng(5).multinomial(7, np.full(7, 1 / 7), size=20)
    expected = [weighted_f1(sum(one * times for one, times in zip(confusions, draw, strict=True))) for draw in draws]
    np.testing.assert_allclose(bootstrap(confusions, weighted_f1, resamples=20, seed=5), expected)


def test_every_seed_of_a_model_is_scored_on_the_same_draws() -> None:
    one, other = made_confusions(6, 3, seed=1), made_confusions(6, 3, seed=2)
    together = bootstrap(np.stack([one, other]), accuracy, resamples=30, seed=0)
    np.testing.assert_array_equal(together[0], bootstrap(one, accuracy, resamples=30, seed=0))
    np.testing.assert_array_equal(together[1], bootstrap(other, accuracy, resamples=30, seed=0))


def test_turns_of_a_conversation_are_drawn_together() -> None:
    """Conversations that are right or wrong as a whole: drawing single turns would give a narrower interval."""
    right, wrong = np.diag([10, 0]), np.array([[0, 10], [0, 0]])
    scores = bootstrap(np.stack([right, wrong] * 5), accuracy, resamples=2000, seed=0)
    assert set(np.round(scores * 10) / 10) == set(scores)
    assert scores.std() == pytest.approx(np.sqrt(0.25 / 10), rel=0.1)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    truth = 0.6 + 0.4 / CLASSES
    intervals = [
        percentile_interval(bootstrap(made_confusions(60, 3, seed), accuracy, resamples=300, seed=seed), 0.9)
        for seed in range(300)
    ]
    held = np.mean([one.low <= truth <= one.high for one in intervals])
    assert 0.85 <= held <= 0.94


def test_an_interval_of_a_perfect_model_has_no_width() -> None:
    true = np.array([0, 1, 2, 2, 1, 0])
    confusions = conversation_confusions(true, true, np.array([0, 2, 4, 6]), CLASSES)
    interval = percentile_interval(bootstrap(confusions, weighted_f1, resamples=50, seed=0), 0.95)
    assert (interval.low, interval.high) == (1.0, 1.0)


def test_more_confidence_is_a_wider_interval() -> None:
    scores = bootstrap(made_confusions(20, 5), weighted_f1, resamples=500, seed=0)
    narrow, wide = percentile_interval(scores, 0.5), percentile_interval(scores, 0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_conversations_without_a_label_are_not_drawn() -> None:
    confusions = made_confusions(5, 3)
    silent = np.zeros((2, CLASSES, CLASSES), confusions.dtype)
    np.testing.assert_array_equal(
        bootstrap(np.concatenate([silent, confusions]), weighted_f1, resamples=40, seed=1),
        bootstrap(confusions, weighted_f1, resamples=40, seed=1),
    )


def test_the_same_seed_gives_the_same_draws() -> None:
    confusions = made_confusions(9, 3)
    first, again, other = (bootstrap(confusions, weighted_f1, resamples=40, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_one_conversation_is_always_itself() -> None:
    confusion = confusion_matrix(np.array([0, 1, 1]), np.array([0, 1, 0]), CLASSES)
    np.testing.assert_allclose(bootstrap(confusion[None], accuracy, resamples=10, seed=0), 2 / 3)
