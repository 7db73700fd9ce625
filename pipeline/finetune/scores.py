"""Scores on validation, by scikit-learn, with the meanings that they have in the evaluation of fusion models."""

from collections.abc import Mapping

import numpy as np

METRICS = ("weighted_f1", "macro_f1", "accuracy", "uar")


def scores(true: np.ndarray, predicted: np.ndarray) -> Mapping[str, float]:
    """Every metric of predicted classes (utterances,); unweighted average recall is over the classes that are true."""
    from sklearn.metrics import accuracy_score, f1_score, recall_score

    values = (
        f1_score(true, predicted, average="weighted", zero_division=0),
        f1_score(true, predicted, average="macro", zero_division=0),
        accuracy_score(true, predicted),
        recall_score(true, predicted, average="macro", labels=np.unique(true), zero_division=0),
    )
    return {name: float(value) for name, value in zip(METRICS, values, strict=True)}


def majority(train: np.ndarray, true: np.ndarray) -> Mapping[str, float]:
    """Every metric of always predicting the most frequent class of the labels `train`, on the labels `true`."""
    return scores(true, np.full_like(true, np.bincount(train).argmax()))
