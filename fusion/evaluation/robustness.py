"""How scores fall when the test split gets worse: word errors, noise, a modality that is missing. Any model.

A study is a ladder of levels that begins with the clean split. Degraded features come as part files of the test split
(pipeline-degrade makes them): the field `input` of a part's identity names its study and level, and the rest of the
identity must be that of the features that the model knows. Missing modalities need no file: for each share, audio (or
text) is withheld from that share of the utterances, chosen by the seed and their ids, a larger share holding a smaller
one. Nothing is asked of a model but `predict`.

Models, seeds and bootstrap draws are the same at every level, so the change against clean is taken draw by draw: its
interval is of the change itself, and narrower than those of the two scores suggest.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion.data import Ragged, Split, map_rows
from fusion.errors import FeatureError
from fusion.evaluation.scores import Evaluation, Tested, load_test, sample_std, score_test
from fusion.inference import predict, split_tallies
from fusion.objective import Interval, Task, bootstrap, percentile_interval
from fusion.params import EvaluateParams, ModelParams
from fusion.runtime import Memory
from pipeline.store import Features, Identity, Part, read_part, source_digest

WORDS, RECOGNISER, NOISE = "word-errors", "recogniser", "noise"
MISSING_AUDIO, MISSING_TEXT = "missing-audio", "missing-text"
CLEAN = {WORDS: 0.0, RECOGNISER: 0.0, NOISE: math.inf, MISSING_AUDIO: 0.0, MISSING_TEXT: 0.0}  # the untouched split
CONTENT_KEY = re.compile(r"([0-9a-f]{32})?")  # what a part calls what it encoded, where it is no import or copy
MODALITY = {WORDS: "text", RECOGNISER: "text", NOISE: "audio", MISSING_AUDIO: "audio", MISSING_TEXT: "text"}


@dataclass(frozen=True)
class Score:
    """One metric over all seeds at one level."""

    mean: float
    std: float | None  # of the sample; None for a single seed
    interval: Interval  # of the mean: other conversations, the same models
    change: float  # of the mean against the clean split
    change_interval: Interval


@dataclass(frozen=True)
class Level:
    """One level of a study."""

    study: str  # a name in CLEAN
    level: float | None  # chance of a word error, dB, share of utterances; None: the recogniser has none
    word_error_rate: float | None  # as measured; of studies of words
    scores: Mapping[str, Score]  # by metric


@dataclass(frozen=True)
class Robustness:
    """All studies of the models of one folder."""

    task: Task
    metric: str  # that training selected on
    floor: Mapping[str, float]  # by metric, of always giving the one answer that suits train best
    confidence: float
    levels: Sequence[Level]  # study by study, clean first, then ever worse
    parts: Mapping[str, Part]  # the degraded features, by the name of their file


@dataclass(frozen=True, eq=False)
class Condition:
    """A level before it is scored."""

    study: str
    level: float | None
    word_error_rate: float | None
    split: Split


def read_degraded(folder: Path | None, features: Features) -> dict[str, Part]:
    """The part files in `folder`, by name; None: in `degraded` beside the feature file, where there is such a folder.

    Raises:
        StoreError: a file is damaged or unfinished.
        FeatureError: there is no such folder, or a file in it does not belong to `features`: other utterances,
            another encoder, other recordings.
    """
    if folder is not None and not folder.is_dir():
        raise FeatureError(f"{folder}: no such folder; write it with pipeline-degrade, or leave --degraded out")
    folder = folder or features.path.parent / "degraded"
    parts = {path.name: read_part(path) for path in sorted(folder.glob("*.h5"))}
    for part in parts.values():
        _check_part(part, features)
    return parts


def _check_part(part: Part, features: Features) -> None:
    fix = "run pipeline-degrade again (or dvc repro), or name another folder with --degraded"
    given = part.identity.fields.get("input")
    study = given.get("study") if isinstance(given, dict) else None
    if study not in (WORDS, RECOGNISER, NOISE):
        raise FeatureError(f"{part.path}: not degraded features of a study that is known here; {fix}")
    modality = MODALITY[study]
    clean: Part | None = getattr(features, modality)
    if clean is None:
        raise FeatureError(f"{part.path}: degraded {modality}, but {features.path} holds no {modality}; {fix}")
    encoder = Identity({key: value for key, value in part.identity.fields.items() if key != "input"})
    if encoder != clean.identity:
        raise FeatureError(f"{part.path}: {modality} of another encoder or precision than {features.path}; {fix}")
    test = np.flatnonzero(np.array(features.utterances.splits) == "test")
    if part.ids != [features.utterances.ids[index] for index in test]:
        raise FeatureError(f"{part.path}: other utterances than the test split of {features.path}; {fix}")
    sources = [] if clean.sources is None else [clean.sources[index] for index in test]
    of = given.get("of") if isinstance(given, dict) and all(map(CONTENT_KEY.fullmatch, sources)) else None
    if of and sources and of != source_digest(sources):
        what = "texts" if modality == "text" else "recordings"
        raise FeatureError(f"{part.path}: made from other {what} than {features.path}; {fix}")
    if study == NOISE and not np.array_equal(np.diff(part.offsets), np.diff(clean.offsets)[test]):
        raise FeatureError(f"{part.path}: recordings of other lengths than those of {features.path}; {fix}")


def evaluate_all(
    features: Features,
    models: Path,
    params: EvaluateParams,
    degraded: Mapping[str, Part],
    device: torch.device,
    memory: Memory = "auto",
) -> tuple[Evaluation, Robustness]:
    """Score every seed in the folder `models` on the test split as it is, and at every level of every study.

    Models and split are loaded once.

    Args:
        degraded: as `read_degraded` returns them.
        memory: for the clean features (`train.memory`); degraded ones stay in their files.

    Raises:
        ModelError, FeatureError: as `fusion.evaluation.evaluate`.
    """
    tested = load_test(features, models, device, memory)
    return score_test(tested, params), measure_robustness(tested, params, degraded)


def measure_robustness(tested: Tested, params: EvaluateParams, degraded: Mapping[str, Part]) -> Robustness:
    """Every seed at every level of every study; `degraded` as `read_degraded` returns them.

    Studies of a modality that the models are not given are left out: nothing would change.
    """
    model = tested.recipe.model
    parts = {name: part for name, part in degraded.items() if _is_given(_input(part)["study"], model)}
    return Robustness(
        task=tested.task,
        metric=tested.recipe.train.metric,
        floor=tested.floor,
        confidence=params.confidence,
        levels=list(_score(tested, _conditions(tested.split, model, params, parts), params)),
        parts=parts,
    )


def _is_given(study: str, model: ModelParams) -> bool:
    return model.modalities in ("both", MODALITY[study])


def _input(part: Part) -> Mapping[str, Any]:
    return part.identity.fields["input"]


def _conditions(
    split: Split, model: ModelParams, params: EvaluateParams, parts: Mapping[str, Part]
) -> Iterator[Condition]:
    """Every level of every study, the clean one first and the others ever worse; one at a time, as splits are large."""
    for study in (WORDS, RECOGNISER, NOISE):
        asked = [part for part in parts.values() if _input(part)["study"] == study]
        if asked:
            yield Condition(study, CLEAN[study], None if study == NOISE else 0.0, split)
        for part in sorted(asked, key=lambda part: _severity(_input(part))):
            yield _degraded(split, part, study, model.audio_frames)
    for study in (MISSING_AUDIO, MISSING_TEXT):
        if params.missing and _is_given(study, model):
            yield Condition(study, CLEAN[study], None, split)
            for share in sorted(params.missing):
                yield withhold(split, study, share, params.seed)


def _severity(given: Mapping[str, Any]) -> float:
    level = float(given.get("level") or 0.0)
    return -level if given["study"] == NOISE else level


def _degraded(split: Split, part: Part, study: str, audio_frames: int) -> Condition:
    """The split with one modality from `part`."""
    given, modality = _input(part), MODALITY[study]
    limit = audio_frames if modality == "audio" else None
    rows = map_rows(part, 0, len(part.ids), limit, split.device)  # read once by each model: they stay in the file
    errors = given["edits"] / given["words"] if given.get("words") else None
    return Condition(study, given.get("level"), errors, _with(split, modality, rows))


def _with(split: Split, modality: str, rows: Ragged) -> Split:
    changes: dict[str, Any] = {modality: rows}
    return replace(split, **changes)


def withhold(split: Split, study: str, share: float, seed: int) -> Condition:
    """The split with one modality withheld from `share` of the utterances."""
    modality = MODALITY[study]
    missing = torch.zeros(len(split.ids), dtype=torch.bool)
    missing[_order(split.ids, seed)[: round(share * len(split.ids))]] = True
    return Condition(study, share, None, _with(split, modality, getattr(split, modality).without(missing)))


def _order(ids: Sequence[str], seed: int) -> list[int]:
    """Indices in the order in which utterances lose a modality: what befalls one does not depend on the others."""
    return sorted(range(len(ids)), key=lambda index: hashlib.sha256(f"{seed}\0{ids[index]}".encode()).digest())


@dataclass(frozen=True)
class _Point:
    """One metric at one level."""

    seeds: Sequence[float]
    draws: np.ndarray  # (resamples,), means over seeds


def _against(point: _Point, clean: _Point, confidence: float) -> Score:
    return Score(
        mean=float(np.mean(point.seeds)),
        std=sample_std(point.seeds),
        interval=percentile_interval(point.draws, confidence),
        change=float(np.mean(point.seeds) - np.mean(clean.seeds)),
        change_interval=percentile_interval(point.draws - clean.draws, confidence),
    )


def _points(task: Task, tallies: np.ndarray, params: EvaluateParams) -> dict[str, _Point]:
    """Every metric on one split, from tallies (seeds, conversations, sums)."""
    return {
        name: _Point(metric(tallies.sum(1)).tolist(), bootstrap(tallies, metric, params.resamples, params.seed).mean(0))
        for name, metric in task.metrics.items()
    }


def _score(tested: Tested, conditions: Iterator[Condition], params: EvaluateParams) -> Iterator[Level]:
    task, clean = tested.task, _points(tested.task, tested.tallies["fused"], params)
    for condition in conditions:
        points = clean
        if condition.split is not tested.split:
            answers = [predict(one.model, condition.split, task) for one in tested.models]
            tallies = np.stack([split_tallies(task, condition.split, one) for one in answers])
            points = _points(task, tallies, params)
        scores = {name: _against(points[name], clean[name], params.confidence) for name in points}
        yield Level(condition.study, condition.level, condition.word_error_rate, scores)
