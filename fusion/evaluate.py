"""Score the models of all seeds on the test split, which is read here, once, and nowhere else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fusion.checkpoint import LoadedModel, check_compatible, load_seeds
from fusion.data import load_split
from fusion.history import Epoch
from fusion.metrics import (
    METRICS,
    ClassScores,
    all_metrics,
    class_scores,
    majority_floor,
)
from fusion.params import EvaluateParams
from fusion.predict import predict_heads, split_confusions
from fusion.provenance import Provenance
from fusion.statistics import Interval, bootstrap, percentile_interval
from pipeline.store import Features


@dataclass(frozen=True)
class SeedScores:
    """One model on the test split."""

    provenance: Provenance
    history: Sequence[Epoch]
    probabilities: np.ndarray  # (utterances, classes)
    scores: Mapping[str, float]  # by metric
    intervals: Mapping[str, Interval]  # by metric
    classes: ClassScores
    heads: Mapping[str, Mapping[str, float]]  # scores of the other heads, by head and metric


@dataclass(frozen=True)
class Summary:
    """One metric over all seeds."""

    mean: float
    std: float | None  # of the sample; None for a single seed
    interval: Interval  # of the mean: other conversations, the same models
    majority: float  # of always predicting the majority label of train
    validation: float  # mean over seeds


@dataclass(frozen=True)
class Evaluation:
    """All models of one folder on the test split."""

    features: str  # hash of the feature file that was scored
    params: EvaluateParams
    labels: Sequence[str]
    ids: Sequence[str]  # utterances
    conversations: Sequence[str]  # of each utterance
    true: np.ndarray  # (utterances,), -1 = unlabelled
    seeds: Sequence[SeedScores]
    summaries: Mapping[str, Summary]  # of the models as a whole, by metric
    heads: Mapping[str, Mapping[str, Summary]]  # of the heads inside them, by head and metric


def evaluate(features: Features, models: Path, params: EvaluateParams, device: torch.device) -> Evaluation:
    """Score every seed in the folder `models` on the test split of `features`.

    Raises:
        ModelError: a model cannot be loaded, or was trained on other encoders or labels.
        FeatureError: there is no test split, or nothing in it is labelled.
    """
    loaded = load_seeds(models, device)
    for one in loaded:
        check_compatible(one, features)
    given = loaded[0].provenance.recipe.model
    split = load_split(features, "test", modalities=given.modalities, audio_frames=given.audio_frames, device=device)
    predictions = [predict_heads(one.model, split) for one in loaded]
    confusions = {
        head: np.stack([split_confusions(split, probabilities[head]) for probabilities in predictions])
        for head in predictions[0]
    }  # by head: (seeds, conversations, classes, classes)
    draws = {
        head: {name: bootstrap(counts, metric, params.resamples, params.seed) for name, metric in METRICS.items()}
        for head, counts in confusions.items()
    }  # by head and metric: (seeds, resamples)
    seeds = [
        _seed_scores(index, one, predictions[index]["fused"], confusions, draws["fused"], params)
        for index, one in enumerate(loaded)
    ]
    floor = majority_floor(split.labels.numpy(), _train_labels(features), len(features.label_names))
    summaries = {
        head: {name: _summary(head, name, seeds, draws[head][name], floor[name], params) for name in METRICS}
        for head in confusions
    }
    return Evaluation(
        features=features.digest,
        params=params,
        labels=features.label_names,
        ids=split.ids,
        conversations=split.conversation_ids,
        true=split.labels.numpy(),
        seeds=seeds,
        summaries=summaries.pop("fused"),
        heads=summaries,
    )


def _seed_scores(
    index: int,
    loaded: LoadedModel,
    probabilities: np.ndarray,
    confusions: Mapping[str, np.ndarray],
    draws: Mapping[str, np.ndarray],
    params: EvaluateParams,
) -> SeedScores:
    totals = {head: counts[index].sum(0) for head, counts in confusions.items()}
    heads = {head: all_metrics(total) for head, total in totals.items()}
    return SeedScores(
        provenance=loaded.provenance,
        history=loaded.history,
        probabilities=probabilities,
        scores=heads.pop("fused"),
        intervals={name: percentile_interval(drawn[index], params.confidence) for name, drawn in draws.items()},
        classes=class_scores(totals["fused"]),
        heads=heads,
    )


def _summary(
    head: str, name: str, seeds: Sequence[SeedScores], draws: np.ndarray, majority: float, params: EvaluateParams
) -> Summary:
    scores = [(seed.scores if head == "fused" else seed.heads[head])[name] for seed in seeds]
    return Summary(
        mean=float(np.mean(scores)),
        std=sample_std(scores),
        interval=percentile_interval(draws.mean(0), params.confidence),
        majority=majority,
        validation=float(np.mean([seed.provenance.validation[head][name] for seed in seeds])),
    )


def sample_std(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample, divisor n - 1; None for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _train_labels(features: Features) -> np.ndarray:
    """Labels of the train split, whose majority is the floor: picking the test split's own would be peeking."""
    return features.utterances.labels[np.array(features.utterances.splits) == "train"]
