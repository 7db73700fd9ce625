"""Score the models of all seeds on the test split.

The split is read by `load_test`, once for all that an evaluation does (`fusion.evaluation.evaluate_all`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from fusion.checkpoint import LoadedModel, Provenance, check_compatible, load_seeds, mark_conversations
from fusion.data import Split, hold, load_for, refuse_learned
from fusion.errors import ModelError
from fusion.inference import count_beyond, ensemble, predict_heads, split_tallies
from fusion.linear import LinearReference, fit_linear
from fusion.objective import (
    HIGHEST,
    METRICS,
    Calibration,
    ClassScores,
    Epoch,
    Interval,
    Sample,
    Task,
    calibrate,
    chance_scores,
    compute_all,
    draw_sample,
    estimate_interval,
    find_task,
    floor_scores,
    measure_spread,
    percentile_interval,
)
from fusion.params import EvaluateParams, Recipe
from fusion.runtime import Memory, memory_for_features
from fusion.tables import bounds, number_of
from pipeline.store import Contents, Features, split_copies

FITTED = ("train", "validation")

FEW_CONVERSATIONS = 10  # below, 95 % intervals of draws hold less than 90 % (docs/protocol.md)


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
    chance: float  # of answers drawn as those of train are distributed
    validation: float  # mean over seeds


@dataclass(frozen=True)
class Change:
    """The mean over seeds minus something else on the same conversations."""

    mean: float
    interval: Interval  # over conversations and seeds


@dataclass(frozen=True)
class Beside:
    """What the models of single seeds are held against: their ensemble, or a linear model."""

    name: str
    answers: np.ndarray  # probabilities (utterances, classes), or scores (utterances, 1)
    scores: Mapping[str, float]  # by metric, as all that follows
    intervals: Mapping[str, Interval]  # of other conversations
    changes: Mapping[str, Change]
    validation: Mapping[str, float]  # none of an ensemble
    calibration_error: float | None  # expected one, on the test split; None of scores


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
    ensemble: Beside  # the seeds together
    linear: Sequence[Beside]  # *the* linear reference, and what it is the mean of; none without train and validation
    constant: Beside  # the one answer that suits train best, whose scores are the floor
    copies: Sequence[str]  # a sentence where the test split holds what train or validation holds, too
    beyond: str  # a sentence on values far outside the range of train; "" where there are none

    @property
    def warnings(self) -> list[str]:
        """Sentences on what a reader must not overlook; none where there is nothing."""
        return [
            *self._unlearned(),
            *(f"{line}." for line in self.copies),
            *self._few_conversations(),
            *self._other_scale(),
            *filter(None, [self.beyond]),
            *self._at_the_floor(),
            *self._against_linear(),
        ]

    @property
    def metric(self) -> str:
        """The one that training selected on."""
        return self.seeds[0].provenance.recipe.train.metric

    def _unlearned(self) -> list[str]:
        signs = {one.provenance.seed: one.provenance.unlearned for one in self.seeds if one.provenance.unlearned}
        return [f"Seed {seed} has not learned: {'; '.join(found)}." for seed, found in signs.items()]

    def _few_conversations(self) -> list[str]:
        count = len({one for one, counted in zip(self.conversations, self.counted, strict=True) if counted})
        if count >= FEW_CONVERSATIONS:
            return []
        return [
            f"Only {number_of(count, 'conversation')} of the test split can be scored: intervals, which draw whole "
            "conversations, are too narrow with so few. fusion-folds tests on every conversation once."
        ]

    def _other_scale(self) -> list[str]:
        known = self.true[self.counted]
        if self.task.target == "label" or (known.min() <= 0 and np.abs(known).max() <= HIGHEST):
            return []
        return [
            f"Scores are from {known.min():g} to {known.max():g}: acc-2, acc-7 and F1, which are for scores from -3 to "
            "3 with 0 in the middle, say nothing of them."
        ]

    def _at_the_floor(self) -> list[str]:
        name, one, lower = self.metric, self.summaries[self.metric], METRICS[self.metric].lower_is_better
        best = (min if lower else max)(one.floor, one.chance)
        gain = self.constant.changes[self.metric]
        if best == one.floor:  # held against it on the same draws: an outlier is one for both
            if gain.interval.high < 0 if lower else gain.interval.low > 0:
                return []
            return [
                f"The interval of {name} minus that of always giving {self.task.floor_is}, "
                f"{bounds(gain.interval, signed=True)}, does not exclude 0: nothing shows that more was learned."
            ]
        if one.interval.high < best if lower else one.interval.low > best:
            return []
        what = self.task.chance_is
        return [
            f"The interval of {name}, {bounds(one.interval)}, does not exclude {best:z.3f}, which {what} would give: "
            "nothing shows that more was learned."
        ]

    def _against_linear(self) -> list[str]:
        if not self.linear:
            return []
        reference, own = self.linear[0], self.summaries[self.metric]
        change = reference.changes[self.metric]
        better, worse = change.interval.low > 0, change.interval.high < 0
        if METRICS[self.metric].lower_is_better:
            better, worse = worse, better
        if better:
            return []
        above = (change.mean < 0) if METRICS[self.metric].lower_is_better else (change.mean > 0)
        said = "is worse than" if worse else "is not clearly better than" if above else "is no better than"
        return [
            f"The model {said} the linear reference: {self.metric} {own.mean:z.3f} against "
            f"{reference.scores[self.metric]:z.3f}, difference {change.mean:+z.3f} "
            f"({bounds(change.interval, signed=True)})."
        ]

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
    def constant(self) -> np.ndarray:
        """The answer that suits train best, for every utterance: (utterances, classes), or (utterances, 1)."""
        return np.tile(self.task.constant(self._train_truth), (len(self.split.ids), 1))

    @cached_property
    def floor(self) -> Mapping[str, float]:
        """Every metric of the answer that suits train best: picking the test split's own would be peeking."""
        return floor_scores(self.task, self.task.truth(self.split).numpy(), self._train_truth)

    @cached_property
    def chance(self) -> Mapping[str, float]:
        """Every metric of answers drawn as those of train are distributed."""
        return chance_scores(self.task, self.task.truth(self.split).numpy(), self._train_truth)

    @property
    def _train_truth(self) -> np.ndarray:
        train = np.array(self.features.utterances.splits) == "train"
        found: np.ndarray = self.task.truth(self.features.utterances)[train]
        return found

    @cached_property
    def linear(self) -> LinearReference | None:
        """Fitted on train, weighted on validation, then fitted on both; None where the file lacks one of these."""
        if not {"train", "validation"} <= {*self.features.utterances.splits}:
            return None
        train, validation = (load_for(self.features, self.recipe, name, torch.device("cpu")) for name in FITTED)
        return fit_linear(train, validation, self.recipe, len(self.features.label_names))


def load_test(features: Features, models: Path, device: torch.device, memory: Memory = "auto") -> Tested:
    """Every seed in the folder `models`, and the test split as they are given it, in the `memory` for features.

    Raises:
        ModelError: a model cannot be loaded, was trained on other encoders or labels, or learned from conversations of
            the test split.
        FeatureError: there is no test split, or nothing in it has a label, or a score, or an encoder was fine-tuned on
            it.
    """
    loaded = load_seeds(models, device)
    for one in loaded:
        check_compatible(one, features)
        _refuse_known(one, features)
    tested = np.array(features.utterances.splits) == "test"
    refuse_learned(features, loaded[0].provenance.given, tested, "fine-tune it again on this split, then encode again")
    recipe = loaded[0].provenance.recipe
    split = load_for(features, recipe, "test", device)
    task = find_task(recipe.train.target, len(features.label_names))
    return Tested(features, loaded, task, hold([split], memory_for_features(memory, device))[0])


def _refuse_known(loaded: LoadedModel, features: Features) -> None:
    """Raise ModelError where the test split holds what the model learned from, as with the models of another fold."""
    test = mark_conversations(features, ["test"], loaded.provenance.given)
    learned = set(loaded.provenance.learned)
    known = [conversation for conversation, mark in test.items() if mark in learned]
    if known:
        raise ModelError(
            f"{loaded.folder}: learned from {len(known)} of the {number_of(len(test), 'conversation')} of the test "
            f"split of {features.path}, such as '{known[0]}', so scores on it would say nothing of others; evaluate it "
            "on the feature file (and split) that it was trained on, or train on this one"
        )


def evaluate(
    features: Features, models: Path, params: EvaluateParams, device: torch.device, memory: Memory = "auto"
) -> Evaluation:
    """Score every seed in the folder `models` on the test split of `features`; raises as `load_test`."""
    return score_test(load_test(features, models, device, memory), params)


def score_test(tested: Tested, params: EvaluateParams) -> Evaluation:
    """Every seed on the test split as it is."""
    task, split = tested.task, tested.split
    samples = {head: _draw(task, sums, params) for head, sums in tested.tallies.items()}  # by head and metric
    fused = samples["fused"]
    seeds = [_seed_scores(tested, index, fused, params.confidence) for index in range(len(tested.models))]
    summaries = {
        head: {name: _summary(tested, head, name, seeds, one, params.confidence) for name, one in by_metric.items()}
        for head, by_metric in samples.items()
    }
    together = ensemble(
        [answers["fused"] for answers in tested.answers], [one.provenance.temperature for one in tested.models]
    )
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
        ensemble=_beside(tested, "ensemble", together, {}, fused, params),
        linear=_score_linear(tested, fused, params),
        constant=_beside(tested, "constant", tested.constant, {}, fused, params),
        copies=split_copies(Contents.of(tested.features), tested.features.utterances.splits, ["test"]),
        beyond="" if tested.recipe.model.standardise == "robust" else str(count_beyond(tested.models[0].model, split)),
    )


def _speakers(tested: Tested) -> list[str]:
    known = dict(zip(tested.features.utterances.ids, tested.features.utterances.speakers, strict=True))
    return [known[utterance] for utterance in tested.split.ids]


def _draw(task: Task, tallies: np.ndarray, params: EvaluateParams) -> dict[str, Sample]:
    """By metric; `tallies` (seeds, conversations, sums)."""
    return {name: draw_sample(tallies, metric, params.resamples, params.seed) for name, metric in task.metrics.items()}


def _score_linear(tested: Tested, models: Mapping[str, Sample], params: EvaluateParams) -> list[Beside]:
    """The reference first; behind it the linear models that it is the mean of, if there are several."""
    reference = tested.linear
    if reference is None:
        return []
    answers = reference.answer_all(tested.split)
    rows = [(reference.name, reference.join(answers), reference.scores)]
    if len(reference.fitted) > 1:
        rows += [
            (f"{one.name}, weight {share:.2f}", answers[one.variant.name], one.scores)
            for share, one in zip(reference.shares, reference.fitted, strict=True)
        ]
    return [_beside(tested, f"linear, {name}", said, scores, models, params) for name, said, scores in rows]


def _beside(
    tested: Tested,
    name: str,
    answers: np.ndarray,
    validation: Mapping[str, float],
    models: Mapping[str, Sample],
    params: EvaluateParams,
) -> Beside:
    """`models` are the seeds on the same draws, by metric."""
    samples = _draw(tested.task, split_tallies(tested.task, tested.split, answers)[None], params)
    calibration = tested.task.calibration(tested.task.truth(tested.split).numpy(), answers, 1.0)
    return Beside(
        name=name,
        answers=answers,
        scores={metric: float(one.scores[0]) for metric, one in samples.items()},
        intervals={metric: percentile_interval(one.draws[0], params.confidence) for metric, one in samples.items()},
        changes={metric: _change(metric, models[metric], one, params.confidence) for metric, one in samples.items()},
        validation=validation,
        calibration_error=calibration.after if calibration else None,
    )


def _change(metric: str, sample: Sample, other: Sample, confidence: float) -> Change:
    lowest, highest = METRICS[metric].bounds
    reach = highest - lowest
    mean = float(sample.scores.mean() - other.scores.mean())
    return Change(mean, estimate_interval(mean, measure_spread(sample, other), confidence, (-reach, reach)))


def _seed_scores(tested: Tested, index: int, samples: Mapping[str, Sample], confidence: float) -> SeedScores:
    """The model with this index; `samples` of all by metric."""
    task, loaded, answers = tested.task, tested.models[index], tested.answers[index]["fused"]
    totals = {head: sums[index].sum(0) for head, sums in tested.tallies.items()}
    heads = {head: compute_all(task.metrics, total) for head, total in totals.items()}
    temperature = loaded.provenance.temperature
    return SeedScores(
        provenance=loaded.provenance,
        history=loaded.history,
        answers=answers if temperature is None else calibrate(answers, temperature),
        scores=heads.pop("fused"),
        intervals={name: percentile_interval(one.draws[index], confidence) for name, one in samples.items()},
        classes=task.by_class(totals["fused"]),
        heads=heads,
        calibration=task.calibration(task.truth(tested.split).numpy(), answers, temperature),
    )


def _summary(
    tested: Tested, head: str, name: str, seeds: Sequence[SeedScores], sample: Sample, confidence: float
) -> Summary:
    scores = [(seed.scores if head == "fused" else seed.heads[head])[name] for seed in seeds]
    return Summary(
        mean=float(np.mean(scores)),
        std=sample_std(scores),
        interval=percentile_interval(sample.draws.mean(0), confidence),
        floor=tested.floor[name],
        chance=tested.chance[name],
        validation=float(np.mean([seed.provenance.validation[head][name] for seed in seeds])),
    )


def sample_std(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample, divisor n - 1; None for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
