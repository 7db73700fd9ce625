"""The rows of an ablation table: every row's scores on the test split, and its difference to the row it is based on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusion.ablate import Ablation
from fusion.evaluate import sample_std
from fusion.metrics import METRICS, conversation_confusions
from fusion.runs import Result
from fusion.statistics import (
    Interval,
    Sample,
    draw_sample,
    estimate_interval,
    holm,
    measure_spread,
    permutation_test,
)
from fusion.variants import Variant


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


@dataclass(frozen=True)
class Comparison:
    """A whole table."""

    ablation: Ablation
    metric: str  # that all rows are compared by: train.metric of params.yaml
    rows: Sequence[Row]


def compare(ablation: Ablation) -> Comparison:
    """Score all rows and test every one but the base row; intervals and tests are those of `fusion.statistics`."""
    params, metric = ablation.params, ablation.variants[0].recipe.train.metric
    confusions = {name: _confusions(ablation, results) for name, results in ablation.results.items()}
    samples = {
        name: draw_sample(one, METRICS[metric], params.resamples, params.seed) for name, one in confusions.items()
    }
    differences = _differences(ablation, metric, confusions, samples)
    return Comparison(
        ablation=ablation,
        metric=metric,
        rows=[
            _row(ablation, one, metric, confusions[one.name], samples[one.name], differences.get(one.name))
            for one in ablation.variants
        ],
    )


def _confusions(ablation: Ablation, results: Sequence[Result]) -> np.ndarray:
    """(seeds, conversations, classes, classes)."""
    true, offsets = ablation.test.labels.numpy(), ablation.test.conversations.numpy()
    return np.stack(
        [conversation_confusions(true, one.probabilities.argmax(-1), offsets, len(ablation.labels)) for one in results]
    )


def _differences(
    ablation: Ablation, metric: str, confusions: Mapping[str, np.ndarray], samples: Mapping[str, Sample]
) -> dict[str, Difference]:
    """By row, of every row that has a base."""
    params = ablation.params
    found: dict[str, tuple[float, Interval, float]] = {}
    for one in ablation.variants:
        if one.base is None:
            continue
        sample, base = samples[one.name], samples[one.base]
        spread = measure_spread(sample, base)
        mean = float(sample.scores.mean() - base.scores.mean())
        p = permutation_test(
            confusions[one.name], confusions[one.base], METRICS[metric], spread, params.permutations, params.seed
        )
        found[one.name] = mean, estimate_interval(mean, spread, params.confidence, (-1, 1)), p
    corrected = holm(np.array([p for *_, p in found.values()]))
    return {name: Difference(*one, float(p)) for (name, one), p in zip(found.items(), corrected, strict=True)}


def _row(
    ablation: Ablation,
    variant: Variant,
    metric: str,
    confusions: np.ndarray,
    sample: Sample,
    difference: Difference | None,
) -> Row:
    results, mean = ablation.results[variant.name], float(sample.scores.mean())
    seconds = [one.seconds for one in results if one.seconds is not None]
    return Row(
        variant=variant,
        mean=mean,
        std=sample_std(sample.scores.tolist()),
        interval=estimate_interval(mean, measure_spread(sample), ablation.params.confidence, (0, 1)),
        validation=float(np.mean([one.validation[metric] for one in results])),
        difference=difference,
        scores={name: float(score(confusions.sum(1)).mean()) for name, score in METRICS.items()},
        parameters=results[0].parameters,
        seconds=float(np.mean(seconds)) if seconds else None,
    )
