"""What the overview of the page says, as the cells of its tables: the numbers of the result files, rounded alone."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fusion.checkpoint import LoadedModel
from fusion.data import Split
from fusion.evaluation import TITLES, Record, class_rows
from fusion.objective import METRICS, compute_all, find_task
from fusion.report import charts
from fusion.report.groups import group_tables
from fusion.report.results import Results
from fusion.report.turns import Beside, Said
from fusion.report.views import Parts
from fusion.tables import bounds, interval_of, mean_std, number_of
from pipeline.store import SPLITS, UNLABELLED, Features

Cells = list[list[str]]
NO_LICENCE = "the feature file names none"


def describe_results(
    results: Results, models: Sequence[LoadedModel], features: Features, records: Mapping[str, Record]
) -> dict[str, Any]:
    """Variables of assets/page.html, apart from turns."""
    details, run = results.details, results.run
    recipe = models[0].provenance.recipe
    task = find_task(recipe.train.target, len(features.label_names))
    corpus, has_path = features.corpus, recipe.own.linear_path
    confidence = f"{float(run['intervals']['confidence']):.0%} interval"
    seeds = run["seeds"].replace(",", ", ")
    return {
        "title": f"{run['model']} on the test split" + (f" of {corpus.name}" if corpus and corpus.name else ""),
        "subtitle": f"Modalities: {run['modalities']}. Encoders: {run['encoders']}. Seeds: {seeds}.",
        "licence": corpus.licence if corpus else NO_LICENCE,
        "run": run,
        "seed_count": number_of(len(models), "seed"),
        "warnings": details["warnings"],
        "headline": _headline(details["test"], recipe.train.metric, confidence, task.floor_is),
        "metric_title": METRICS[recipe.train.metric].title,
        "interval_title": confidence,
        "score_rows": _scores(results),
        "scores_caption": f"{details['test']['utterances']} {task.counted_are}; mean ± standard deviation over seeds; "
        f"intervals resample whole conversations; the floor always predicts {task.floor_is}, chance: "
        f"{task.chance_is}" + "; validation: with the linear path" * has_path + _less_is_better(results),
        "beside_rows": _beside(details, recipe.train.metric),
        "score_chart": charts.score_chart(results, corpus),
        "reference_rows": [
            [one.model, _title(one.metric), f"{one.value:z.3f}", one.source]
            for one in (corpus.references if corpus else ())
            if one.metric in results.metrics
        ],
        "head_header": ["head", *(_title(name) for name in results.metrics)],
        "head_rows": [
            [head, *(mean_std(own[name]["mean"], own[name]["std"]) for name in results.metrics)]
            for head, own in details["heads"].items()
        ],
        "calibration": _calibration(details.get("calibration") or {}),
        "reliability_chart": charts.reliability_chart(results) if details.get("calibration") else None,
        **_errors(results, features.label_names),
        **_ablations(results),
        **_robustness(results, recipe.train.metric, confidence),
        "group_tables": group_tables(results, features, records, task, recipe.train.metric),
        "curve_charts": charts.curve_charts(results, recipe.train.metric, has_path),
        "epoch_metric": f"validation {_title(recipe.train.metric)}{', with the linear path' * has_path}",
        "epoch_rows": [
            [seed, ", ".join(f"{head} {epoch}" for head, epoch in one["epochs"].items()),
             f"{one['validation'][recipe.train.metric]:z.3f}"]
            for seed, one in details["seeds"].items()
        ],
        "run_rows": _run(run, corpus.licence if corpus else NO_LICENCE),
        "params": json.dumps(recipe.to_json(), indent=2, ensure_ascii=False),
        "encoders": _encoders(features),
    }  # fmt: skip


def describe_beside(name: str, said: Said, beside: Beside, splits: Sequence[Split]) -> dict[str, Any]:
    """Scores of both models on the test turns shown (on all of them, where none is), and how many of these each gets
    right; the cells list their turns. `splits` are those of the turns.
    """
    task = said.task
    tested = np.repeat([split.name == "test" for split in splits], [len(split.ids) for split in splits])
    here = tested if tested.any() else ~tested
    scored = "test split" if tested.any() else f"{' and '.join(split.name for split in splits)} split"
    counted = said.counted & here
    true, whole = said.true[here], np.array([0, here.sum()])
    both = [compute_all(task.metrics, task.tally(true, one.mean[here], whole)[0]) for one in (said, beside.said)]
    own, other = ~said.wrong[counted], ~beside.said.wrong[counted]
    right = "right" if task.target == "label" else "nearer than their mean error"
    counts = [
        (f"both {right}", own & other, "both"),
        (f"only {name}", own & ~other, "own"),
        (f"only {beside.name}", ~own & other, "other"),
        ("neither", ~own & ~other, "neither"),
    ]
    return {
        "beside": {
            "own": name,
            "name": beside.name,
            "score_rows": [[_title(one), *(f"{scores[one]:z.3f}" for scores in both)] for one in task.metrics],
            "scores_caption": f"{counted.sum()} {task.counted_are} of the {scored}, mean "
            f"{'probabilities' if task.target == 'label' else 'scores'} of all seeds",
            "counts_caption": "Turns by which model is right; a number lists its turns",
            "counts": [(title, str(int(chosen.sum())), show) for title, chosen, show in counts],
        }
    }


def describe_data(features: Features, records: Mapping[str, Record], target: str) -> dict[str, Any]:
    """How many utterances there are, by split and label (of scores: with and without one), and the statuses of the
    manifest.
    """
    table = features.utterances
    if target == "score":
        names, answers = ["scored", "no score"], np.where(np.isnan(table.scores), UNLABELLED, 0)
    else:
        names, answers = [*features.label_names, "no label"], table.labels
    splits = [split for split in SPLITS if split in table.splits]
    counts = Counter(zip(table.splits, answers.tolist(), strict=True))
    conversations = Counter(split for split, _ in set(zip(table.splits, table.conversations, strict=True)))
    rows = [
        ["utterances", *(str(table.splits.count(split)) for split in splits)],
        ["conversations", *(str(conversations[split]) for split in splits)],
    ]
    for name, answer in zip(names, [*range(len(names) - 1), UNLABELLED], strict=True):
        rows.append([name, *(str(counts[split, answer]) for split in splits)])
    statuses = Counter(records[one].status for one in table.ids if one in records)
    return {
        "count_header": ["", *splits],
        "count_rows": rows,
        "status_rows": [[status, str(count)] for status, count in statuses.most_common()],
    }


def _headline(test: Mapping[str, Any], metric: str, confidence: str, floor_is: str) -> dict[str, str]:
    own = test[metric]
    return {
        "value": mean_std(own["mean"], own["std"]),
        "title": METRICS[metric].title,
        "rest": f"{confidence} {_ends(own)}; {floor_is}: {own['floor']:z.3f}",
    }


def _beside(details: Mapping[str, Any], metric: str) -> Cells:
    """The seeds as an ensemble, and linear models: score, interval, what the mean over seeds is above them."""
    rows = []
    for one in (details["ensemble"], *details["linear"]):
        own, change = one["test"][metric], one["difference"][metric]
        known = f"{one['validation'][metric]:z.3f}" if one.get("validation") else ""
        rows.append(
            [
                one["name"],
                f"{own['value']:z.3f}",
                _ends(own),
                known,
                f"{change['mean']:+z.3f}",
                _ends(change, signed=True),
            ]
        )
    return rows


def _scores(results: Results) -> Cells:
    test, validation = results.details["test"], results.details["validation"]
    return [
        [
            _title(name),
            mean_std(own["mean"], own["std"]),
            _ends(own),
            f"{own['floor']:z.3f}",
            f"{own['chance']:z.3f}",
            f"{validation[name]:z.3f}",
        ]
        for name in results.metrics
        if (own := test[name])
    ]


def _less_is_better(results: Results) -> str:
    lower = [_title(name) for name in results.metrics if METRICS[name].lower_is_better]
    return f"; of {', '.join(lower)} less is better" if lower else ""


def _calibration(seeds: Mapping[str, Mapping[str, float]]) -> str:
    if not seeds:
        return ""
    parts = [
        f"seed {seed}: temperature {one['temperature']:.2f}, error {one['before']:.3f} before, {one['after']:.3f} after"
        for seed, one in seeds.items()
    ]
    return (
        "Probabilities are calibrated by a temperature that was fitted on validation. Expected calibration error on "
        f"the test split, {'; '.join(parts)}."
    )


def _errors(results: Results, labels: Sequence[str]) -> dict[str, Any]:
    """Confusion and classes of labels; where scores are predicted, pictures of truth and prediction."""
    if results.run["target"] == "score":
        return {"truth_charts": charts.truth_charts(results)}
    counts = Counter((row["actual"], row["predicted"]) for row in results.confusion)
    return {
        "labels": labels,
        "confusion": [{"label": label, "cells": _confusion_cells(counts, label, labels)} for label in labels],
        "class_rows": class_rows(results.details["test"]["per_class"]),
        "class_chart": charts.class_chart(results),
    }  # fmt: skip


def _confusion_cells(
    counts: Mapping[tuple[str, str], int], true: str, labels: Sequence[str]
) -> list[dict[str, str | int | bool]]:
    total = sum(counts[true, predicted] for predicted in labels)
    cells: list[dict[str, str | int | bool]] = []
    for predicted in labels:
        rate = counts[true, predicted] / total if total else 0.0
        cells.append(
            {
                "count": counts[true, predicted],
                "rate": f"{rate:.0%}" if total else "",
                "shade": -(-int(rate * 1000) // 200) if rate > 0 else 0,  # 1 to 5
                "right": true == predicted,
            }
        )
    return cells


def _ablations(results: Results) -> dict[str, Any]:
    rows, confidence = results.ablations, f"{results.ablation_confidence:.0%} interval"
    if not rows:
        return {}
    score = _title(rows[0]["metric"])
    header = ["row", score, confidence, "against", "difference", confidence, "p (Holm)", "overrides"]
    cells = []
    for row in rows:
        std = float(row["std"]) if row.get("std") else None
        cells.append([row["name"], mean_std(float(row["mean"]), std), _span(row["low"], row["high"])])
        if row.get("difference"):
            change = _span(row["difference_low"], row["difference_high"], "+z.3f")
            cells[-1] += [row["base"], f"{float(row['difference']):+z.3f}", change, f"{float(row['p_holm']):z.3f}"]
        else:
            cells[-1] += [""] * 4
        cells[-1].append(row.get("overrides", ""))
    caption = (
        f"fusion-ablate, run {rows[0]['run']}, seeds {rows[0].get('seeds', '').replace(',', ', ')}: intervals over "
        "conversations and seeds; p of paired permutation tests, corrected for the rows that are compared"
        + f". Its base row, {rows[0].get('model', 'a model')}, is another model than that of this page, or has other "
        "parameters" * (not results.ablation_own)
    )
    return {
        "ablations": {"header": header, "rows": cells, "caption": caption, "notes": results.ablation_notes},
        "ablation_chart": charts.ablation_chart(rows),
    }


def _robustness(results: Results, metric: str, confidence: str) -> dict[str, Any]:
    rows = results.robustness
    if not rows:
        return {}
    header = ["study", "level", _title(metric), confidence, "change"]
    cells = [
        [TITLES.get(row["study"], row["study"]), charts.level_of(row), f"{float(row[metric]):z.3f}",
         _span(row[f"{metric}_low"], row[f"{metric}_high"]),
         f"{float(change):+z.3f}" if (change := row[f"{metric}_change"]) else ""]
        for row in rows
    ]  # fmt: skip
    return {
        "robustness": {
            "header": header,
            "rows": cells,
            "note": f"{_title(metric)} on the test split, mean of the seeds; grey bars: {confidence} of that mean; "
            "dashed: the floor. All charts have the same range.",
        },
        "robustness_charts": charts.robustness_charts(rows, metric, results.details["test"][metric]["floor"]),
    }


def _run(run: Mapping[str, Any], licence: str) -> Cells:
    return [
        ["model", f"{run['model']}, target {run['target']}, modalities {run['modalities']}"],
        ["parameters (hash)", run["params"]],
        ["features (hash)", run["features"]],
        ["trained on (hash)", run["trained_on"]],
        ["licence of the data", licence],
        ["erc-fusion", f"{run['version']}, commit {run['commit'] or 'unknown'}"],
    ]


def describe_parts(parts: Sequence[Parts], seeds: Sequence[int], target: str) -> dict[str, Any]:
    """A table of what the deep part and the linear path add to the answers of each seed; none without such a path."""
    what = "logits" if target == "label" else "scores"
    rows = [
        [f"the {what} of the deep part are multiplied by", *(f"{one.factor:.3g}" for one in parts)],
        ["deep part: spread over turns", *(f"{one.deep:.3g}" for one in parts)],
        ["linear path: spread over turns", *(f"{one.linear:.3g}" for one in parts)],
    ]
    return {
        "part_header": ["", *(f"seed {seed}" for seed in seeds)],
        "part_rows": rows if parts else [],
        "parts_caption": f"The deep part and the linear path, whose {what} are added up; spread: their standard "
        "deviation over the turns of this page, each part with its weight",
    }


def views_note(parts: Sequence[Parts], target: str) -> str:
    """What stands above the views of the first seed; nothing where the views are of the whole model."""
    if not parts:
        return ""
    first, what = parts[0], "logits" if target == "label" else "scores"
    return (
        f"Views are of the deep part, whose {what} are multiplied by {first.factor:.3g} and then spread by "
        f"{first.deep:.3g} over the turns of this page. Those of the linear path, which has no views, spread by "
        f"{first.linear:.3g}."
    )


def _encoders(features: Features) -> str:
    parts = {name: part.identity.fields for name in ("audio", "text") if (part := getattr(features, name))}
    return json.dumps({name: dict(fields) for name, fields in parts.items()}, indent=2, ensure_ascii=False)


def _title(metric: str) -> str:
    return METRICS[metric].title if metric in METRICS else metric


def _ends(own: Mapping[str, Any], signed: bool = False) -> str:
    return bounds(interval_of(own), signed)


def _span(low: str, high: str, style: str = "z.3f") -> str:
    return f"{float(low):{style}} to {float(high):{style}}" if low and high else ""


def constant_rows(constants: Mapping[str, Iterable[float]]) -> Cells:
    """Weights of the model as a whole."""
    return [[name, ", ".join(f"{value:z.3f}" for value in values)] for name, values in constants.items()]
