"""The test scores of one model, read from the results that `fusion-evaluate` wrote of it and its other seeds."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.calibration import Calibration
from fusion.errors import ResultError
from fusion.provenance import Provenance
from fusion.statistics import Interval
from fusion.tables import rounded


@dataclass(frozen=True)
class SharedScore:
    """One metric on the test split."""

    value: float  # of this model
    interval: Interval
    mean: float  # over all seeds
    std: float | None
    mean_interval: Interval
    floor: float  # of always giving the one answer that suits train best


@dataclass(frozen=True)
class SharedScores:
    """One model on the test split."""

    features: str  # hash of the feature file that was scored
    utterances: int  # that count
    seeds: str  # all that were scored
    confidence: float
    metrics: Mapping[str, SharedScore]
    per_class: Mapping[str, Mapping[str, Any]]  # as `fusion.class_report.describe_classes`, over all seeds
    calibration: Calibration | None


def read_scores(results: Path, provenance: Provenance) -> SharedScores:
    """What `results/details.json` says of the model with this provenance.

    Raises:
        ResultError: the file is missing or damaged, or of another model.
    """
    path = results / "details.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        run = content["run"]
        _check_same(path, run, content["seeds"], provenance)
        seed = content["seeds"][str(provenance.seed)]
        calibration = content["calibration"].get(str(provenance.seed))
        metrics = {name: _score(own, content["test"][name]) for name, own in seed["test"].items()}
        return SharedScores(
            features=run["features"],
            utterances=content["test"]["utterances"],
            seeds=run["seeds"],
            confidence=run["intervals"]["confidence"],
            metrics=metrics,
            per_class=content["test"]["per_class"],
            calibration=None if calibration is None else Calibration(**calibration),
        )
    except FileNotFoundError as error:
        raise ResultError(f"{path}: no such file; score the model with fusion-evaluate first") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise ResultError(f"{path}: damaged, or of another version ({reason}); run fusion-evaluate again") from error


def _score(own: Mapping[str, float], summary: Mapping[str, Any]) -> SharedScore:
    return SharedScore(
        value=own["value"],
        interval=Interval(own["low"], own["high"]),
        mean=summary["mean"],
        std=summary["std"],
        mean_interval=Interval(summary["low"], summary["high"]),
        floor=summary["floor"],
    )


def _check_same(path: Path, run: Mapping[str, Any], seeds: Mapping[str, Any], provenance: Provenance) -> None:
    """Raise ResultError unless the results are of this very model: trained alike, and as good on validation."""
    seed = seeds.get(str(provenance.seed), {})
    validation = {name: rounded(value) for name, value in provenance.validation["fused"].items()}
    compared = {
        "model": (run["model"], provenance.recipe.model.name),
        "parameters": (run["params"], provenance.recipe.digest),
        "training features": (run["trained_on"], provenance.features),
        "seed": (provenance.seed if seed else run["seeds"], provenance.seed),
        "chosen epochs": (seed.get("epochs"), dict(provenance.selected)),
        "validation scores": (seed.get("validation"), validation),
    }
    for name, (found, expected) in compared.items():
        if found != expected:
            raise ResultError(
                f"{path}: of another model: its {name} {_short(found)}, the model's {_short(expected)}; "
                "run fusion-evaluate on this one, or name its results with --results"
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
