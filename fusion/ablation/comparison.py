"""The rows of an ablation table: every row's scores on the test split, and its difference to the row it is based on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusion.ablation.study import Ablation
from fusion.ablation.variants import BASE, LINEAR, Variant
from fusion.evaluation import sample_std
from fusion.inference import score_answers, split_tallies
from fusion.objective import (
    METRICS,
    Interval,
    Sample,
    draw_sample,
    estimate_interval,
    holm,
    measure_spread,
    permutation_test,
)


@dataclass(frozen=True)
class Difference:
    """A row against the one that it is based on."""

    mean: float
    interval: Interval
    p: float
    p_holm: float  # corrected for all rows of the table


@dataclass(frozen=True)
class Row:
    """One row, on the test split."""

    variant: Variant
    mean: float  # over seeds, of the metric that training selects on, as all that follows
    std: float | None  # of the sample; None for a single seed
    interval: Interval
    validation: float
    difference: Difference | None  # None for the base row
    scores: Mapping[str, float]  # of every metric, mean over seeds
    parameters: int
    seconds: float | None  # of training, mean over the seeds that were not interrupted
    ensemble: float  # of the seeds together, by the same metric
    model: str
    unlearned: Sequence[str]  # of each seed that has not learned, why


@dataclass(frozen=True)
class Comparison:
    """A whole table."""

    ablation: Ablation
    metric: str  # that all rows are compared by: train.metric of params.yaml
    rows: Sequence[Row]


def compare(ablation: Ablation) -> Comparison:
    """Score all rows and test every one but the base row; intervals and tests are those of
    `fusion.objective.statistics`.
    """
    params, metric = ablation.params, ablation.variants[0].recipe.train.metric
    tallies = {
        name: np.stack([_tally(ablation, one.answers) for one in results]) for name, results in ablation.results.items()
    }  # by row: (seeds, units, sums)
    variants = [*ablation.variants, Variant(LINEAR, BASE, {}, ablation.variants[0].recipe)]
    tallies[LINEAR] = _tally(ablation, ablation.linear.answers)[None]
    samples = {name: draw_sample(one, METRICS[metric], params.resamples, params.seed) for name, one in tallies.items()}
    differences = _differences(ablation, variants, metric, tallies, samples)
    return Comparison(
        ablation=ablation,
        metric=metric,
        rows=[
            _row(ablation, one, metric, tallies[one.name], samples[one.name], differences.get(one.name))
            for one in variants
        ],
    )


def _tally(ablation: Ablation, answers: np.ndarray) -> np.ndarray:
    """(units, sums)."""
    by_conversation = split_tallies(ablation.task, ablation.test, answers)
    tally = np.zeros((ablation.units.max() + 1, by_conversation.shape[1]), by_conversation.dtype)
    np.add.at(tally, ablation.units, by_conversation)
    return tally


def _differences(
    ablation: Ablation,
    variants: Sequence[Variant],
    metric: str,
    tallies: Mapping[str, np.ndarray],
    samples: Mapping[str, Sample],
) -> dict[str, Difference]:
    """By row, of every row that has a base."""
    params, (lowest, highest) = ablation.params, METRICS[metric].bounds
    reach = highest - lowest
    found: dict[str, tuple[float, Interval, float]] = {}
    for one in variants:
        if one.base is None:
            continue
        sample, base = samples[one.name], samples[one.base]
        spread = measure_spread(sample, base)
        mean = float(sample.scores.mean() - base.scores.mean())
        seeds = np.broadcast_to(tallies[one.name], tallies[one.base].shape)  # the linear reference has no seeds
        p = permutation_test(seeds, tallies[one.base], METRICS[metric], spread, params.permutations, params.seed)
        found[one.name] = mean, estimate_interval(mean, spread, params.confidence, (-reach, reach)), p
    corrected = holm(np.array([p for *_, p in found.values()])).tolist()
    return {name: Difference(*one, p) for (name, one), p in zip(found.items(), corrected, strict=True)}


def _row(
    ablation: Ablation,
    variant: Variant,
    metric: str,
    tallies: np.ndarray,
    sample: Sample,
    difference: Difference | None,
) -> Row:
    results = [ablation.linear] if variant.name == LINEAR else ablation.results[variant.name]
    mean = float(sample.scores.mean())
    together = np.mean([one.answers for one in results], axis=0)
    seconds = [one.seconds for one in results if one.seconds is not None]
    return Row(
        variant=variant,
        mean=mean,
        std=sample_std(sample.scores.tolist()),
        interval=estimate_interval(mean, measure_spread(sample), ablation.params.confidence, METRICS[metric].bounds),
        validation=float(np.mean([one.validation[metric] for one in results])),
        difference=difference,
        scores={name: float(score(tallies.sum(1)).mean()) for name, score in ablation.task.metrics.items()},
        parameters=results[0].parameters,
        seconds=float(np.mean(seconds)) if seconds else None,
        ensemble=score_answers(ablation.task, ablation.test, together)[metric],
        model=LINEAR if variant.name == LINEAR else variant.recipe.model.name,
        unlearned=["; ".join(one.unlearned) for one in results if one.unlearned],
    )
