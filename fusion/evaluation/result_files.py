"""Write an evaluation as the files of `results/`, together or not at all, the same bytes for the same evaluation.

    metrics.json      mean and standard deviation over seeds, and each seed, of the test split
    details.json      per metric: mean, standard deviation, interval, floor; per class; per seed; what was run
    predictions.csv   a row for each seed and utterance: labels with the probability of every one, or scores
    confusion.csv     a row for each seed and utterance that counts: actual, predicted (DVC's confusion template)
    curves.csv        a row for each seed and epoch: losses and validation scores
    table.md          the same for readers
    robustness/       studies of worse inputs (`fusion.evaluation.robustness_files`)

All name the `run.id` of details.json, which stands for the parameters, the seeds, the hashes of the feature files and
the commit given there. details.json has the SHA-256 of every other file: readers refuse a mixture of runs.
"""

import hashlib
import json
import logging
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fusion.checkpoint import Provenance, read_provenance
from fusion.errors import OutputError, ResultError
from fusion.evaluation.predictions import (
    Record,
    class_table,
    confusion_csv,
    describe_classes,
    predictions_csv,
    stack_seeds,
)
from fusion.evaluation.robustness import Robustness
from fusion.evaluation.robustness_files import robustness_files
from fusion.evaluation.scores import Beside, Evaluation, SeedScores, Summary, sample_std
from fusion.params import EvaluateParams
from fusion.runtime import replace_files
from fusion.tables import (
    bounds,
    csv_text,
    digested,
    ends_of,
    escape_markdown,
    identified,
    is_whole,
    json_text,
    markdown_table,
    mean_std,
    number,
    number_of,
    rounded,
    spread,
)
from pipeline.settings import refuse_pipe
from pipeline.store import Features

log = logging.getLogger(__name__)

AGAIN = "run fusion-evaluate again"
RESULT = "evaluation"  # how `fusion.runtime.replacing` calls the files of an evaluation, or of joined folds
COMPARED = ("model", "params", "seeds", "features", "trained_on", "intervals")  # of two evaluations; not the commit


def check_results(folder: Path, models: Path, features: Features, params: EvaluateParams) -> None:
    """See that an evaluation of `models` would not replace another one in `folder`.

    Raises:
        OutputError: finished results of other models, parameters, seeds or features are there.
        ModelError: `models` cannot be read.
    """
    path = folder / "details.json"
    if not path.exists():
        return
    seeds = [read_provenance(one) for one in models.glob("seed-*")] or [read_provenance(models)]
    wanted = _identify(sorted(seeds, key=lambda one: one.seed), features.digest, params)
    found = find_run(path)
    if differing := [name for name in COMPARED if found.get(name) != wanted[name]]:
        raise other_results(folder, f" (other {', '.join(differing) if found else 'everything that can be read'})")


def find_run(path: Path) -> dict[str, Any]:
    """What was run, as a JSON file says in `run`; empty where it cannot be read."""
    try:
        return dict(json.loads(read_result(path))["run"])
    except (ResultError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def other_results(folder: Path, differing: str = "") -> OutputError:
    """Says that results are there which may not be replaced."""
    return OutputError(
        f"{folder}: holds the results of another run{differing}; name another folder (--output) to keep them, or "
        "replace them with --overwrite"
    )


def write_report(
    evaluation: Evaluation,
    folder: Path,
    commit: str | None,
    records: Mapping[str, Record] = MappingProxyType({}),
    robustness: Robustness | None = None,
) -> bool:
    """Write all files of `evaluation` into `folder`, made where it is missing; older ones stay until all are ready.

    Args:
        commit: that of the code.
        records: what a manifest says, by id, where there is one.
        robustness: of the same models.

    Returns:
        Whether anything changed.

    Raises:
        OutputError: a file cannot be written.
    """
    run = describe_run(evaluation, commit)
    contents: dict[str, str | bytes | None] = {
        "metrics.json": metrics_json(evaluation, run),
        "predictions.csv": predictions_csv(evaluation, run, records),
        "confusion.csv": confusion_csv(evaluation, run),
        "curves.csv": curves_csv(evaluation, run),
        "table.md": table_md(evaluation, run),
    }
    if robustness:
        contents |= {f"robustness/{name}": content for name, content in robustness_files(robustness, run).items()}
    contents["details.json"] = details_json(evaluation, run, hash_files(contents))
    for warning in evaluation.warnings:
        log.warning("%s", warning)
    return replace_files(folder, contents, RESULT)


def hash_files(contents: Mapping[str, str | bytes | None]) -> dict[str, str]:
    """SHA-256 (hex) of each content that there is, by name."""
    encoded = {name: one.encode() if isinstance(one, str) else one for name, one in contents.items()}
    return {name: hashlib.sha256(one).hexdigest() for name, one in encoded.items() if one is not None}


def check_files(folder: Path, hashes: Mapping[str, str], fix: str = AGAIN) -> None:
    """Raise ResultError unless the files in `folder` are those that were written together, by their `hash_files`."""
    for name, expected in hashes.items():
        path = folder / name
        refuse_pipe(path)
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise ResultError(f"{path}: cannot be read ({error.strerror}), but belongs to the results; {fix}") from None
        if found != expected:
            raise ResultError(f"{path}: of another run than the files beside it, damaged or edited; {fix}")


def check_whole(path: Path, details: Mapping[str, Any]) -> None:
    """Raise ResultError unless the `details` that were read from `path` are those that were written."""
    if not is_whole(details):
        raise ResultError(f"{path}: damaged or edited since it was written; {AGAIN}")


def read_result(path: Path) -> str:
    """The text of a file that `write_report` wrote.

    Raises:
        ResultError: it is missing, cannot be read, or is not UTF-8.
    """
    try:
        refuse_pipe(path)
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ResultError(f"{path}: no such result file; {AGAIN}, or name a folder that it wrote") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{path}: cannot be read ({error}); {AGAIN}") from None


def headline(evaluation: Evaluation) -> str:
    """One line: the metric that training selected on, on the test split."""
    metric = evaluation.metric
    summary = evaluation.summaries[metric]
    beside = {one.name.split(",")[0]: one.scores[metric] for one in (evaluation.ensemble, *evaluation.linear[:1])}
    return (
        f"test {metric} {mean_std(summary.mean, summary.std)} over {number_of(len(evaluation.seeds), 'seed')} "
        f"({evaluation.params.confidence:.0%} interval {bounds(summary.interval)}, floor {summary.floor:z.3f}, "
        f"chance {summary.chance:z.3f}, "
        f"{', '.join(f'{name} {score:z.3f}' for name, score in beside.items())})"
    )


def current_commit() -> str | None:
    """The commit that is checked out in the working directory; None without git or outside a repository."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def describe_run(evaluation: Evaluation, commit: str | None) -> dict[str, Any]:
    """What was run; `id` is a short hash of the rest."""
    seeds = [seed.provenance for seed in evaluation.seeds]
    return identified(_identify(seeds, evaluation.features, evaluation.params) | {"commit": commit})


def _identify(seeds: Sequence[Provenance], features: str, params: EvaluateParams) -> dict[str, Any]:
    first = seeds[0]
    return {
        "model": first.recipe.model.name,
        "target": first.recipe.train.target,
        "modalities": first.recipe.model.modalities,
        "encoders": ", ".join(one.name for one in (first.audio, first.text) if one is not None),
        "seeds": ",".join(str(one.seed) for one in seeds),
        "params": first.recipe.digest,
        "features": features,
        "trained_on": first.features,
        "intervals": params.model_dump(mode="json"),
        "version": first.version,
    }


def metrics_json(evaluation: Evaluation, run: Mapping[str, Any]) -> str:
    """The few numbers that `dvc metrics show` and `dvc exp show` have room for, all on the test split."""
    first = next(iter(evaluation.summaries))
    scores = {name: _summary(summary) for name, summary in evaluation.summaries.items()}
    content: dict[str, Any] = {name: {key: score[key] for key in ("mean", "std")} for name, score in scores.items()}
    seeds = {str(seed.provenance.seed): _seed(seed)["test"][first]["value"] for seed in evaluation.seeds}
    content |= {name: {first: scores[first][name]} for name in ("floor", "chance")}
    content["ensemble"] = {name: rounded(value) for name, value in evaluation.ensemble.scores.items()}
    if evaluation.linear:
        content["linear"] = {name: rounded(value) for name, value in evaluation.linear[0].scores.items()}
    content |= {"seeds": {first: seeds}, "run": run["id"]}
    return json_text(content)


def details_json(evaluation: Evaluation, run: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """All numbers: every metric with its interval, per class (none of scores) and per seed; and what was run, with
    the hashes of the other `files` and of all this.

    `ensemble`: the seeds together; `linear`: *the* linear reference, then those it is the mean of; `difference`: the
    mean over seeds minus it.

    `calibration`: the temperature of each seed and its expected calibration error on the test split (none of scores).
    """
    scores = {name: _summary(summary) for name, summary in evaluation.summaries.items()}
    content = {
        "run": dict(run),
        "files": dict(files),
        "warnings": evaluation.warnings,
        "test": {**scores, "per_class": _per_class(evaluation), "utterances": int(evaluation.counted.sum())},
        "validation": {name: rounded(summary.validation) for name, summary in evaluation.summaries.items()},
        "heads": {
            head: {
                name: _summary(summary) | {"validation": rounded(summary.validation)} for name, summary in own.items()
            }
            for head, own in evaluation.heads.items()
        },
        "calibration": {
            str(seed.provenance.seed): {name: rounded(value) for name, value in asdict(seed.calibration).items()}
            for seed in evaluation.seeds
            if seed.calibration
        },
        "seeds": {str(seed.provenance.seed): _seed(seed) for seed in evaluation.seeds},
        "ensemble": _compared(evaluation.ensemble),
        "linear": [_compared(one) for one in evaluation.linear],
    }
    return json_text(digested(content))


def curves_csv(evaluation: Evaluation, run: Mapping[str, Any]) -> str:
    """Every epoch of every seed and stage: the training loss, its terms, the same on validation, validation scores.

    `validation_metric` is the one that training selects on. The scores of the heads of single modalities are over the
    utterances that have the modality, and empty where a stage has no such heads.
    """
    epochs = [(seed.provenance.seed, epoch) for seed in evaluation.seeds for epoch in seed.history]
    first, metric = epochs[0][1], evaluation.seeds[0].provenance.recipe.train.metric
    terms = [name for name in first.train if name != "total"]
    heads = list(dict.fromkeys(head for _, epoch in epochs for head in epoch.heads))
    header = ["run", "seed", "stage", "epoch", "train_loss", "validation_loss", "validation_metric"]
    header += [f"validation_{name}" for name in first.scores]
    header += [f"validation_{head}_{name}" for head in heads for name in first.scores]
    header += [f"{split}_{name}_loss" for split in ("train", "validation") for name in terms]
    rows = (
        [run["id"], seed, epoch.stage, epoch.number]
        + [
            number(value)
            for value in (
                epoch.train["total"],
                epoch.validation["total"],
                epoch.scores[metric],
                *epoch.scores.values(),
                *(epoch.heads.get(head, {}).get(name) for head in heads for name in epoch.scores),
                *(losses[name] for losses in (epoch.train, epoch.validation) for name in terms),
            )
        ]
        for seed, epoch in epochs
    )
    return csv_text(header, rows)


def table_md(evaluation: Evaluation, run: Mapping[str, Any]) -> str:
    """A table of metrics and, where there are labels, one of classes."""
    confidence = f"{evaluation.params.confidence:.0%} interval"
    rows = [
        [name, mean_std(summary.mean, summary.std), bounds(summary.interval), f"{summary.floor:z.3f}",
         f"{summary.chance:z.3f}", f"{summary.validation:z.3f}"]
        for name, summary in evaluation.summaries.items()
    ]  # fmt: skip
    task, has_path = evaluation.task, evaluation.seeds[0].provenance.recipe.own.linear_path
    lower = [name for name, metric in task.metrics.items() if metric.lower_is_better]
    lines = [
        f"# {run['model']} on the test split",
        "",
        *(line for warning in evaluation.warnings for line in (f"**{escape_markdown(warning)}**", "")),
        f"{int(evaluation.counted.sum())} {task.counted_are}, seeds {run['seeds'].replace(',', ', ')}. Mean ± standard "
        f"deviation over seeds; intervals resample whole conversations; the floor always predicts {task.floor_is}, "
        f"chance: {task.chance_is}."
        + " Validation scores are those with the linear path; `curves.csv` has those without it." * has_path
        + f" Of {', '.join(lower)} less is better." * bool(lower),
        "",
        _settings(evaluation, run),
        "",
        *markdown_table(["metric", "test", confidence, "floor", "chance", "validation"], rows),
        "",
        *_references(evaluation, confidence),
        *_classes(evaluation),
        *_heads(evaluation, confidence),
        *_calibration(evaluation),
        f"Run {run['id']}: parameters `{run['params'][:12]}`, features `{run['features'][:12]}` (trained on "
        f"`{run['trained_on'][:12]}`), modalities {run['modalities']}, erc-fusion {run['version']}, "
        f"commit {run['commit'] or 'unknown'}.",
    ]
    return "\n".join(lines) + "\n"


def _settings(evaluation: Evaluation, run: Mapping[str, Any]) -> str:
    """One line: which model, how long it could learn, and which epochs were chosen by what."""
    params = evaluation.seeds[0].provenance.recipe.train
    chosen = [f"seed {seed.provenance.seed}, {seed.provenance.chosen}" for seed in evaluation.seeds]
    return (
        f"Model {run['model']}, target {run['target']}, modalities {run['modalities']}, encoders "
        f"{escape_markdown(run['encoders'])}, {params.optimizer} at {params.learning_rate:g}. Each seed learned for "
        f"at most {params.epochs} epochs, patience {params.patience}; kept are its epochs of the {params.best} on "
        f"validation: {'; '.join(chosen)}."
    )


def _references(evaluation: Evaluation, confidence: str) -> list[str]:
    """A table of what the mean over seeds is held against: the seeds as an ensemble, and linear models."""
    metric = evaluation.metric
    rows = [
        [one.name, f"{one.scores[metric]:z.3f}", bounds(one.intervals[metric]),
         f"{one.validation[metric]:z.3f}" if one.validation else "",
         f"{one.changes[metric].mean:+z.3f}", bounds(one.changes[metric].interval, signed=True)]
        for one in (evaluation.ensemble, *evaluation.linear)
    ]  # fmt: skip
    said = "The ensemble is the mean of the calibrated answers of all seeds, as `fusion-predict` gives it."
    if evaluation.linear:
        several = ", the mean of the linear models that follow, each weighted by how likely it makes validation"
        said += (
            f" The linear reference is the row below it{several if len(evaluation.linear) > 1 else ''}; a model with a "
            "linear path contains this reference. Linear models are regressions on the mean and the standard deviation "
            "of each feature: fitted on train and scored on validation, which chooses weights and penalties (where "
            "validation is small, together with a cross-validation of train), then fitted once more on train and "
            "validation for the test split. Differences are the mean over seeds minus the row, intervals over "
            "conversations and seeds."
        )
    else:
        said += " No linear reference: the feature file has no train and validation split to fit and weigh it on."
    return [
        said,
        "",
        *markdown_table([f"{metric} of", "test", confidence, "validation", "difference", confidence], rows),
        "",
    ]


def _compared(one: Beside) -> dict[str, Any]:
    test = {name: {"value": rounded(value), **ends_of(one.intervals[name])} for name, value in one.scores.items()}
    difference = {name: {"mean": rounded(own.mean), **ends_of(own.interval)} for name, own in one.changes.items()}
    content: dict[str, Any] = {"name": one.name, "test": test, "difference": difference}
    if one.validation:
        content["validation"] = {name: rounded(value) for name, value in one.validation.items()}
    if one.calibration_error is not None:
        content["calibration_error"] = rounded(one.calibration_error)
    return content


def _classes(evaluation: Evaluation) -> list[str]:
    """A table of the labels, if there are any."""
    described = _per_class(evaluation)
    return [*class_table(described), ""] if described else []


def _heads(evaluation: Evaluation, confidence: str) -> list[str]:
    """A table of the heads inside the models, if they have any: those of single modalities and of earlier stages."""
    if not evaluation.heads:
        return []
    metric = evaluation.seeds[0].provenance.recipe.train.metric
    rows = [
        [head, mean_std(own[metric].mean, own[metric].std), bounds(own[metric].interval),
         f"{own[metric].validation:z.3f}"]
        for head, own in evaluation.heads.items()
    ]  # fmt: skip
    return [
        "Heads inside the models:",
        "",
        *markdown_table([f"{metric} of", "test", confidence, "validation"], rows),
        "",
    ]


def _calibration(evaluation: Evaluation) -> list[str]:
    """A line on the probabilities, if there are any."""
    found = [seed.calibration for seed in evaluation.seeds if seed.calibration]
    if not found:
        return []
    before, after, temperature = (
        mean_std(float(np.mean(values)), sample_std(values))
        for values in zip(*((one.before, one.after, one.temperature) for one in found), strict=True)
    )
    return [
        f"Probabilities are calibrated by a temperature that was fitted on validation, {temperature}: expected "
        f"calibration error on the test split {before} before, {after} after.",
        "",
    ]


def _summary(summary: Summary) -> dict[str, float | None]:
    return spread(summary.mean, summary.std, summary.interval) | {
        "floor": rounded(summary.floor),
        "chance": rounded(summary.chance),
    }


def _seed(seed: SeedScores) -> dict[str, Any]:
    test = {name: {"value": rounded(value), **ends_of(seed.intervals[name])} for name, value in seed.scores.items()}
    validation = {name: rounded(value) for name, value in seed.provenance.validation["fused"].items()}
    return {"test": test, "validation": validation, "epochs": dict(seed.provenance.selected)}


def _per_class(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """Scores of each label; none where scores are learned."""
    by_seed = [seed.classes for seed in evaluation.seeds if seed.classes is not None]
    return describe_classes(evaluation.labels, stack_seeds(by_seed)) if by_seed else {}
