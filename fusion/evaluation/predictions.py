"""What an evaluation says of each utterance, as CSV: one way for labels, one for scores; the scores of each
label; and what a manifest says of each utterance.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from fusion.errors import FeatureError
from fusion.evaluation.scores import Evaluation, sample_std
from fusion.objective import ClassScores, to_seven
from fusion.tables import csv_text, escape_markdown, markdown_table, mean_std, number, plain_cell, spread
from pipeline.settings import parse_lines, read_lines
from pipeline.store import Features

COLUMNS = ("run", "seed", "utterance", "conversation", "split", "true", "predicted")  # of predictions.csv
PROBABILITY = "p_"  # before a label, of its columns behind them
KNOWN = ("speaker", "text")  # its last columns; one more needs its name here and its value in `predictions_csv`
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
    rows = ([escape_markdown(label), *cells] for label, *cells in class_rows(described))
    return markdown_table([title, *SHOWN, "support"], rows)


class Record(BaseModel):
    """What a line of a manifest says of an utterance, as far as it is shown."""

    model_config = ConfigDict(frozen=True, strict=True)

    id: str
    text: str = ""
    status: str = "ok"
    audio: str | None = None  # relative to the corpus root
    start: float | None = None  # seconds in that file
    end: float | None = None
    samples: float = 0
    sample_rate: float | None = None
    extra: dict[str, str] = {}  # what else the corpus' table says, by column

    @property
    def seconds(self) -> float | None:
        """Of sound; None: not known."""
        return self.samples / self.sample_rate if self.samples and self.sample_rate else None


def read_records(manifest: Path | None, features: Features) -> dict[str, Record]:
    """The lines of a manifest by id; none without a manifest, or where that beside the features is of others.

    Raises:
        DataError: it cannot be read, or a line is not an utterance, or another one than was written.
        FeatureError: it lies elsewhere and names no utterance of the features.
    """
    if manifest is None:
        return {}
    records = {record.id: record for record in parse_lines(read_lines(manifest), Record, manifest)}
    if not records.keys().isdisjoint(features.utterances.ids):
        return records
    if manifest.parent == features.path.parent:
        return {}
    raise FeatureError(
        f"{manifest}: names no utterance of {features.path}; name the manifest it was made of (--manifest)"
    )


def predictions_csv(evaluation: Evaluation, run: Mapping[str, Any], records: Mapping[str, Record]) -> str:
    """Every utterance of the split under every seed; `true` is empty where there is none, as are speaker and text."""
    labels = [f"{PROBABILITY}{label}" for label in evaluation.labels] if evaluation.task.target == "label" else []
    said = [
        (
            utterance,
            conversation,
            [plain_cell(speaker), plain_cell(records[utterance].text if utterance in records else "")],
        )
        for utterance, conversation, speaker in zip(
            evaluation.ids, evaluation.conversations, evaluation.speakers, strict=True
        )
    ]
    rows = (
        [run["id"], seed.provenance.seed, utterance, conversation, "test", *cells, *known]
        for seed in evaluation.seeds
        for (utterance, conversation, known), cells in zip(said, _cells(evaluation, seed.answers), strict=True)
    )
    return csv_text([*COLUMNS, *labels, *KNOWN], rows)


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
