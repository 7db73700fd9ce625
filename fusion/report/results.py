"""The result files of `fusion-evaluate` and, where they lie beside them, `fusion-ablate`, read for the page."""

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.checkpoint import LoadedModel
from fusion.errors import ResultError
from fusion.evaluation import check_files, check_whole, read_result
from fusion.params import EvaluateParams
from pipeline.store import Features

log = logging.getLogger(__name__)

AGAIN = "run fusion-evaluate with these models and features, or dvc repro"
Row = Mapping[str, str]  # of a CSV file, by column


@dataclass(frozen=True)
class Results:
    """What there is to show of an evaluation."""

    details: Mapping[str, Any]  # details.json
    curves: Sequence[Row]  # one an epoch of each seed
    confusion: Sequence[Row]  # one an utterance that counts, of each seed
    predictions: Sequence[Row]  # one an utterance of each seed
    ablations: Sequence[Row]  # none where there is no table of these features
    ablation_confidence: float  # of its intervals
    ablation_own: bool  # whether its base row is the model of these results
    # which of its rows have not learned, or are no better than what they are held against
    ablation_notes: Sequence[str]
    robustness: Sequence[Row]  # none where nothing was degraded

    @property
    def run(self) -> Mapping[str, Any]:
        """What was run."""
        run: Mapping[str, Any] = self.details["run"]
        return run

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics, the leading one first."""
        return list(self.details["validation"])


def read_results(folder: Path, models: Sequence[LoadedModel], features: Features) -> Results:
    """The results in `folder`, which must be of these `models` on these `features`.

    Raises:
        ResultError: a file is missing or damaged, or of another evaluation.
    """
    details = _read_details(folder / "details.json")
    _check_same(folder, details["run"], models, features)
    run = str(details["run"]["id"])
    table = _read_table(folder, features, models[0].provenance.recipe.digest)
    results = Results(
        details=details,
        curves=_read_rows(folder / "curves.csv", ("seed", "stage", "epoch", "train_loss", "validation_metric"), run),
        confusion=_read_rows(folder / "confusion.csv", ("seed", "actual", "predicted"), run),
        predictions=_read_rows(folder / "predictions.csv", ("seed", "utterance", "true", "predicted"), run),
        ablations=table.rows,
        ablation_confidence=table.confidence,
        ablation_own=table.own,
        ablation_notes=table.notes,
        robustness=_read_optional(folder / "robustness" / "scores.csv", ("study", "level"), run),
    )
    check_files(folder, details["files"])  # last: what can be said more closely is
    check_whole(folder / "details.json", details)
    return results


@dataclass(frozen=True)
class _Table:
    rows: Sequence[Row] = ()
    confidence: float = EvaluateParams().confidence
    own: bool = True
    notes: Sequence[str] = ()


def _read_table(folder: Path, features: Features, recipe: str) -> _Table:
    """The ablation table, where there is one of these features; `own`: its base row is of this `recipe`."""
    path = folder / "ablations.json"
    if not path.exists():
        if (folder / "ablations.csv").exists():
            log.warning("%s: missing, so ablations.csv is left out; run fusion-ablate again", path)
        return _Table()
    try:
        content = json.loads(read_result(path))
        hashes, digest = dict(content["files"]), str(content["run"]["features"])
        confidence = float(content["run"]["evaluate"]["confidence"])
        notes = [str(note) for note in content.get("notes", [])]
        own = [None, recipe] in content["run"].get("rows", {}).values()  # a row's base, and what it was trained with
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ResultError(f"{path}: damaged ({error!r}); run fusion-ablate again") from None
    if digest != features.digest:
        log.warning("%s: of other features than %s, and left out; run fusion-ablate again", path, features.path)
        return _Table(confidence=confidence)
    check_files(folder, hashes, "run fusion-ablate again")
    rows = _read_optional(folder / "ablations.csv", ("run", "name", "metric", "mean", "low", "high"), None)
    return _Table(rows, confidence, own, notes)


def _read_details(path: Path) -> Mapping[str, Any]:
    try:
        details: Mapping[str, Any] = json.loads(read_result(path))
        for name in details["validation"]:
            float(details["test"][name]["mean"])
        for name in ("id", "params", "seeds", "features", "trained_on", "model", "target"):
            str(details["run"][name])
        dict(details["test"]["per_class"]), dict(details["heads"]), dict(details["seeds"])
        dict(details["files"]), list(details["warnings"]), list(details["linear"]), dict(details["ensemble"])
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ResultError(f"{path}: damaged, or not of fusion-evaluate ({error!r}); {AGAIN}") from None
    return details


def _check_same(folder: Path, run: Mapping[str, Any], models: Sequence[LoadedModel], features: Features) -> None:
    first = models[0].provenance
    expected = {
        "params": first.recipe.digest,
        "seeds": ",".join(str(one.provenance.seed) for one in models),
        "trained_on": first.features,
        "features": features.digest,
    }
    for name, value in expected.items():
        if run[name] != value:
            raise ResultError(
                f"{folder / 'details.json'}: of another evaluation than {models[0].folder.parent} on {features.path} "
                f"({name} {str(run[name])[:12]}, expected {value[:12]}); {AGAIN}"
            )


def _read_rows(path: Path, columns: Sequence[str], run: str | None) -> list[Row]:
    try:
        rows = list(csv.DictReader(io.StringIO(read_result(path)), strict=True))
    except csv.Error as error:
        raise ResultError(f"{path}: damaged ({error}); {AGAIN}") from None
    if rows and (missing := [name for name in columns if name not in rows[0]]):
        raise ResultError(f"{path}: has no column '{missing[0]}'; {AGAIN}")
    if any(None in row or None in row.values() for row in rows):
        raise ResultError(f"{path}: a row is longer or shorter than the header; {AGAIN}")
    if run is not None and (others := {row["run"] for row in rows} - {run}):
        raise ResultError(f"{path}: of run {min(others)}, but details.json is of run {run}; {AGAIN}")
    return list(rows)


def _read_optional(path: Path, columns: Sequence[str], run: str | None) -> list[Row]:
    return _read_rows(path, columns, run) if path.exists() else []
