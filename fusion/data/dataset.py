"""A feature file as a torch `Dataset`, for models and loops of your own: one utterance at a time, nothing padded."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.store import Features, Part


class FeatureItem(NamedTuple):
    """One utterance.

    Shape:
        audio: (frames, dim) or (frames, layers, dim) float32, frames 0 where it has none
        text: (tokens, dim) or (tokens, layers, dim) float32, tokens 0 where it has none
    """

    audio: Tensor
    text: Tensor
    label: int  # into the label names; -1: it has none
    score: float  # nan: it has none
    id: str


class FeatureDataset(Dataset[FeatureItem]):
    """The utterances of a `split`, or of all (None), in the order of the file; rows are read when asked for."""

    def __init__(self, features: Features, split: str | None = None) -> None:
        self.features = features
        splits = features.utterances.splits
        self.indices = [index for index, name in enumerate(splits) if split in (None, name)]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> FeatureItem:
        index, table = self.indices[position], self.features.utterances
        audio, text = (_rows(part, index) for part in (self.features.audio, self.features.text))
        return FeatureItem(audio, text, int(table.labels[index]), float(table.scores[index]), table.ids[index])


def _rows(part: Part | None, index: int) -> Tensor:
    return torch.zeros(0, 1) if part is None else torch.from_numpy(part.rows(index).astype("float32"))
