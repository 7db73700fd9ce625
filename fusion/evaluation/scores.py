"""Score the models of all seeds on the test split, which is read here, once, and nowhere else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fusion.checkpoint import LoadedModel, Provenance, check_compatible, load_seeds
from fusion.data import Split, hold, load_split
from fusion.inference import predict_heads, split_tallies
from fusion.objective import (
    Calibration,
    ClassScores,
    Epoch,
    Interval,
    Task,
    bootstrap,
    calibrate,
    compute_all,
    find_task,
    floor_scores,
    percentile_interval,
)
from fusion.params import EvaluateParams, Recipe
from fusion.runtime import Memory, memory_for_features
from pipeline.store import Features


@dataclass(frozen=True)
class SeedScores:
    """One model on the test split."""

    provenance: Provenance
    history: Sequence[Epoch]
    answers: np.ndarray  # calibrated probabilities (utterances, classes), or scores (utterances, 1)
    scores: Mapping[str, float]  # by metric
    intervals: Mapping[str, Interval]  # by metric
    classes: ClassScores | None  # None where there are none
    heads: Mapping[str, Mapping[str, float]]  # scores of the other heads, by head and metric
    calibration: Calibration | None  # of the temperature of validation; None of scores


@dataclass(frozen=True)
class Summary:
    """One metric over all seeds."""

    mean: float
    std: float | None  # of the sample; None for a single seed
    interval: Interval  # of the mean: other conversations, the same models
    floor: float  # of always giving the one answer that suits train best
    validation: float  # mean over seeds


@dataclass(frozen=True)
class Evaluation:
    """All models of one folder on the test split."""

    features: str  # hash of the feature file that was scored
    params: EvaluateParams
    task: Task
    labels: Sequence[str]
    ids: Sequence[str]  # utterances
    conversations: Sequence[str]  # of each utterance
    true: np.ndarray  # (utterances,), labels, -1 = unlabelled, or scores, nan = none
    seeds: Sequence[SeedScores]
    summaries: Mapping[str, Summary]  # of the models as a whole, by metric
    heads: Mapping[str, Mapping[str, Summary]]  # of the heads inside them, by head and metric

    @property
    def counted(self) -> np.ndarray:
        """(utterances,) boolean: which are scored."""
        return self.task.counted(self.true)


def evaluate(
    features: Features, models: Path, params: EvaluateParams, device: torch.device, memory: Memory = "auto"
) -> Evaluation:
    """Score every seed in the folder `models` on the test split of `features`.

    Raises:
        ModelError: a model cannot be loaded, or was trained on other encoders or labels.
        FeatureError: there is no test split, or nothing in it has a label, or a score.
    """
    loaded = load_seeds(models, device)
    for one in loaded:
        check_compatible(one, features)
    recipe = loaded[0].provenance.recipe
    task, split = find_task(recipe.train.target, len(features.label_names)), load_test(features, recipe, device, memory)
    predictions = [predict_heads(one.model, split, task) for one in loaded]
    tallies = {
        head: np.stack([split_tallies(task, split, answers[head]) for answers in predictions])
        for head in predictions[0]
    }  # by head: (seeds, conversations, sums)
    draws = {
        head: {name: bootstrap(sums, metric, params.resamples, params.seed) for name, metric in task.metrics.items()}
        for head, sums in tallies.items()
    }  # by head and metric: (seeds, resamples)
    seeds = [
        _seed_scores(index, one, task, split, predictions[index]["fused"], tallies, draws["fused"], params)
        for index, one in enumerate(loaded)
    ]
    floor = floor_of_train(task, split, features)
    summaries = {
        head: {name: _summary(head, name, seeds, draws[head][name], floor[name], params) for name in task.metrics}
        for head in tallies
    }
    return Evaluation(
        features=features.digest,
        params=params,
        task=task,
        labels=features.label_names,
        ids=split.ids,
        conversations=split.conversation_ids,
        true=task.truth(split).numpy(),
        seeds=seeds,
        summaries=summaries.pop("fused"),
        heads=summaries,
    )


def load_test(features: Features, recipe: Recipe, device: torch.device, memory: Memory) -> Split:
    """The test split as models of `recipe` are given it, in the `memory` for features; raises as `load_split`."""
    split = load_split(
        features,
        "test",
        modalities=recipe.model.modalities,
        audio_frames=recipe.model.audio_frames,
        target=recipe.train.target,
        device=device,
        resident=False,
    )
    return hold([split], memory_for_features(memory, device))[0]


def floor_of_train(task: Task, split: Split, features: Features) -> Mapping[str, float]:
    """Every metric on `split` of the answer that suits train best: picking the test split's own would be peeking."""
    train = np.array(features.utterances.splits) == "train"
    return floor_scores(task, task.truth(split).numpy(), task.truth(features.utterances)[train])


def _seed_scores(
    index: int,
    loaded: LoadedModel,
    task: Task,
    split: Split,
    answers: np.ndarray,
    tallies: Mapping[str, np.ndarray],
    draws: Mapping[str, np.ndarray],
    params: EvaluateParams,
) -> SeedScores:
    totals = {head: sums[index].sum(0) for head, sums in tallies.items()}
    heads = {head: compute_all(task.metrics, total) for head, total in totals.items()}
    temperature = loaded.provenance.temperature
    return SeedScores(
        provenance=loaded.provenance,
        history=loaded.history,
        answers=answers if temperature is None else calibrate(answers, temperature),
        scores=heads.pop("fused"),
        intervals={name: percentile_interval(drawn[index], params.confidence) for name, drawn in draws.items()},
        classes=task.by_class(totals["fused"]),
        heads=heads,
        calibration=task.calibration(task.truth(split).numpy(), answers, temperature),
    )


def _summary(
    head: str, name: str, seeds: Sequence[SeedScores], draws: np.ndarray, floor: float, params: EvaluateParams
) -> Summary:
    scores = [(seed.scores if head == "fused" else seed.heads[head])[name] for seed in seeds]
    return Summary(
        mean=float(np.mean(scores)),
        std=sample_std(scores),
        interval=percentile_interval(draws.mean(0), params.confidence),
        floor=floor,
        validation=float(np.mean([seed.provenance.validation[head][name] for seed in seeds])),
    )


def sample_std(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample, divisor n - 1; None for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
