"""Intervals and tests over conversations and seeds."""

import csv
import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeClassifier

from fusion.objective import (
    LABEL_METRICS,
    Interval,
    Sample,
    bootstrap,
    conversation_confusions,
    draw_sample,
    estimate_interval,
    holm,
    measure_spread,
    percentile_interval,
    permutation_test,
)
from fusion.objective.statistics import Metric, Spread
from tests.conftest import shared_data

CLASSES = 3
accuracy, weighted_f1 = LABEL_METRICS["accuracy"], LABEL_METRICS["weighted_f1"]


def tallies_of(true: np.ndarray, predicted: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(conversations, sums)."""
    return conversation_confusions(true, predicted, offsets, CLASSES).reshape(len(offsets) - 1, -1)


def made_tallies(conversations: int, turns: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    true = random.integers(0, CLASSES, conversations * turns)
    predicted = np.where(random.random(true.shape) < 0.6, true, random.integers(0, CLASSES, true.shape))
    return tallies_of(true, predicted, np.arange(0, len(true) + 1, turns))


def test_a_draw_is_the_score_of_the_drawn_conversations() -> None:
    """Against a loop that repeats each conversation as often as it was drawn."""
    confusions = made_tallies(7, 4)
    draws = np.random.default_rng(5).integers(0, 7, size=(20, 7))
    expected = [weighted_f1(sum(confusions[index] for index in draw)) for draw in draws]
    np.testing.assert_allclose(bootstrap(confusions, weighted_f1, resamples=20, seed=5), expected)


def test_every_seed_of_a_model_is_scored_on_the_same_draws() -> None:
    one, other = made_tallies(6, 3, seed=1), made_tallies(6, 3, seed=2)
    together = bootstrap(np.stack([one, other]), accuracy, resamples=30, seed=0)
    np.testing.assert_array_equal(together[0], bootstrap(one, accuracy, resamples=30, seed=0))
    np.testing.assert_array_equal(together[1], bootstrap(other, accuracy, resamples=30, seed=0))


def test_turns_of_a_conversation_are_drawn_together() -> None:
    """Conversations that are right or wrong as a whole: drawing single turns would give a narrower interval."""
    right, wrong = np.array([10, 0, 0, 0]), np.array([0, 10, 0, 0])
    scores = bootstrap(np.stack([right, wrong] * 5), accuracy, resamples=2000, seed=0)
    assert set(np.round(scores * 10) / 10) == set(scores)
    assert scores.std() == pytest.approx(np.sqrt(0.25 / 10), rel=0.1)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    truth = 0.6 + 0.4 / CLASSES
    intervals = [
        percentile_interval(bootstrap(made_tallies(60, 3, seed), accuracy, resamples=300, seed=seed), 0.9)
        for seed in range(300)
    ]
    held = np.mean([one.low <= truth <= one.high for one in intervals])
    assert 0.85 <= held <= 0.94


def test_an_interval_of_a_perfect_model_has_no_width() -> None:
    true = np.array([0, 1, 2, 2, 1, 0])
    confusions = tallies_of(true, true, np.array([0, 2, 4, 6]))
    interval = percentile_interval(bootstrap(confusions, weighted_f1, resamples=50, seed=0), 0.95)
    assert (interval.low, interval.high) == (1.0, 1.0)


def test_more_confidence_is_a_wider_interval() -> None:
    scores = bootstrap(made_tallies(20, 5), weighted_f1, resamples=500, seed=0)
    narrow, wide = percentile_interval(scores, 0.5), percentile_interval(scores, 0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_conversations_without_a_label_are_not_drawn() -> None:
    confusions = made_tallies(5, 3)
    silent = np.zeros((2, CLASSES * CLASSES), confusions.dtype)
    np.testing.assert_array_equal(
        bootstrap(np.concatenate([silent, confusions]), weighted_f1, resamples=40, seed=1),
        bootstrap(confusions, weighted_f1, resamples=40, seed=1),
    )


def test_the_same_seed_gives_the_same_draws() -> None:
    confusions = made_tallies(9, 3)
    first, again, other = (bootstrap(confusions, weighted_f1, resamples=40, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_one_conversation_is_always_itself() -> None:
    confusion = tallies_of(np.array([0, 1, 1]), np.array([0, 1, 0]), np.array([0, 3]))
    np.testing.assert_allclose(bootstrap(confusion, accuracy, resamples=10, seed=0), 2 / 3)


# several seeds


def made_study(
    random: np.random.Generator, shares: Sequence[float], conversations: int, seeds: int, sizes: tuple[float, float]
) -> np.ndarray:
    """Tallies (settings, seeds, conversations, sums) of settings, right in these shares of turns.

    `sizes` is how far the share differs between conversations, for each setting on its own, and between seeds; apart
    from that each seed errs in other turns.
    """
    turns, offsets = 4, np.arange(0, conversations * 4 + 1, 4)
    true = random.integers(0, CLASSES, conversations * turns)
    settings = []
    for share in shares:
        easy = np.repeat(random.normal(0, sizes[0], conversations), turns)
        right = random.random((seeds, len(true))) < share + easy + random.normal(0, sizes[1], (seeds, 1))
        predicted = np.where(right, true, (true + random.integers(1, CLASSES, true.shape)) % CLASSES)
        settings.append([tallies_of(true, one, offsets) for one in predicted])
    return np.array(settings)


def made_samples(studies: np.ndarray, metric: Metric) -> list[list[Sample]]:
    """By study and setting; one call for all of `studies` (studies, settings, seeds, ...), which share the draws."""
    draws = bootstrap(studies, metric, resamples=150, seed=0)
    scores = metric(studies.sum(-2))
    count = studies.shape[-2]
    return [[Sample(*two, count) for two in zip(*one, strict=True)] for one in zip(scores, draws, strict=True)]


STUDIES = [
    pytest.param(24, 3, (0.15, 0.0), accuracy, id="24 conversations, 3 seeds, conversations decide"),
    pytest.param(60, 3, (0.0, 0.0), weighted_f1, id="60 conversations, 3 seeds, each errs in other turns, weighted F1"),
    pytest.param(60, 3, (0.0, 0.08), accuracy, id="60 conversations, 3 seeds, seeds decide", marks=pytest.mark.soak),
    pytest.param(
        60, 3, (0.05, 0.05), weighted_f1, id="60 conversations, 3 seeds, both, weighted F1", marks=pytest.mark.soak
    ),
    pytest.param(40, 5, (0.1, 0.04), accuracy, id="40 conversations, 5 seeds, both", marks=pytest.mark.soak),
]


@pytest.mark.parametrize(("conversations", "seeds", "sizes", "metric"), STUDIES)
def test_intervals_hold_the_truth_at_their_rate_and_the_test_errs_at_its_level(
    conversations: int, seeds: int, sizes: tuple[float, float], metric: Metric
) -> None:
    """500 studies of three settings, of which two are equally good; classes are alike, so F1 is the accuracy."""
    random, shares = np.random.default_rng(0), (0.65, 0.55, 0.55)
    held = scored = false = 0
    gains, widths = [], []
    for _ in range(10):
        studies = np.stack([made_study(random, shares, conversations, seeds, sizes) for _ in range(50)])
        for study, (better, base, equal) in zip(studies, made_samples(studies, metric), strict=True):
            score = estimate_interval(base.scores.mean(), measure_spread(base), 0.95, (0, 1))
            scored += score.low <= 0.55 <= score.high
            gain = better.scores.mean() - base.scores.mean()
            difference = estimate_interval(gain, measure_spread(better, base), 0.95, (-1, 1))
            held += difference.low <= 0.1 <= difference.high
            gains.append(gain)
            widths.append((difference.high - difference.low) / 2)
            spread = measure_spread(equal, base)
            false += permutation_test(study[2], study[1], metric, spread, permutations=159, seed=0) <= 0.05
    assert 0.92 <= scored / 500 <= 0.98
    assert 0.92 <= held / 500 <= 0.98
    assert 0.01 <= false / 500 <= 0.07
    known = 1.96 * np.std(gains)  # the half width, were the variance known; t of 2 degrees of freedom has 2.2 times it
    assert 0.9 < np.mean(widths) / known < 2.2
    assert np.quantile(widths, 0.99) / known < 5


@pytest.mark.parametrize("known", [2.3, 1.0, 2.0, 7.9])
@pytest.mark.parametrize("left", [1.0, 0.3, 2 / 52, 1e-3, 1e-9])
@pytest.mark.parametrize("conversations", [0.0, 2e-5, 1e-3])
def test_degrees_of_freedom_are_never_fewer_than_those_of_the_seeds(
    conversations: float, left: float, known: float
) -> None:
    """However little is `left` of the variance of the seeds when that of the draws was subtracted."""
    measured = 5.2e-5
    spread = Spread(conversations, 30, seeds=left * measured, seeds_freedom=known, measured=measured)
    interval = estimate_interval(-0.007, spread, 0.95, (-1, 1))
    half = (interval.high - interval.low) / 2
    assert half <= scipy.stats.t.ppf(0.975, known) * spread.total**0.5 * (1 + 1e-9)
    assert half >= scipy.stats.norm.ppf(0.975) * spread.total**0.5
    shrunk = replace(spread, seeds_freedom=known * left**2, measured=None)  # one degree is the fewest there is
    wide = estimate_interval(-0.007, shrunk, 0.95, (-1, 1))
    assert (wide.high - wide.low) / 2 <= scipy.stats.t.ppf(0.975, 1) * spread.total**0.5 * (1 + 1e-9)


def test_the_interval_of_a_small_difference_is_small() -> None:
    """Three seeds of two settings whose difference has a deviation of 0.005; it was -1 to 1."""
    spread = Spread(2e-5, 30, seeds=2e-6, seeds_freedom=2.3, measured=5.2e-5)
    for one in (spread, replace(spread, seeds_freedom=2.3 * (2e-6 / 5.2e-5) ** 2, measured=None)):
        interval = estimate_interval(-0.007, one, 0.95, (-1, 1))
        assert -0.03 < interval.low < -0.016
        assert 0.002 < interval.high < 0.016


def paired_bootstrap(one: np.ndarray, other: np.ndarray, metric: Metric) -> Interval:
    """The plain one: percentiles of the difference of means over seeds, on draws of conversations."""
    draws = bootstrap(one, metric, 1000, 0).mean(0) - bootstrap(other, metric, 1000, 0).mean(0)
    return percentile_interval(draws, 0.95)


@pytest.mark.parametrize(
    ("seeds", "sizes", "least", "most"),
    [
        pytest.param(1, (0.1, 0.0), 0.85, 1.2, id="one seed: the same, but for t and n - 1"),
        pytest.param(3, (0.1, 0.0), 0.85, 2.5, id="seeds alike"),
        pytest.param(5, (0.0, 0.0), 0.85, 2.5, id="each errs in other turns"),
        pytest.param(3, (0.0, 0.08), 1.0, 40.0, id="seeds decide, which a plain one does not see"),
    ],
)
def test_the_interval_of_a_difference_beside_a_plain_paired_bootstrap(
    seeds: int, sizes: tuple[float, float], least: float, most: float
) -> None:
    """On predictions of 40 studies: of the same middle, and as wide or wider by what seeds add."""
    ratios = []
    for number in range(40):
        one, other = made_study(np.random.default_rng(number), (0.65, 0.6), 50, seeds, sizes)
        samples = [draw_sample(given, weighted_f1, 1000, 0) for given in (one, other)]
        gain = float(samples[0].scores.mean() - samples[1].scores.mean())
        found = estimate_interval(gain, measure_spread(*samples), 0.95, (-1, 1))
        plain = paired_bootstrap(one, other, weighted_f1)
        assert abs((plain.low + plain.high) / 2 - gain) < (plain.high - plain.low) / 8
        ratios.append((found.high - found.low) / (plain.high - plain.low))
    assert least < min(ratios)
    assert max(ratios) < most
    assert least < np.median(ratios) < (1 + most) / 2


@pytest.fixture(scope="module")
def real_predictions() -> np.ndarray:
    """Tallies (settings, seeds, conversations, sums) of vectors of MELD: audio and text, then text alone.

    A seed is another bootstrap of what a ridge classifier learns from and other folds.
    """
    folder = shared_data("meld-vectors")
    with (folder / "turns.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    vectors = np.load(folder / "vectors.npz")
    true, conversation = (
        np.unique([row[key] for row in rows], return_inverse=True)[1] for key in ("label", "conversation")
    )
    order = np.argsort(conversation, kind="stable")
    true, conversation = true[order], conversation[order]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(conversation))])
    audio, text = (
        PCA(60, random_state=0).fit_transform(vectors[name][order].astype(float)) for name in ("audio", "text")
    )
    settings = [
        [_predict_folds(given, true, conversation, seed) for seed in range(20 * start, 20 * start + 20)]
        for start, given in enumerate((np.hstack([audio, text]), text))
    ]
    classes = true.max() + 1
    return np.array(
        [
            [conversation_confusions(true, one, offsets, classes).reshape(len(offsets) - 1, -1) for one in setting]
            for setting in settings
        ]
    )


def _predict_folds(given: np.ndarray, true: np.ndarray, conversation: np.ndarray, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    fold = (random.permutation(conversation.max() + 1) % 5)[conversation]
    predicted = np.empty_like(true)
    for number in range(5):
        learned = random.choice(np.flatnonzero(fold != number), (fold != number).sum())
        model = RidgeClassifier(100.0).fit(given[learned], true[learned])
        predicted[fold == number] = model.predict(given[fold == number])
    return predicted


@pytest.mark.soak
@pytest.mark.parametrize(("conversations", "seeds"), [(30, 3), (60, 3), (60, 5)])
def test_intervals_hold_on_draws_of_real_predictions(
    real_predictions: np.ndarray, conversations: int, seeds: int
) -> None:
    """What 70 conversations and 20 seeds give is taken for the truth, and 300 studies are drawn from it."""
    random = np.random.default_rng(0)
    truth = weighted_f1(real_predictions.sum(-2)).mean(1)
    gains, widths, held, scored = [], [], 0, 0
    for _ in range(300):
        drawn = random.integers(0, real_predictions.shape[2], conversations)
        both, text = (
            draw_sample(one[random.integers(0, len(one), seeds)][:, drawn], weighted_f1, 300, 0)
            for one in real_predictions
        )
        gain = float(both.scores.mean() - text.scores.mean())
        difference = estimate_interval(gain, measure_spread(both, text), 0.95, (-1, 1))
        held += difference.low <= truth[0] - truth[1] <= difference.high
        score = estimate_interval(text.scores.mean(), measure_spread(text), 0.95, (0, 1))
        scored += score.low <= truth[1] <= score.high
        gains.append(gain)
        widths.append((difference.high - difference.low) / 2)
    assert 0.92 <= held / 300 <= 0.99
    assert 0.92 <= scored / 300 <= 0.99
    known = 1.96 * np.std(gains)
    assert 0.9 < np.mean(widths) / known < 1.6
    assert np.quantile(widths, 0.99) / known < 4


def test_swapping_conversations_alone_takes_the_luck_of_seeds_for_a_difference() -> None:
    """Which is why the test adds it: two equal settings, whose seeds differ."""
    random, false = np.random.default_rng(1), 0
    for seed in range(100):
        one, other = made_study(random, (0.55, 0.55), 60, 3, (0.0, 0.08))
        samples = [draw_sample(given, accuracy, 100, seed) for given in (one, other)]
        blind = replace(measure_spread(*samples), seeds=0.0)
        false += permutation_test(one, other, accuracy, blind, permutations=199, seed=seed) <= 0.05
    assert false > 30


def test_a_large_difference_is_found() -> None:
    one, other = made_study(np.random.default_rng(0), (0.9, 0.5), 60, 3, (0.02, 0.02))
    spread = measure_spread(*(draw_sample(given, accuracy, 200, 0) for given in (one, other)))
    assert permutation_test(one, other, accuracy, spread, permutations=999, seed=0) == pytest.approx(0.001)  # never 0


def test_the_variance_of_a_bootstrap_over_seeds_is_put_right_for_their_number() -> None:
    """Against drawing seeds in all 27 ways, whose variance is 2 / 3 of what it should be."""
    scores = np.array([0.5, 0.6, 0.8])
    drawn = [np.mean(one) for one in itertools.product(scores, repeat=3)]
    spread = measure_spread(Sample(scores, np.tile(scores[:, None], 50), conversations=30))
    assert spread.seeds == pytest.approx(np.var(drawn) * 3 / 2)
    assert spread.conversations == pytest.approx(0)
    assert spread.freedom == pytest.approx(2)


def test_the_variance_of_conversations_is_that_of_their_mean() -> None:
    """Against the textbook's s / sqrt(n), for a share of right turns in conversations of one length."""
    (one,) = made_study(np.random.default_rng(0), (0.6,), 50, 1, (0.1, 0.0))
    spread = measure_spread(draw_sample(one, accuracy, 5000, 0))
    shares = accuracy(one[0])
    assert spread.conversations == pytest.approx(np.var(shares, ddof=1) / 50, rel=0.05)
    assert (spread.seeds, spread.freedom) == (0, 49)


def test_errors_of_each_seed_in_other_conversations_count_once() -> None:
    """Seeds that are equally good and err in other turns have no luck to speak of."""
    random = np.random.default_rng(0)
    spreads = [
        measure_spread(draw_sample(made_study(random, (0.6,), 60, 5, (0.0, 0.0))[0], accuracy, 200, 0))
        for _ in range(50)
    ]
    assert np.mean([one.total for one in spreads]) == pytest.approx(0.6 * 0.4 / (60 * 4 * 5), rel=0.25)


def test_independent_variances_add_up_with_the_degrees_of_freedom_of_welch() -> None:
    """Against scipy, which computes them for the t test of two samples."""
    one, other = np.array([0.5, 0.6, 0.8]), np.array([0.4, 0.45, 0.42])
    constant = [Sample(scores, np.tile(scores[:, None], 50), conversations=30) for scores in (one, other)]
    expected = scipy.stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    found = estimate_interval(one.mean() - other.mean(), measure_spread(*constant), 0.95, (-1, 1))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_an_interval_stays_within_what_is_possible() -> None:
    spread = Spread(conversations=0.04, conversations_freedom=10, seeds=0.0, seeds_freedom=np.inf)
    assert estimate_interval(0.9, spread, 0.95, (0, 1)).high == 1
    assert estimate_interval(0.9, spread, 0.95, (0, 1)).low == pytest.approx(0.9 - 0.2 * scipy.stats.t.ppf(0.975, 10))


def test_a_single_conversation_says_nothing_about_others() -> None:
    one, other = made_study(np.random.default_rng(0), (0.9, 0.1), 1, 2, (0.0, 0.0))
    spread = measure_spread(*(draw_sample(given, accuracy, 20, 0) for given in (one, other)))
    assert estimate_interval(0.5, spread, 0.95, (-1, 1)) == Interval(-1, 1)
    assert permutation_test(one, other, accuracy, spread, permutations=99, seed=0) == 1


def test_models_with_the_same_predictions_do_not_differ() -> None:
    (one,) = made_study(np.random.default_rng(0), (0.6,), 20, 3, (0.1, 0.0))
    sample = draw_sample(one, weighted_f1, 100, 0)
    spread = replace(measure_spread(sample, sample), seeds=0.0)
    assert estimate_interval(0.0, spread, 0.95, (-1, 1)) == Interval(0, 0)
    assert permutation_test(one, one, weighted_f1, spread, permutations=99, seed=0) == 1


def test_the_test_agrees_with_trying_every_swap_in_a_loop() -> None:
    one, other = made_study(np.random.default_rng(3), (0.8, 0.5), 6, 2, (0.0, 0.0))
    observed = abs((weighted_f1(one.sum(1)) - weighted_f1(other.sum(1))).mean())
    rare = 0
    for swaps in itertools.product([False, True], repeat=6):
        swapped = np.array(swaps)[None, :, None]
        left, right = np.where(swapped, other, one), np.where(swapped, one, other)
        rare += abs((weighted_f1(left.sum(1)) - weighted_f1(right.sum(1))).mean()) >= observed - 1e-12
    nothing = Spread(conversations=1.0, conversations_freedom=5, seeds=0.0, seeds_freedom=np.inf)
    found = permutation_test(one, other, weighted_f1, nothing, permutations=1000, seed=0)
    assert found == pytest.approx((rare + 1) / (2**6 + 1))


def test_the_test_depends_on_its_seed_alone() -> None:
    one, other = made_study(np.random.default_rng(3), (0.65, 0.55), 30, 3, (0.1, 0.05))
    spread = measure_spread(*(draw_sample(given, accuracy, 100, 0) for given in (one, other)))
    first, again, another = (permutation_test(one, other, accuracy, spread, 999, seed) for seed in (0, 0, 1))
    assert first == again
    assert 0 < abs(first - another) < 0.1


def test_holm_corrects_as_by_hand() -> None:
    """Five tests: 5 * 0.001, 4 * 0.01, 3 * 0.012 raised to the one before, 2 * 0.3, and 0.9 itself."""
    found = holm(np.array([0.9, 0.01, 0.001, 0.3, 0.012]))
    assert found.tolist() == pytest.approx([0.9, 0.04, 0.005, 0.6, 0.04])
    assert holm(np.array([0.6, 0.7])).tolist() == [1, 1]
    assert holm(np.array([])).tolist() == []
