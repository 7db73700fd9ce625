"""Score the models of all seeds on the test split.

The split is read by `load_test`, once for all that an evaluation does (`fusion.evaluation.evaluate_all`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
    speakers: Sequence[str]  # likewise; "" where none is known
    true: np.ndarray  # (utterances,), labels, -1 = unlabelled, or scores, nan = none
    seeds: Sequence[SeedScores]
    summaries: Mapping[str, Summary]  # of the models as a whole, by metric
    heads: Mapping[str, Mapping[str, Summary]]  # of the heads inside them, by head and metric

    @property
    def counted(self) -> np.ndarray:
        """(utterances,) boolean: which are scored."""
        return self.task.counted(self.true)


@dataclass(frozen=True, eq=False)
class Tested:
    """The trained models of one folder, and the test split that they are scored on; `load_test` reads both.

    What the models say of the split as it is gets computed when it is first asked for, once for everyone who asks.
    """

    features: Features
    models: Sequence[LoadedModel]  # one a seed
    task: Task
    split: Split

    @property
    def recipe(self) -> Recipe:
        """That of the models, but for their seeds."""
        return self.models[0].provenance.recipe

    @cached_property
    def answers(self) -> list[dict[str, np.ndarray]]:
        """Of each model, by head, not calibrated: as of `predict_heads`."""
        return [predict_heads(one.model, self.split, self.task) for one in self.models]

    @cached_property
    def tallies(self) -> dict[str, np.ndarray]:
        """(seeds, conversations, sums) by head."""
        return {
            head: np.stack([split_tallies(self.task, self.split, answers[head]) for answers in self.answers])
            for head in self.answers[0]
        }

    @cached_property
    def floor(self) -> Mapping[str, float]:
        """Every metric of the answer that suits train best: picking the test split's own would be peeking."""
        train = np.array(self.features.utterances.splits) == "train"
        truth = self.task.truth(self.features.utterances)[train]
        return floor_scores(self.task, self.task.truth(self.split).numpy(), truth)


def load_test(features: Features, models: Path, device: torch.device, memory: Memory = "auto") -> Tested:
    """Every seed in the folder `models`, and the test split as they are given it, in the `memory` for features.

    Raises:
        ModelError: a model cannot be loaded, or was trained on other encoders or labels.
        FeatureError: there is no test split, or nothing in it has a label, or a score.
    """
    loaded = load_seeds(models, device)
    for one in loaded:
        check_compatible(one, features)
    recipe = loaded[0].provenance.recipe
    split = load_split(
        features,
        "test",
        modalities=recipe.model.modalities,
        audio_frames=recipe.model.audio_frames,
        target=recipe.train.target,
        device=device,
        resident=False,
    )
    task = find_task(recipe.train.target, len(features.label_names))
    return Tested(features, loaded, task, hold([split], memory_for_features(memory, device))[0])


def evaluate(
    features: Features, models: Path, params: EvaluateParams, device: torch.device, memory: Memory = "auto"
) -> Evaluation:
    """Score every seed in the folder `models` on the test split of `features`; raises as `load_test`."""
    return score_test(load_test(features, models, device, memory), params)


def score_test(tested: Tested, params: EvaluateParams) -> Evaluation:
    """Every seed on the test split as it is."""
    task, split = tested.task, tested.split
    draws = {
        head: {name: bootstrap(sums, metric, params.resamples, params.seed) for name, metric in task.metrics.items()}
        for head, sums in tested.tallies.items()
    }  # by head and metric: (seeds, resamples)
    seeds = [_seed_scores(tested, index, draws["fused"], params.confidence) for index in range(len(tested.models))]
    summaries = {
        head: {
            name: _summary(head, name, seeds, drawn, tested.floor[name], params.confidence)
            for name, drawn in by_metric.items()
        }
        for head, by_metric in draws.items()
    }
    return Evaluation(
        features=tested.features.digest,
        params=params,
        task=task,
        labels=tested.features.label_names,
        ids=split.ids,
        conversations=split.conversation_ids,
        speakers=_speakers(tested),
        true=task.truth(split).numpy(),
        seeds=seeds,
        summaries=summaries.pop("fused"),
        heads=summaries,
    )


def _speakers(tested: Tested) -> list[str]:
    known = dict(zip(tested.features.utterances.ids, tested.features.utterances.speakers, strict=True))
    return [known[utterance] for utterance in tested.split.ids]


def _seed_scores(tested: Tested, index: int, draws: Mapping[str, np.ndarray], confidence: float) -> SeedScores:
    """The model with this index; `draws` (seeds, resamples) by metric."""
    task, loaded, answers = tested.task, tested.models[index], tested.answers[index]["fused"]
    totals = {head: sums[index].sum(0) for head, sums in tested.tallies.items()}
    heads = {head: compute_all(task.metrics, total) for head, total in totals.items()}
    temperature = loaded.provenance.temperature
    return SeedScores(
        provenance=loaded.provenance,
        history=loaded.history,
        answers=answers if temperature is None else calibrate(answers, temperature),
        scores=heads.pop("fused"),
        intervals={name: percentile_interval(drawn[index], confidence) for name, drawn in draws.items()},
        classes=task.by_class(totals["fused"]),
        heads=heads,
        calibration=task.calibration(task.truth(tested.split).numpy(), answers, temperature),
    )


def _summary(
    head: str, name: str, seeds: Sequence[SeedScores], draws: np.ndarray, floor: float, confidence: float
) -> Summary:
    scores = [(seed.scores if head == "fused" else seed.heads[head])[name] for seed in seeds]
    return Summary(
        mean=float(np.mean(scores)),
        std=sample_std(scores),
        interval=percentile_interval(draws.mean(0), confidence),
        floor=floor,
        validation=float(np.mean([seed.provenance.validation[head][name] for seed in seeds])),
    )


def sample_std(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample, divisor n - 1; None for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
