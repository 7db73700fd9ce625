"""What an evaluation says of each utterance, as CSV: one way for labels, one for scores.

A true score has its own place beside the predicted one. Its confusions are those of the seven classes that whole scores
are, so that the same plot shows them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fusion.evaluate import Evaluation
from fusion.score_metrics import to_seven
from fusion.tables import csv_text, number


def predictions_csv(evaluation: Evaluation, run: Mapping[str, Any]) -> str:
    """Every utterance of the split under every seed; `true` is empty where there is none."""
    header = ["run", "seed", "utterance", "conversation", "split", "true", "predicted"]
    if evaluation.task.target == "label":
        header += [f"p_{label}" for label in evaluation.labels]
    rows = (
        [run["id"], seed.provenance.seed, utterance, conversation, "test", *cells]
        for seed in evaluation.seeds
        for utterance, conversation, cells in zip(
            evaluation.ids, evaluation.conversations, _cells(evaluation, seed.answers), strict=True
        )
    )
    return csv_text(header, rows)


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
