"""How sure a score or a difference is: intervals and tests over conversations and seeds.

Two things would come out otherwise if a study were done again: which conversations the test split has, and which seeds
the models were trained from. Turns of one conversation depend on each other, so the conversation is what is drawn.

**Interval.** Its variance is that of a bootstrap over conversations plus that of a bootstrap over seeds, both put right
for small samples. A bootstrap of n draws has (n - 1) / n of the variance, a third too little with three seeds, so each
is multiplied by n / (n - 1); for the few seeds, whose bootstrap variance is known without drawing, this is s^2 / n.
Scores of seeds also differ because each seed errs in other conversations. The draws of conversations hold that part
already, and how large it is shows in how much less the mean over seeds varies from draw to draw than one seed does: it
is not counted twice. The width is that of a t distribution whose degrees of freedom follow Welch and Satterthwaite,
where seeds of two settings are independent. Subtracting what is not to be counted twice leaves all the uncertainty of
the variance of a few seeds on a total that may be much smaller, for which their formula gives less than one degree of
freedom and t has no width worth printing: a difference of 0.01 came with an interval of 0.4. A sum of variances is
known at least as well as the worse known of its parts, so the degrees of freedom are never fewer than those of the
seeds alone (or the conversations alone). With a single seed conversations alone are drawn.

Before the degrees of freedom had that bound, in 20,000 trials of normal scores for each of 80 cases (3 and 5 seeds,
24 and 100 conversations, one setting and the difference of two; variance from conversations, from seeds, from errors
that are neither's, and mixed) the 95 % interval held the truth in 92.5 to 97.2 %. With it, in 600 trials for each of
162 cases, it did in 89.7 % and more with 3 and 5 seeds, in 85 % with 2 seeds and 24 conversations, in 95.7 % in the
median case. Percentiles of drawing both held it in 75 to 99 %, those of drawing conversations for the same models, in
hardly any trial where seeds decide.

**Test.** The null hypothesis: the two settings score the same in the mean over all conversations and seeds. Their
predictions are swapped conversation by conversation, all seeds together, as often as not. That alone asks about the
models that were trained, and finds their luck significant (15 % of trials at level 0.05 where half of the variance is
that of seeds, all of them where all is). Three seeds cannot be relabelled in enough ways to tell (of 20 ways the rarest
has p = 0.1), so their luck is normal noise on each swapped difference, of the variance found above, divided by what a
chi distribution of its degrees of freedom says about how well that variance is known. In 3,000 trials of 40 such cases
each without a difference it was significant at 0.05 in 2.4 to 5.8 %.

Scores are computed from tallies: whatever is counted or summed in a conversation so that the sums over conversations
give the score of them all (`fusion.objective.metrics`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy  # which loads its parts when they are used: a second less for what uses none

Metric = Callable[[np.ndarray], np.ndarray]  # from tallies (..., sums) to scores (...)

BATCH = 1000  # resamples at a time, which bounds the memory
SAME = 1e-12  # scores closer than this are equal: sums of counts in another order


@dataclass(frozen=True)
class Interval:
    """Bounds of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Sample:
    """One setting, trained from several seeds, on one split."""

    scores: np.ndarray  # (seeds,)
    draws: np.ndarray  # (seeds, resamples): on draws of conversations, the same ones for all that is compared
    conversations: int  # that are drawn from


@dataclass(frozen=True)
class Spread:
    """Variance of a mean score or of a difference of two, by where it comes from."""

    conversations: float
    conversations_freedom: float  # degrees of freedom with which it is known
    seeds: float
    seeds_freedom: float  # of `measured`
    measured: float | None = None  # variance of the seeds with what the draws hold of it already; None: `seeds`

    @property
    def total(self) -> float:
        """Of the estimate."""
        return self.conversations + self.seeds

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the total, after Welch and Satterthwaite; never fewer than those of a part alone."""
        if not self.seeds > 0:
            return self.conversations_freedom if self.conversations > 0 else np.inf
        known = self.conversations**2 / self.conversations_freedom + self._of_seeds
        lowest = min(self.conversations_freedom, self._seeds_freedom)
        return max(self.total**2 / known, lowest)

    @property
    def freedom_by_seeds(self) -> float:
        """The same, were the conversations' part known for certain."""
        return max(self.total**2 / self._of_seeds, self._seeds_freedom) if self.seeds > 0 else np.inf

    @property
    def _seeds_freedom(self) -> float:
        return max(self.seeds_freedom, 1.0)  # of two seeds, the fewest that have a variance

    @property
    def _of_seeds(self) -> float:
        """Half of how uncertain the variance of the seeds is: of what was measured, since subtracting removes none."""
        measured = self.seeds if self.measured is None else self.measured
        return float(measured**2 / self._seeds_freedom)


def bootstrap(tallies: np.ndarray, metric: Metric, resamples: int, seed: int) -> np.ndarray:
    """`metric` on `resamples` draws of as many conversations as there are.

    The draws depend on `seed` and the number of conversations alone, so all models scored on one split, and all
    metrics, share them: their differences and means can be taken draw by draw.

    Args:
        tallies: (..., conversations, sums); conversations in which nothing is counted are left out of the draws.
        metric: from tallies (..., sums) to scores (...).

    Returns:
        scores of (..., resamples).
    """
    tallies = tallies[..., _counted(tallies), :].astype(float)
    conversations = tallies.shape[-2]

    def score(drawn: np.ndarray, axis: int) -> np.ndarray:  # drawn: (resamples, conversations), indices
        times = _count(np.atleast_2d(drawn), conversations)  # a product with it adds up what was drawn
        return metric(times @ tallies)

    if conversations == 1:  # scipy refuses a sample of one
        return np.repeat(score(np.zeros(1, int), -1), resamples, axis=-1)
    done = scipy.stats.bootstrap(
        (np.arange(conversations),),
        score,
        vectorized=True,
        n_resamples=resamples,
        batch=BATCH,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return done.bootstrap_distribution


def percentile_interval(scores: np.ndarray, confidence: float) -> Interval:
    """The interval that holds the middle `confidence` of the bootstrap `scores` (resamples,)."""
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def draw_sample(tallies: np.ndarray, metric: Metric, resamples: int, seed: int) -> Sample:
    """The scores of one setting's models and their bootstrap; `tallies` (seeds, conversations, sums)."""
    return Sample(
        scores=metric(tallies.sum(-2)),
        draws=bootstrap(tallies, metric, resamples, seed),
        conversations=int(_counted(tallies).sum()),
    )


def measure_spread(sample: Sample, other: Sample | None = None) -> Spread:
    """Variance of the mean score of `sample`, or of its difference to that of `other`, on the same draws."""
    samples = [sample] if other is None else [sample, other]
    count = sample.conversations
    correction = count / (count - 1) if count > 1 else np.inf
    mean_draws = sample.draws.mean(0) - (0 if other is None else other.draws.mean(0))
    drawn = np.var(mean_draws, ddof=1)
    conversations = drawn * correction if count > 1 else np.inf  # one says nothing of others
    several = [one for one in samples if len(one.scores) > 1]
    means = np.array([np.var(one.scores, ddof=1) / len(one.scores) for one in several])
    seeds = max(0.0, means.sum() - correction * sum(_own_errors(one) for one in several)) if several else 0.0
    freedom = _pooled_freedom(means, np.array([len(one.scores) - 1 for one in several]))
    return Spread(
        conversations=float(conversations),
        conversations_freedom=float(max(count - 1, 1)),
        seeds=float(seeds),
        seeds_freedom=float(freedom),
        measured=float(means.sum()),
    )


def estimate_interval(estimate: float, spread: Spread, confidence: float, bounds: tuple[float, float]) -> Interval:
    """The interval around `estimate`, cut at `bounds`, which the estimated quantity cannot leave."""
    if not np.isfinite(spread.total):
        return Interval(*bounds)
    width = 0.0
    if spread.total > 0:
        width = float(scipy.stats.t.ppf((1 + confidence) / 2, spread.freedom)) * spread.total**0.5
    low, high = np.clip([estimate - width, estimate + width], *bounds)
    return Interval(float(low), float(high))


def permutation_test(
    tallies: np.ndarray, other: np.ndarray, metric: Metric, spread: Spread, permutations: int, seed: int
) -> float:
    """Two-sided p value of the difference of two settings' mean scores, see the module; never 0.

    Args:
        tallies, other: (seeds, conversations, sums), of both settings on the same conversations.
        metric: from tallies (..., sums) to scores (...).
        spread: of the difference, from `measure_spread`.
        permutations: swaps that are tried, or all there are where these are fewer.
        seed: of the swaps.
    """
    counted = _counted(tallies)
    one, two = (_by_conversation(given[:, counted]) for given in (tallies, other))
    middle, halves = (one + two).sum(0) / 2, (one - two) / 2
    score = _mean_score(metric, len(tallies))

    def difference(sides: np.ndarray, swapped: np.ndarray, axis: int) -> np.ndarray:  # sides: (..., conversations)
        apart = sides @ halves
        return score(middle + apart) - score(middle - apart)

    random = np.random.default_rng(seed)
    sides = np.ones(len(one))
    null = np.array([1.0, -1.0]) * difference(sides, -sides, -1)  # of one conversation, which scipy refuses
    if len(one) > 1:
        null = scipy.stats.permutation_test(
            (sides, -sides),
            difference,
            permutation_type="samples",
            vectorized=True,
            n_resamples=permutations,
            batch=BATCH,
            rng=random,
        ).null_distribution
    if spread.seeds > 0:
        null = np.resize(null, permutations)
        # the swaps bring the uncertainty of the conversations' part themselves
        freedom = spread.freedom_by_seeds
        noise = random.normal(scale=spread.seeds**0.5, size=permutations)
        null = (null + noise) * np.sqrt(freedom / random.chisquare(freedom, size=permutations))
    observed = abs(difference(sides, -sides, -1))
    return float((np.sum(np.abs(null) >= observed - SAME) + 1) / (len(null) + 1))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's correction of (tests,) p values, by which none of true null hypotheses is rejected at that level.

    The smallest of m is multiplied by m, the next by m - 1 and so on; none ends below a smaller one, none above 1.

    >>> holm(np.array([0.04, 0.01, 0.03])).tolist()
    [0.06, 0.03, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p_values[order]), 1)
    return corrected


def _counted(tallies: np.ndarray) -> np.ndarray:
    """(conversations,) boolean: in which something is counted."""
    return (tallies != 0).any(-1).reshape(-1, tallies.shape[-2]).any(0)


def _count(drawn: np.ndarray, conversations: int) -> np.ndarray:
    """How often each conversation is among the indices `drawn` (resamples, draws): (resamples, conversations)."""
    resamples = len(drawn)
    cells = drawn + conversations * np.arange(resamples)[:, None]
    return np.bincount(cells.ravel(), minlength=resamples * conversations).reshape(resamples, -1).astype(float)


def _own_errors(sample: Sample) -> float:
    """Variance of the mean over seeds that comes from each seed's own errors in the conversations that were drawn.

    With b common to all seeds and e each one's own: Var(one seed) = b + e, Var(mean) = b + e / seeds.
    """
    single, mean = np.var(sample.draws, axis=1, ddof=1).mean(), np.var(sample.draws.mean(0), ddof=1)
    return max(0.0, float(single - mean)) / (len(sample.scores) - 1)


def _pooled_freedom(variances: np.ndarray, freedoms: np.ndarray) -> float:
    """Welch and Satterthwaite: degrees of freedom of a sum of independent variances."""
    if not variances.sum() > 0:
        return float(np.inf)
    return float(variances.sum() ** 2 / (variances**2 / freedoms).sum())


def _by_conversation(tallies: np.ndarray) -> np.ndarray:
    """(seeds, conversations, sums) -> (conversations, seeds * sums)."""
    return tallies.swapaxes(0, 1).reshape(tallies.shape[1], -1).astype(float)


def _mean_score(metric: Metric, seeds: int) -> Callable[[np.ndarray], np.ndarray]:
    """The mean over seeds of the scores of flat tallies (..., seeds * sums)."""
    return lambda flat: metric(flat.reshape(*flat.shape[:-1], seeds, -1)).mean(-1)
