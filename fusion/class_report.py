"""The scores of each label in result files: mean and standard deviation over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusion.evaluate import sample_std
from fusion.metrics import ClassScores
from fusion.tables import markdown_table, mean_std, rounded

SHOWN = ("precision", "recall", "f1")


def stack_seeds(by_seed: Sequence[ClassScores]) -> ClassScores:
    """Arrays (classes,) of each seed as arrays (seeds, classes)."""
    return ClassScores(*(np.stack([getattr(one, name) for one in by_seed]) for name in (*SHOWN, "support")))


def describe_classes(labels: Sequence[str], classes: ClassScores) -> dict[str, dict[str, Any]]:
    """By label; `classes` holds arrays (seeds, classes), whose support is the same for every seed."""
    described: dict[str, dict[str, Any]] = {}
    for index, label in enumerate(labels):
        scores: dict[str, Any] = {}
        for name in SHOWN:
            values = getattr(classes, name)[:, index].tolist()
            std = sample_std(values)
            scores[name] = {"mean": rounded(float(np.mean(values))), "std": None if std is None else rounded(std)}
        described[label] = scores | {"support": int(classes.support[0, index])}
    return described


def class_table(described: Mapping[str, Mapping[str, Any]], title: str = "label") -> list[str]:
    """The lines of a table of what `describe_classes` returns."""
    rows = [
        [label, *(mean_std(scores[name]["mean"], scores[name]["std"]) for name in SHOWN), str(scores["support"])]
        for label, scores in described.items()
    ]
    return markdown_table([title, *SHOWN, "support"], rows)
