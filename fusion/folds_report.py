"""Write joined folds as files, each whole or not at all, the same bytes for the same folds.

details.json      per metric: each fold, mean and standard deviation over folds, pooled with its interval; per class
predictions.csv   the predictions of all folds; `fold` names the folder that they come from
table.md          the same for readers
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from fusion.atomic import write_file
from fusion.class_report import class_table, describe_classes
from fusion.folds import SAME, Joined
from fusion.tables import bounds, csv_text, markdown_table, mean_std, rounded
from pipeline.store import UNLABELLED


def write_folds(joined: Joined, folder: Path) -> None:
    """Write all files of `joined` into `folder`, made where it is missing.

    Raises:
        OutputError: a file cannot be written.
    """
    contents = {
        "details.json": details_json(joined),
        "predictions.csv": predictions_csv(joined),
        "table.md": table_md(joined),
    }
    for name, content in contents.items():
        write_file(folder / name, content.encode())


def headline(joined: Joined) -> str:
    """One line: the first metric, over folds and pooled."""
    name, score = next(iter(joined.scores.items()))
    return (
        f"test {name} {mean_std(score.mean, score.std)} over {len(joined.folds)} folds, pooled {score.pooled:.3f} "
        f"({joined.params.confidence:.0%} interval {bounds(score.interval)}, floor {score.floor:.3f})"
    )


def describe_join(joined: Joined) -> dict[str, Any]:
    """What the folds have in common, and the run of each; `id` is a short hash of the rest."""
    first = joined.folds[0].run
    run: dict[str, Any] = {
        **{key: first.get(key) for key in SAME},
        "folds": {fold.name: fold.run["id"] for fold in joined.folds},
        "intervals": joined.params.model_dump(mode="json"),
    }
    return {"id": hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:12], **run}


def details_json(joined: Joined) -> str:
    """All numbers."""
    scores = {
        name: {
            "folds": {fold.name: rounded(value) for fold, value in zip(joined.folds, score.folds, strict=True)},
            "mean": rounded(score.mean),
            "std": None if score.std is None else rounded(score.std),
            "pooled": {
                "mean": rounded(score.pooled),
                "std": None if score.pooled_std is None else rounded(score.pooled_std),
                "low": rounded(score.interval.low),
                "high": rounded(score.interval.high),
            },
            "floor": rounded(score.floor),
        }
        for name, score in joined.scores.items()
    }
    counts = {fold.name: int((fold.true != UNLABELLED).sum()) for fold in joined.folds}
    content = {
        "run": describe_join(joined),
        "test": {**scores, "per_class": describe_classes(joined.folds[0].labels, joined.classes), "utterances": counts},
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def predictions_csv(joined: Joined) -> str:
    """The rows of all folds."""
    rows = ([fold.name, *row] for fold in joined.folds for row in fold.rows)
    return csv_text(["fold", *joined.folds[0].header], rows)


def table_md(joined: Joined) -> str:
    """A table of metrics, one of folds, one of classes."""
    run = describe_join(joined)
    metrics = [
        [name, mean_std(score.mean, score.std), mean_std(score.pooled, score.pooled_std), bounds(score.interval),
         f"{score.floor:.3f}"]
        for name, score in joined.scores.items()
    ]  # fmt: skip
    folds = [
        [fold.name, *(f"{score.folds[index]:.3f}" for score in joined.scores.values()),
         str(int((fold.true != UNLABELLED).sum())), str(len(set(fold.conversations)))]
        for index, fold in enumerate(joined.folds)
    ]  # fmt: skip
    classes = class_table(describe_classes(joined.folds[0].labels, joined.classes), "label, pooled")
    confidence = f"{joined.params.confidence:.0%} interval"
    lines = [
        f"# {run['model']} on the test splits of {len(joined.folds)} folds",
        "",
        f"Seeds {run['seeds']}. Over folds: mean ± standard deviation of the folds, each the mean over its seeds. "
        "Pooled: the utterances of all folds as one set, mean ± standard deviation over seeds; the interval resamples "
        "whole conversations. The floor always predicts the majority label of a fold's train split, mean over folds.",
        "",
        *markdown_table(["metric", "over folds", "pooled", confidence, "floor"], metrics),
        "",
        *markdown_table(["fold", *joined.scores, "utterances", "conversations"], folds),
        "",
        *classes,
        "",
        f"Folds {run['id']}: parameters `{str(run['params'])[:12]}`, modalities {run['modalities']}, encoders "
        f"{run['encoders']}, erc-fusion {run['version']}; runs "
        + ", ".join(f"{name} {identifier}" for name, identifier in run["folds"].items())
        + ".",
    ]
    return "\n".join(lines) + "\n"
