"""Scores of a regression, against their definitions in plain loops, scipy and scikit-learn."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from fusion.objective import bootstrap, compute_all, floor_scores, to_seven
from fusion.objective.metrics import SCORE_METRICS, SUMS, conversation_sums
from fusion.objective.tasks import ScoreTask

# true scores are means of five opinions from -3 to 3, so zero and steps of 0.2 are common; predictions are anything
true_scores = st.integers(-15, 15).map(lambda fifths: fifths / 5)
predicted_scores = st.one_of(true_scores, st.floats(-5, 5, width=32))
pairs = st.lists(st.tuples(true_scores, predicted_scores), min_size=1, max_size=40)


def tally_of(true: Sequence[float], predicted: Sequence[float]) -> np.ndarray:
    return conversation_sums(np.array(true, np.float32), np.array(predicted), np.array([0, len(true)]))[0]


def scores_of(true: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    return dict(compute_all(SCORE_METRICS, tally_of(true, predicted)))


def seven(score: float) -> int:
    """To the nearest whole number, from a half to the even one."""
    return max(-3, min(3, round(score)))


def plain_scores(true: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """From the definitions, one utterance after the other."""
    both = list(zip(true, predicted, strict=True))
    nonzero = [(t, p) for t, p in both if t != 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's, of scores that are all alike
        pearson = scipy.stats.pearsonr(true, predicted).statistic if len(both) > 1 else math.nan
    options = {"average": "weighted", "zero_division": 0.0}
    return {
        "mae": sum(abs(t - p) for t, p in both) / len(both),
        "correlation": 0.0 if math.isnan(pearson) else pearson,
        "ccc": plain_concordance(np.array(both)),
        "accuracy_2": sum((t >= 0) == (p >= 0) for t, p in both) / len(both),
        "accuracy_2_nonzero": sum((t > 0) == (p > 0) for t, p in nonzero) / max(len(nonzero), 1),
        "accuracy_7": sum(seven(t) == seven(p) for t, p in both) / len(both),
        "weighted_f1_2": reference.f1_score([t >= 0 for t, _ in both], [p >= 0 for _, p in both], **options),
        "weighted_f1_2_nonzero": (
            reference.f1_score([t > 0 for t, _ in nonzero], [p > 0 for _, p in nonzero], **options) if nonzero else 0.0
        ),
    }


def plain_concordance(both: np.ndarray) -> float:
    """2 cov / (var + var + (difference of means)^2)."""
    (means, cov) = both.mean(0), np.cov(both.T, bias=True)
    apart = cov[0, 0] + cov[1, 1] + (means[0] - means[1]) ** 2
    return 2 * float(cov[0, 1] / apart) if apart > 0 else 0.0


@settings(deadline=None, max_examples=75)
@given(pairs)
def test_metrics_agree_with_a_plain_reference(drawn: list[tuple[float, float]]) -> None:
    true, predicted = zip(*drawn, strict=True)
    true = tuple(float(np.float32(score)) for score in true)
    found, expected = scores_of(true, predicted), plain_scores(true, predicted)
    assert list(found) == list(expected)
    if np.std(predicted) < 1e-4 * np.max(np.abs(predicted), initial=0):  # near what counts as constant, see below
        del found["correlation"], expected["correlation"], found["ccc"], expected["ccc"]
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_two_conventions_differ_in_zeros_alone() -> None:
    """One zero that is predicted below zero, one above, beside a hit and a miss."""
    found = scores_of([0.0, 0.0, 2.0, -1.0], [-0.5, 0.5, 1.0, 1.0])
    assert (found["accuracy_2"], found["accuracy_2_nonzero"]) == (0.5, 0.5)
    assert scores_of([0.0, 2.0], [-0.5, 1.0])["accuracy_2"] == 0.5
    assert scores_of([0.0, 2.0], [-0.5, 1.0])["accuracy_2_nonzero"] == 1.0
    assert scores_of([-1.0, 2.0], [0.0, 1.0])["accuracy_2"] == 0.5  # a predicted zero is not negative
    assert scores_of([-1.0, 2.0], [0.0, 1.0])["accuracy_2_nonzero"] == 1.0  # nor positive


def test_seven_classes_are_rounded_to_even_and_cut() -> None:
    assert to_seven(np.array([-9.0, -3.4, -2.5, -0.5, 0.5, 1.5, 2.4, 3.6])).tolist() == [-3, -3, -2, 0, 0, 2, 2, 3]


@pytest.mark.parametrize(
    ("true", "predicted"),
    [
        ([1.0, 2.0, -1.0], [0.4, 0.4, 0.4]),
        ([0.6, 0.6, 0.6], [0.1, 0.5, 0.9]),
        ([1.0], [2.0]),
        ([math.nan], [2.0]),
        ([1.0, 2.0, -1.0], [1000.1, 1000.1, 1000.1]),
    ],
    ids=["constant predictions", "constant truth", "one utterance", "none", "far away"],
)
def test_a_correlation_that_is_not_defined_is_zero(true: list[float], predicted: list[float]) -> None:
    assert scores_of(true, predicted)["correlation"] == 0
    assert all(math.isfinite(score) for score in scores_of(true, predicted).values())


def test_correlation_does_not_depend_on_place_and_scale() -> None:
    random = np.random.default_rng(0)
    true, predicted = random.normal(size=50), random.normal(size=50)
    expected = scipy.stats.pearsonr(true.astype(np.float32), predicted).statistic
    for scaled in (predicted, 100 + predicted, 1e-3 * predicted):
        assert scores_of(true.tolist(), scaled.tolist())["correlation"] == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.lists(pairs, min_size=1, max_size=5))
def test_tallies_of_conversations_add_up_and_leave_out_what_has_no_score(
    conversations: list[list[tuple[float, float]]],
) -> None:
    true, predicted = np.array([pair for pairs in conversations for pair in pairs], np.float32).T
    true[0] = np.nan
    tallies = conversation_sums(true, predicted, np.cumsum([0, *map(len, conversations)]))
    assert tallies.shape == (len(conversations), SUMS)
    np.testing.assert_allclose(tallies.sum(0), tally_of(true[1:], predicted[1:]), atol=1e-9)


def test_a_bootstrap_of_tallies_is_every_metric_of_the_utterances_drawn_again() -> None:
    """Against a loop that puts the utterances of the drawn conversations one behind the other."""
    random = np.random.default_rng(1)
    turns = random.integers(1, 6, 8)
    true = np.round(random.normal(0, 1.5, turns.sum()) * 5).astype(np.float32) / 5
    predicted = true + random.normal(0, 1, len(true))
    offsets = np.concatenate([[0], turns.cumsum()])
    tallies = conversation_sums(true, predicted, offsets)
    draws = np.random.default_rng(5).integers(0, 8, size=(25, 8))
    plain = []
    for draw in draws:
        utterances = np.concatenate([np.arange(offsets[one], offsets[one + 1]) for one in draw])
        plain.append(plain_scores(true[utterances].tolist(), predicted[utterances].tolist()))
    for name, metric in SCORE_METRICS.items():
        expected = [scores[name] for scores in plain]
        np.testing.assert_allclose(bootstrap(tallies, metric, resamples=25, seed=5), expected, atol=1e-9, err_msg=name)


def test_leading_axes_pass_through_every_metric() -> None:
    random = np.random.default_rng(0)
    tallies = np.stack([[tally_of(random.normal(size=5), random.normal(size=5)) for _ in range(3)] for _ in range(2)])
    for metric in SCORE_METRICS.values():
        np.testing.assert_allclose(metric(tallies), [[metric(one) for one in row] for row in tallies])


def test_scores_stay_within_their_bounds() -> None:
    random = np.random.default_rng(0)
    for size in (1, 2, 5):
        tally = tally_of(random.normal(0, 3, size), random.normal(0, 3, size))
        for metric in SCORE_METRICS.values():
            assert metric.bounds[0] <= metric(tally) <= metric.bounds[1]


def test_the_floor_is_the_median_of_train() -> None:
    true, train = np.array([1.0, -2.0, np.nan], np.float32), np.array([3.0, 0.5, np.nan, -1.0], np.float32)
    assert floor_scores(ScoreTask(), true, train) == pytest.approx(scores_of([1.0, -2.0], [0.5, 0.5]))
    assert floor_scores(ScoreTask(), true, train)["mae"] == 1.5
