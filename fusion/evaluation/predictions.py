"""What an evaluation says of each utterance, as CSV: one way for labels, one for scores; and the scores of each
label.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion.errors import FeatureError
from fusion.evaluation.scores import Evaluation, sample_std
from fusion.objective import ClassScores, to_seven
from fusion.tables import csv_text, markdown_table, mean_std, number, plain_cell, spread

SHOWN = ("precision", "recall", "f1")


def stack_seeds(by_seed: Sequence[ClassScores]) -> ClassScores:
    """Arrays (classes,) of each seed as arrays (seeds, classes)."""
    return ClassScores(*(np.stack([getattr(one, name) for one in by_seed]) for name in (*SHOWN, "support")))


def describe_classes(labels: Sequence[str], classes: ClassScores) -> dict[str, dict[str, Any]]:
    """By label; `classes` holds arrays (seeds, classes), whose support is the same for every seed."""
    return {
        label: {name: _over_seeds(getattr(classes, name)[:, index].tolist()) for name in SHOWN}
        | {"support": int(classes.support[0, index])}
        for index, label in enumerate(labels)
    }


def _over_seeds(values: Sequence[float]) -> dict[str, float | None]:
    return spread(float(np.mean(values)), sample_std(values))


def class_rows(described: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The cells of what `describe_classes` returns: label, scores, support."""
    return [
        [label, *(mean_std(scores[name]["mean"], scores[name]["std"]) for name in SHOWN), str(scores["support"])]
        for label, scores in described.items()
    ]


def class_table(described: Mapping[str, Mapping[str, Any]], title: str = "label") -> list[str]:
    """The lines of a table of what `describe_classes` returns."""
    return markdown_table([title, *SHOWN, "support"], class_rows(described))


def read_texts(manifest: Path | None) -> dict[str, str]:
    """The texts of a manifest (JSON lines) by id; none where there is no manifest.

    Raises:
        FeatureError: it cannot be read, or a line is not an utterance.
    """
    if manifest is None:
        return {}
    try:
        lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").split("\n") if line]
        return {str(line["id"]): str(line.get("text", "")) for line in lines}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise FeatureError(f"{manifest}: not a manifest ({reason}); name another with --manifest") from None


def predictions_csv(evaluation: Evaluation, run: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """Every utterance of the split under every seed; `true` is empty where there is none, as are speaker and text."""
    header = ["run", "seed", "utterance", "conversation", "split", "true", "predicted"]
    if evaluation.task.target == "label":
        header += [f"p_{label}" for label in evaluation.labels]
    said = [
        (utterance, conversation, [plain_cell(speaker), plain_cell(texts.get(utterance, ""))])
        for utterance, conversation, speaker in zip(
            evaluation.ids, evaluation.conversations, evaluation.speakers, strict=True
        )
    ]
    rows = (
        [run["id"], seed.provenance.seed, utterance, conversation, "test", *cells, *known]
        for seed in evaluation.seeds
        for (utterance, conversation, known), cells in zip(said, _cells(evaluation, seed.answers), strict=True)
    )
    return csv_text([*header, "speaker", "text"], rows)


def confusion_csv(evaluation: Evaluation, run: Mapping[str, Any]) -> str:
    """Every utterance that counts under every seed: its true class and the predicted one."""
    counted = evaluation.counted
    rows = (
        [run["id"], seed.provenance.seed, actual, predicted]
        for seed in evaluation.seeds
        for actual, predicted in _classes(evaluation, evaluation.true[counted], seed.answers[counted])
    )
    return csv_text(["run", "seed", "actual", "predicted"], rows)


def _cells(evaluation: Evaluation, answers: np.ndarray) -> Iterator[list[str]]:
    """Of each utterance: what is true, what is predicted, and the probabilities of labels."""
    if evaluation.task.target == "score":
        for true, (score,) in zip(evaluation.true, answers, strict=True):
            yield ["" if np.isnan(true) else number(true), number(score)]
        return
    labels = [*evaluation.labels, ""]  # -1 = unlabelled is the last
    for true, probabilities in zip(evaluation.true, answers, strict=True):
        yield [labels[true], labels[probabilities.argmax()], *map(number, probabilities)]


def _classes(evaluation: Evaluation, true: np.ndarray, answers: np.ndarray) -> Iterator[tuple[str, str]]:
    """True and predicted class of each utterance."""
    if evaluation.task.target == "score":
        return zip(map(str, to_seven(true)), map(str, to_seven(answers[:, 0])), strict=True)
    labels = evaluation.labels
    return ((labels[one], labels[other]) for one, other in zip(true, answers.argmax(-1), strict=True))
