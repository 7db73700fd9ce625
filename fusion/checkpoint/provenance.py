"""Where a model comes from: what its config.json says besides the constructor arguments, with what its splits hold and
how sure scores on them are.
"""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from fusion.data import Split
from fusion.inference import score_answers, split_tallies
from fusion.objective import Calibration, Interval, Task, bootstrap, percentile_interval
from fusion.params import LossParams, ModelParams, Recipe, TrainParams, own_params
from pipeline.settings import check_section
from pipeline.store import MODALITIES, CorpusNote, Features, Identity

RESAMPLES, CONFIDENCE, SEED = 1000, 0.95, 0  # of conversations; for a card alone, section `evaluate` is for results


@dataclass(frozen=True)
class SplitCounts:
    """What a split holds, as the model was given it."""

    conversations: int
    utterances: int
    audio: int  # utterances that have it
    text: int
    counted: int  # utterances with a label, or a score, whichever is learned
    labels: Mapping[str, int]  # utterances by label; none where scores are learned


def count_split(split: Split, task: Task, labels: Sequence[str]) -> SplitCounts:
    """The counts of `split`, whose classes are called `labels`."""
    truth = task.truth(split)
    counted = truth[task.counted(truth)]
    by_label = np.bincount(counted, minlength=len(labels)).tolist() if task.target == "label" else []
    return SplitCounts(
        conversations=len(split.conversations) - 1,
        utterances=len(split.ids),
        audio=int((split.audio.lengths > 0).sum()),
        text=int((split.text.lengths > 0).sum()),
        counted=len(counted),
        labels=dict(zip(labels, by_label, strict=True)) if by_label else {},
    )


def score_intervals(task: Task, split: Split, answers: Mapping[str, np.ndarray]) -> dict[str, dict[str, Interval]]:
    """Percentile intervals over whole conversations of every metric of what every head answers, by head and metric."""

    def interval(tallies: np.ndarray, metric: str) -> Interval:
        return percentile_interval(bootstrap(tallies, task.metrics[metric], RESAMPLES, SEED), CONFIDENCE)

    tallies = {head: split_tallies(task, split, answer) for head, answer in answers.items()}
    return {head: {metric: interval(sums, metric) for metric in task.metrics} for head, sums in tallies.items()}


MARK = 12  # hexadecimal digits that stand for a conversation


def mark_conversations(features: Features, splits: Collection[str], modalities: Collection[str]) -> dict[str, str]:
    """Conversation -> a hash of its name and of its features of these `modalities`, of all in `splits`."""
    parts = [part for name in modalities if (part := getattr(features, name)) is not None]
    table, found = features.utterances, dict[str, Any]()
    with_rows = np.any([np.diff(part.offsets) > 0 for part in parts], axis=0)  # without, only its name would tell
    for index, (split, conversation) in enumerate(zip(table.splits, table.conversations, strict=True)):
        if split in splits and with_rows[index]:
            digest = found.setdefault(conversation, hashlib.sha256(conversation.encode()))
            digest.update(b"".join(part.checksums[index].tobytes() for part in parts))
    return {conversation: digest.hexdigest()[:MARK] for conversation, digest in found.items()}


VERSION = version("erc-fusion")


@dataclass(frozen=True)
class Gain:
    """A model minus the linear reference, on validation, by the metric that selects."""

    linear: str  # what it is the mean of
    mean: float
    interval: Interval  # over conversations, for the same models


def measure_gain(task: Task, split: Split, metric: str, answers: np.ndarray, linear: str, others: np.ndarray) -> Gain:
    """Of a model that gives `answers` over the linear one that gives `others`: a paired bootstrap of conversations."""
    draws = [
        bootstrap(split_tallies(task, split, one), task.metrics[metric], RESAMPLES, SEED) for one in (answers, others)
    ]
    scores = [score_answers(task, split, one)[metric] for one in (answers, others)]
    return Gain(linear, scores[0] - scores[1], percentile_interval(draws[0] - draws[1], CONFIDENCE))


@dataclass(frozen=True)
class Provenance:
    """What a model was trained on, with and for, and how well it did on validation."""

    recipe: Recipe
    seed: int
    labels: tuple[str, ...]  # none where it tells scores
    audio: Identity | None  # encoder of the features that it was given; None where that modality was withheld
    text: Identity | None
    features: str  # hash of the feature file
    fingerprint: str  # of everything that decides the weights
    selected: Mapping[str, int]  # `<stage>.<head>` -> the epoch whose weights that head has
    validation: Mapping[str, Mapping[str, float]]  # scores by head and metric
    calibration: Calibration | None  # of the model as a whole on validation; None where it tells scores
    corpus: CorpusNote | None = None  # what the feature file says of the data
    data: Mapping[str, SplitCounts] = field(default_factory=dict)  # train and validation
    intervals: Mapping[str, Mapping[str, Interval]] = field(
        default_factory=dict
    )  # of `validation`, see fusion.checkpoint.provenance
    source: str | None = None  # hash of the files of a model that plugs in
    references: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # validation scores to hold it against
    gain: Gain | None = None  # against the linear reference
    learned: tuple[str, ...] = ()  # marks of the conversations that it learned from, train and validation
    unlearned: tuple[str, ...] = ()  # what shows that nothing was learned, `signs_of_no_learning`
    version: str = VERSION

    @property
    def temperature(self) -> float | None:
        """What calibrates the probabilities (`fusion.objective.calibrate`); None where it tells scores."""
        return self.calibration.temperature if self.calibration else None

    @property
    def given(self) -> tuple[str, ...]:
        """The modalities that were not withheld from it; it may look at one of them alone."""
        return tuple(name for name in MODALITIES if getattr(self, name) is not None)

    @property
    def chosen(self) -> str:
        """The epochs whose weights are kept, in words: of each head in each stage, where there are several."""
        if len(self.selected) == 1:
            return f"epoch {next(iter(self.selected.values()))}"
        named = [(*where.rpartition("."), epoch) for where, epoch in self.selected.items()]
        return ", ".join(f"{head} in stage {stage}: epoch {epoch}" for stage, _, head, epoch in named)

    def to_json(self) -> dict[str, Any]:
        """Plain values; the inverse of `provenance_from_json`."""
        return {
            "model": self.recipe.model.name,
            "seed": self.seed,
            "labels": list(self.labels),
            "audio": dict(self.audio.fields) if self.audio else None,
            "text": dict(self.text.fields) if self.text else None,
            "params": self.recipe.to_json(),
            "features": self.features,
            "fingerprint": self.fingerprint,
            "selected": dict(self.selected),
            "validation": {head: dict(scores) for head, scores in self.validation.items()},
            "calibration": asdict(self.calibration) if self.calibration else None,
            "corpus": self.corpus.to_json() if self.corpus else None,
            "data": {split: asdict(counts) for split, counts in self.data.items()},
            "intervals": {
                head: {metric: asdict(interval) for metric, interval in own.items()}
                for head, own in self.intervals.items()
            },
            "source": self.source,
            "references": {name: dict(scores) for name, scores in self.references.items()},
            "gain": asdict(self.gain) if self.gain else None,
            "learned": " ".join(self.learned),
            "unlearned": list(self.unlearned),
            "version": self.version,
        }


def provenance_from_json(content: Mapping[str, Any], path: Path) -> Provenance:
    """The inverse of `Provenance.to_json`; `path` leads the messages.

    Raises:
        SettingsError: this version does not know or accept a parameter, or the model is a plug-in that nobody here has
            named.
        KeyError, TypeError, AttributeError, ValueError: `content` is something else.
    """
    _check(content)
    params = content["params"]
    train = params["train"] | {"seeds": [content["seed"]]}
    recipe = Recipe(
        check_section(params["model"], "model", ModelParams, str(path)),
        check_section(params["loss"], "loss", LossParams, str(path)),
        check_section(train, "train", TrainParams, str(path)),
    )
    own_params(recipe.model, str(path), trusted=False)
    return Provenance(
        recipe=recipe,
        seed=content["seed"],
        labels=tuple(content["labels"]),
        audio=_identity(content["audio"]),
        text=_identity(content["text"]),
        features=content["features"],
        fingerprint=content["fingerprint"],
        selected=content["selected"],
        validation=content["validation"],
        calibration=None if content["calibration"] is None else Calibration(**content["calibration"]),
        corpus=None if content["corpus"] is None else CorpusNote.from_json(content["corpus"]),
        data={split: SplitCounts(**counts) for split, counts in content["data"].items()},
        intervals={
            head: {metric: Interval(**interval) for metric, interval in own.items()}
            for head, own in content["intervals"].items()
        },
        source=content.get("source"),
        references=content.get("references", {}),
        gain=_gain(content.get("gain")),
        learned=tuple(content.get("learned", "").split()),
        unlearned=tuple(content.get("unlearned", ())),
        version=content["version"],
    )


def _check(content: Mapping[str, Any]) -> None:
    """Raise ValueError where a value is of a kind that would be noticed only by whoever uses it."""
    labels, calibration = content["labels"], content["calibration"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError("labels are not a list of names")
    if len(set(labels)) < len(labels):
        raise ValueError("a label is there twice")
    if calibration is not None and not 0 < float(calibration["temperature"]) < math.inf:
        raise ValueError(f"a temperature of {calibration['temperature']}")
    if not all(isinstance(content[name], dict | None) for name in ("audio", "text")):
        raise ValueError("an encoder is no group of keys and values")


def _gain(fields: Mapping[str, Any] | None) -> Gain | None:
    return None if fields is None else Gain(fields["linear"], fields["mean"], Interval(**fields["interval"]))


def _identity(fields: Mapping[str, Any] | None) -> Identity | None:
    return None if fields is None else Identity(fields)
