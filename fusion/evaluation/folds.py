"""Folds of one study, joined: each tests other conversations, so that together they test all.

Two readings of the same predictions. *Over folds*: each fold is scored by itself, and the scores have a mean and a
standard deviation over folds, as papers that cross-validate print them. *Pooled*: the test utterances of all folds are
scored as one set, for each seed, with an interval that resamples the conversations of all folds (for the models that
were trained). Pooled scores have no trouble with labels that are rare in one fold.

Beside the models stands what each fold holds them against: their seeds as an ensemble, the linear reference (none where
a fold has none) and both floors.

A fold is a folder of results as `fusion-evaluate` writes it; nothing else is read, so features and models may be gone.

Written are, together or not at all, the same bytes for the same folds:

details.json      per metric: each fold, mean and standard deviation over folds, pooled with its interval; per class
predictions.csv   the predictions of all folds; `fold` names the folder that they come from
table.md          the same for readers
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fusion.errors import ResultError
from fusion.evaluation.predictions import COLUMNS, KNOWN, PROBABILITY, class_table, describe_classes
from fusion.evaluation.result_files import (
    AGAIN,
    RESULT,
    check_files,
    check_whole,
    find_run,
    hash_files,
    other_results,
    read_result,
)
from fusion.evaluation.scores import FEW_CONVERSATIONS, sample_std
from fusion.objective import (
    LABEL_METRICS,
    ClassScores,
    Interval,
    as_confusion,
    bootstrap,
    class_scores,
    conversation_confusions,
    percentile_interval,
)
from fusion.params import EvaluateParams
from fusion.runtime import replace_files, replacing
from fusion.tables import (
    bounds,
    csv_text,
    digested,
    escape_markdown,
    identified,
    json_text,
    markdown_table,
    mean_std,
    number_of,
    rounded,
    spread,
)
from pipeline.store import COPIED, UNLABELLED

SAME = ("model", "modalities", "params", "encoders", "seeds", "version")  # of what was run, in every fold


@dataclass(frozen=True)
class Fold:
    """What one evaluation predicted."""

    name: str  # of its folder
    run: Mapping[str, Any]  # what was run, `report.describe_run`
    labels: tuple[str, ...]
    ids: tuple[str, ...]  # utterances
    conversations: tuple[str, ...]  # of each utterance
    true: np.ndarray  # (utterances,), -1 = unlabelled
    predicted: np.ndarray  # (seeds, utterances)
    together: np.ndarray  # (1, utterances), what the seeds predict as an ensemble
    beside: Mapping[str, Mapping[str, float]]  # by name and metric: floor, chance, and linear where there is one
    header: tuple[str, ...]  # of predictions.csv
    rows: tuple[tuple[str, ...], ...]  # as they are there
    warnings: tuple[str, ...]  # of its own table


@dataclass(frozen=True)
class Score:
    """One metric."""

    folds: tuple[float, ...]  # of each fold, mean over seeds
    mean: float  # over folds
    std: float | None  # of the sample of folds
    pooled: float  # all folds as one set, mean over seeds
    pooled_std: float | None  # over seeds
    interval: Interval  # of the pooled score: other conversations, the same models
    ensemble: float  # pooled
    beside: Mapping[str, float]  # floor, chance, and linear where every fold has it: mean over folds


@dataclass(frozen=True)
class Joined:
    """All folds."""

    folds: Sequence[Fold]
    params: EvaluateParams
    scores: Mapping[str, Score]
    classes: ClassScores  # pooled, arrays of (seeds, classes)

    @property
    def warnings(self) -> list[str]:
        """Sentences on what a reader must not overlook: what has not learned in a fold, then of all folds together."""
        name, own = next(iter(self.scores.items()))
        found = [f"{one.name}: {line}" for one in self.folds for line in one.warnings if "has not learned" in line]
        copies = [f"{one.name}: {line}" for one in self.folds for line in one.warnings if COPIED in line]
        if copies:
            others = number_of(len(copies) - 1, "other fold")
            found.append(copies[0] + f" So it is in {others}." * (len(copies) > 1))
        scored = [(one.name, of) for one in self.folds for of, true in zip(one.conversations, one.true, strict=True)
                  if true != UNLABELLED]  # fmt: skip
        if (count := len(set(scored))) < FEW_CONVERSATIONS:
            found.append(
                f"Only {number_of(count, 'conversation')} can be scored: intervals are too narrow with so few."
            )
        floor = max(own.beside["floor"], own.beside["chance"])
        if own.interval.low <= floor:
            found.append(
                f"The interval of the pooled {name}, {bounds(own.interval)}, does not exclude the better floor, "
                f"{floor:z.3f}: nothing shows that more was learned."
            )
        if own.mean <= own.beside.get("linear", -np.inf):
            found.append(
                f"The models are no better than the linear reference: {name} {own.mean:z.3f} against "
                f"{own.beside['linear']:z.3f}, over folds."
            )
        return found


def join_folds(folders: Sequence[Path], params: EvaluateParams) -> Joined:
    """Read the folds in `folders` and score them.

    Raises:
        ResultError: there are fewer than two, results are missing or damaged, or they are not folds of one study: they
            share conversations, or differ in their labels or in what was run.
    """
    if len(folders) < 2:
        raise ResultError(f"{len(folders)} folder of results, but folds are joined: name two or more")
    folds = [read_fold(folder) for folder in folders]
    for fold in folds[1:]:
        _check_same_study(folds[0], fold)
    _check_apart(folds)
    single = [_tallies([fold]) for fold in folds]
    pooled = _tallies(folds)
    together = _tallies([replace(fold, predicted=fold.together) for fold in folds])[0].sum(0)
    scores = {name: _score(name, folds, single, pooled, together, params) for name in LABEL_METRICS}
    return Joined(folds, params, scores, class_scores(as_confusion(pooled.sum(1))))


def read_fold(folder: Path) -> Fold:
    """The fold in `folder`.

    Raises:
        ResultError: its predictions.csv or details.json is missing, damaged, or of another run than the other.
    """
    details = _read_details(folder / "details.json")
    path = folder / "predictions.csv"
    header, rows = _read_rows(path)
    labels = tuple(name.removeprefix(PROBABILITY) for name in header[len(COLUMNS) :] if name not in KNOWN)
    by_seed: dict[str, list[tuple[str, ...]]] = {}
    for row in rows:
        by_seed.setdefault(row[1], []).append(row)
    first = next(iter(by_seed.values()))
    if any([row[2:6] for row in group] != [row[2:6] for row in first] for group in by_seed.values()):
        raise ResultError(f"{path}: seeds {', '.join(by_seed)} do not list the same utterances; {AGAIN}")
    if {row[0] for row in rows} != {details["run"]["id"]}:
        raise ResultError(f"{path}: is not of run {details['run']['id']}, as details.json beside it; {AGAIN}")
    fold = Fold(
        name=folder.name,
        run=details["run"],
        labels=labels,
        ids=tuple(row[2] for row in first),
        conversations=tuple(row[3] for row in first),
        true=_positions([row[5] for row in first], [*labels, ""], path) if labels else np.empty(0, int),
        predicted=np.stack([_positions([row[6] for row in group], labels, path) for group in by_seed.values()]),
        together=_ensemble(list(by_seed.values()), len(labels), path),
        beside=_references(details),
        header=header,
        rows=tuple(rows),
        warnings=tuple(map(str, details["warnings"])),
    )
    check_files(folder, details["files"])  # last: what can be said more closely is
    check_whole(folder / "details.json", details)
    return fold


def _read_details(path: Path) -> Mapping[str, Any]:
    try:
        details: Mapping[str, Any] = json.loads(read_result(path))
        str(details["run"]["id"]), dict(details["files"]), list(details["warnings"])
        _references(details)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise ResultError(
            f"{path}: not the details of an evaluation of labels, which are all that is joined (for scores, "
            "fusion-folds --features makes folds of one feature file); if it is one, it is damaged: run "
            "fusion-evaluate again"
        ) from None
    return details


def _references(details: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What the models were held against, by name and metric."""
    floors = {
        name: {metric: float(details["test"][metric][name]) for metric in LABEL_METRICS} for name in ("floor", "chance")
    }
    if not details["linear"]:
        return floors
    reference = details["linear"][0]["test"]  # behind it is what it is the mean of
    return floors | {"linear": {metric: float(reference[metric]["value"]) for metric in LABEL_METRICS}}


def _read_rows(path: Path) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The header and the rows of predictions.csv, all as wide as it."""
    try:
        header, *rows = [tuple(row) for row in csv.reader(io.StringIO(read_result(path), newline=""), strict=True)]
    except (csv.Error, ValueError):
        raise ResultError(f"{path}: holds no table of predictions; {AGAIN}") from None
    labels = [name for name in header[len(COLUMNS) :] if name not in KNOWN]
    if header[: len(COLUMNS)] != COLUMNS or not labels or any(not name.startswith(PROBABILITY) for name in labels):
        raise ResultError(
            f"{path}: expected the columns {', '.join(COLUMNS)} and a probability of each label, "
            f"found {', '.join(header)}; {AGAIN}"
        )
    if not rows or any(len(row) != len(header) for row in rows):
        raise ResultError(f"{path}: truncated, or not a table of {len(header)} columns; {AGAIN}")
    return header, rows


def _positions(names: Sequence[str], labels: Sequence[str], path: Path) -> np.ndarray:
    """Positions in `labels`; that of "", which must be the last, is -1 = unlabelled."""
    known = {label: UNLABELLED if label == "" else position for position, label in enumerate(labels)}
    for name in names:
        if name not in known:
            raise ResultError(f"{path}: label '{name[:60]}' is none of {', '.join(labels)}; {AGAIN}")
    return np.array([known[name] for name in names])


def _ensemble(by_seed: Sequence[Sequence[tuple[str, ...]]], classes: int, path: Path) -> np.ndarray:
    """(1, utterances): the label of the highest mean probability."""
    columns = slice(len(COLUMNS), len(COLUMNS) + classes)
    try:
        probabilities = np.array([[row[columns] for row in rows] for rows in by_seed], float)
    except ValueError:
        raise ResultError(f"{path}: a probability is not a number; {AGAIN}") from None
    return probabilities.mean(0).argmax(1)[None]


def _check_same_study(first: Fold, fold: Fold) -> None:
    if fold.labels != first.labels:
        raise ResultError(
            f"{fold.name} has the labels {', '.join(fold.labels)}, but {first.name} has {', '.join(first.labels)}; "
            "join folds with the same labels"
        )
    for key in SAME:
        if fold.run.get(key) != first.run.get(key):
            raise ResultError(
                f"{fold.name} was run with {key} {str(fold.run.get(key))[:40]}, but {first.name} with "
                f"{str(first.run.get(key))[:40]}; join folds that differ in their splits only"
            )


def _check_apart(folds: Sequence[Fold]) -> None:
    """No conversation and no utterance is tested twice."""
    for what, kind in (("conversations", "conversation"), ("ids", "utterance")):
        tested: dict[str, str] = {}
        for fold in folds:
            for name in dict.fromkeys(getattr(fold, what)):
                if name in tested:
                    raise ResultError(
                        f"{kind} '{name}' is tested in {tested[name]} and in {fold.name}; folds test others"
                    )
                tested[name] = fold.name
    repeated, count = Counter(fold.name for fold in folds).most_common(1)[0]
    if count > 1:
        raise ResultError(f"{count} folders are called '{repeated}', which names a fold in the tables; rename them")


def _tallies(folds: Sequence[Fold]) -> np.ndarray:
    """Confusions (seeds, conversations, classes * classes) of all `folds`, whose seeds go together by their order."""
    conversations = [name for fold in folds for name in fold.conversations]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(conversations))}
    index = np.array([numbers[name] for name in conversations])
    order = np.argsort(index, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(index))])
    true = np.concatenate([fold.true for fold in folds])[order]
    predicted = np.concatenate([fold.predicted for fold in folds], axis=1)[:, order]
    classes = len(folds[0].labels)
    counts = [conversation_confusions(true, of_seed, offsets, classes) for of_seed in predicted]
    return np.stack(counts).reshape(len(counts), -1, classes * classes)


def _score(
    name: str,
    folds: Sequence[Fold],
    single: Sequence[np.ndarray],
    pooled: np.ndarray,
    together: np.ndarray,
    params: EvaluateParams,
) -> Score:
    metric = LABEL_METRICS[name]
    values = [float(metric(tallies.sum(1)).mean()) for tallies in single]
    of_seeds = metric(pooled.sum(1)).tolist()
    draws = bootstrap(pooled, metric, params.resamples, params.seed)  # (seeds, resamples)
    return Score(
        folds=tuple(values),
        mean=float(np.mean(values)),
        std=sample_std(values),
        pooled=float(np.mean(of_seeds)),
        pooled_std=sample_std(of_seeds),
        interval=percentile_interval(draws.mean(0), params.confidence),
        ensemble=float(metric(together)),
        beside={
            what: float(np.mean([fold.beside[what][name] for fold in folds]))
            for what in ("linear", "floor", "chance")
            if all(what in fold.beside for fold in folds)
        },
    )


def write_folds(joined: Joined, folder: Path, overwrite: bool = False) -> bool:
    """Write all files of `joined` into `folder`, made where it is missing; whether anything changed.

    Raises:
        OutputError: a file cannot be written, or other results are there and `overwrite` is not given.
        BusyError: another process writes results there.
    """
    contents = {"predictions.csv": predictions_csv(joined), "table.md": table_md(joined)}
    details = {"details.json": details_json(joined, hash_files(contents))}
    with replacing(folder, RESULT):
        path = folder / "details.json"
        if path.exists() and not overwrite and find_run(path).get("id") != describe_join(joined)["id"]:
            raise other_results(folder)
        return replace_files(folder, contents | details, RESULT)


def folds_headline(joined: Joined) -> str:
    """One line: the first metric, over folds and pooled."""
    name, score = next(iter(joined.scores.items()))
    return (
        f"test {name} {mean_std(score.mean, score.std)} over {len(joined.folds)} folds, pooled {score.pooled:z.3f} "
        f"({joined.params.confidence:.0%} interval {bounds(score.interval)}), ensemble {score.ensemble:z.3f}; "
        "over folds " + ", ".join(f"{what} {value:z.3f}" for what, value in score.beside.items())
    )


def describe_join(joined: Joined) -> dict[str, Any]:
    """What the folds have in common, and the run of each; `id` is a short hash of the rest."""
    first = joined.folds[0].run
    run = {
        **{key: first.get(key) for key in SAME},
        "folds": {fold.name: fold.run["id"] for fold in joined.folds},
        "intervals": joined.params.model_dump(mode="json"),
    }
    return identified(run)


def details_json(joined: Joined, files: Mapping[str, str]) -> str:
    """All numbers."""
    scores = {
        name: {
            "folds": {fold.name: rounded(value) for fold, value in zip(joined.folds, score.folds, strict=True)},
            **spread(score.mean, score.std),
            "pooled": spread(score.pooled, score.pooled_std, score.interval),
            "ensemble": rounded(score.ensemble),
            **{what: rounded(value) for what, value in score.beside.items()},
        }
        for name, score in joined.scores.items()
    }
    counts = {fold.name: int((fold.true != UNLABELLED).sum()) for fold in joined.folds}
    content = {
        "run": describe_join(joined),
        "files": dict(files),
        "test": {**scores, "per_class": describe_classes(joined.folds[0].labels, joined.classes), "utterances": counts},
    }
    return json_text(digested(content))


def predictions_csv(joined: Joined) -> str:
    """The rows of all folds."""
    rows = ([fold.name, *row] for fold in joined.folds for row in fold.rows)
    return csv_text(["fold", *joined.folds[0].header], rows)


def table_md(joined: Joined) -> str:
    """A table of metrics, one of folds, one of classes."""
    run = describe_join(joined)
    metrics = [
        [name, mean_std(score.mean, score.std), *(f"{value:z.3f}" for value in score.beside.values()),
         mean_std(score.pooled, score.pooled_std), bounds(score.interval), f"{score.ensemble:z.3f}"]
        for name, score in joined.scores.items()
    ]  # fmt: skip
    folds = [
        [escape_markdown(fold.name), *(f"{score.folds[index]:z.3f}" for score in joined.scores.values()),
         str(int((fold.true != UNLABELLED).sum())), str(len(set(fold.conversations)))]
        for index, fold in enumerate(joined.folds)
    ]  # fmt: skip
    classes = class_table(describe_classes(joined.folds[0].labels, joined.classes), "label, pooled")
    confidence = f"{joined.params.confidence:.0%} interval"
    beside = list(next(iter(joined.scores.values())).beside)
    lines = [
        f"# {run['model']} on the test splits of {len(joined.folds)} folds",
        "",
        *(line for warning in joined.warnings for line in (f"**{escape_markdown(warning)}**", "")),
        f"Seeds {run['seeds']}. Over folds: mean ± standard deviation of the folds, each the mean over its seeds. "
        "Pooled: the utterances of all folds as one set, mean ± standard deviation over seeds; the interval resamples "
        "whole conversations; the ensemble takes the mean of the seeds' probabilities. "
        + "Linear is the linear reference of each fold. " * ("linear" in beside)
        + "The floor always predicts the majority label of a fold's train split, chance draws labels by their shares.",
        "",
        *markdown_table(["metric", "over folds", *beside, "pooled", confidence, "ensemble"], metrics),
        "",
        *markdown_table(["fold", *joined.scores, "utterances", "conversations"], folds),
        "",
        *classes,
        "",
        f"Folds {run['id']}: parameters `{str(run['params'])[:12]}`, modalities {run['modalities']}, encoders "
        f"{escape_markdown(run['encoders'])}, erc-fusion {run['version']}; runs "
        + ", ".join(f"{escape_markdown(name)} {identifier}" for name, identifier in run["folds"].items())
        + ".",
    ]
    return "\n".join(lines) + "\n"
