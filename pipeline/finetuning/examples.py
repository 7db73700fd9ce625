"""Which utterances take part in fine-tuning, what the encoder learns from (tensors with class numbers), and its scores
on validation, by scikit-learn, with the meanings that they have in the evaluation of fusion models.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.errors import DataError
from pipeline.manifest import Utterance, label_names
from pipeline.settings import Threads

if TYPE_CHECKING:
    import torch


Modality = Literal["audio", "text"]


@dataclass(frozen=True)
class Chosen:
    """The utterances that take part; the test split never does."""

    train: list[Utterance]
    validation: list[Utterance]
    labels: list[str]  # of train, sorted: their positions are the classes
    unlabelled: int  # of train and validation, left out
    absent: int  # labelled, left out because the modality is empty

    def classes(self, utterances: Sequence[Utterance]) -> list[int]:
        """The class number of each utterance."""
        return [self.labels.index(str(utterance.label)) for utterance in utterances]


@dataclass(frozen=True)
class Example:
    """One utterance and its class: samples (samples,) float32, or (tokens, 2) int64, numbers and which are its own."""

    input: "torch.Tensor"
    label: int


def choose(utterances: Sequence[Utterance], modality: Modality, source: str) -> Chosen:
    """The labelled utterances of train and validation that have `modality`; `source` leads every message.

    Raises:
        DataError: train has fewer than two labels, validation has none, or one that train lacks.
    """
    splits = {
        split: [u for u in utterances if u.split == split and u.label is not None] for split in ("train", "validation")
    }
    present = {split: [u for u in labelled if _has(u, modality)] for split, labelled in splits.items()}
    for split, found in present.items():
        if not found:
            fix = "name the column of labels in dataset.columns" if not splits[split] else f"see its {modality}"
            if split == "validation":
                fix += ", or let dataset.split make the splits"
            raise DataError(
                f"{source}: fine-tuning needs utterances of the {split} split with a label and {modality}, found none; "
                f"{fix}"
            )
    labels = label_names([*present["train"], *present["validation"]], source)
    if len(labels) < 2:
        raise DataError(
            f"{source}: every labelled utterance of train is '{labels[0]}'; fine-tuning needs two labels or more"
        )
    considered = sum(u.split in splits for u in utterances)
    labelled = sum(map(len, splits.values()))
    left = sum(map(len, present.values()))
    return Chosen(present["train"], present["validation"], labels, considered - labelled, labelled - left)


def _has(utterance: Utterance, modality: Modality) -> bool:
    return bool(utterance.samples and utterance.audio) if modality == "audio" else bool(utterance.text)


def lay_down(
    path: Path, utterances: Sequence[Utterance], load: Callable[[Utterance], "torch.Tensor"], threads: int
) -> "list[torch.Tensor]":
    """Decode every clip to the flat file `path`; returns them (samples,) float32, mapped from that file.

    Raises:
        OSError: the file cannot be written.
    """
    import numpy as np
    import torch
    from tqdm import tqdm

    lengths = []
    with path.open("wb") as file, Threads(threads) as pool:
        for clip in tqdm(
            pool.map(load, utterances), total=len(utterances), desc="decode", unit="clip", disable=None, leave=False
        ):
            file.write(np.ascontiguousarray(clip.numpy(), dtype=np.float32).data)
            lengths.append(len(clip))
    flat = torch.from_numpy(np.memmap(path, np.float32, mode="c"))  # copy on write: torch wants writable memory
    return list(flat.split(lengths))


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
