"""Turns that were encoded a moment ago, and the split that a model is given of them.

Axes: utterances, frames (audio) or tokens (text), layers, dim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fusion.data import Split, conversation_offsets
from fusion.errors import ModelError
from fusion.ragged import Resident, pool
from pipeline.store import MODALITIES, UNLABELLED

Stored = Mapping[str, tuple[int, int]]  # (layers, dim) by modality


@dataclass(frozen=True)
class Known:
    """What is known of a turn besides its features."""

    conversation: str
    turn: int
    speaker: str | None
    id: str
    status: str


@dataclass(frozen=True, eq=False)
class Heard(Known):
    """A turn with its features.

    Shape:
        audio: (frames, dim) or (frames, layers, dim); None where it has none
        text: (tokens, dim) or (tokens, layers, dim); None where it has none
    """

    audio: np.ndarray | None
    text: np.ndarray | None


def shorten(frames: np.ndarray | None, limit: int) -> np.ndarray | None:
    """Audio of more than `limit` frames, average-pooled to as many, as `fusion.data.load_split` does it."""
    return None if frames is None else pool(frames, torch.tensor([len(frames)]), limit).values.numpy()


def split_of(turns: Sequence[Heard], stored: Stored, device: torch.device) -> Split:
    """All turns as a split, which lie conversation by conversation; nothing is known of labels and scores.

    Raises:
        ModelError: features are of another size than what the model has `stored`.
    """
    rows = {name: _packed(name, [getattr(turn, name) for turn in turns], stored[name], device) for name in MODALITIES}
    names = [turn.conversation for turn in turns]
    return Split(
        name="predicted",
        ids=[turn.id for turn in turns],
        conversation_ids=names,
        labels=torch.full((len(turns),), UNLABELLED),
        scores=torch.full((len(turns),), torch.nan),
        conversations=conversation_offsets(names),
        audio=rows["audio"],
        text=rows["text"],
    )


def empty(utterances: int, stored: tuple[int, int], device: torch.device) -> Resident:
    """A modality that every utterance lacks."""
    values = torch.zeros(0, *_shape(stored), device=device)
    return Resident.packed(values, torch.zeros(utterances, dtype=torch.int64))


def check_stored(name: str, row_shape: tuple[int, ...], stored: tuple[int, int]) -> None:
    """Raise ModelError unless one row of features is what the model takes."""
    if row_shape not in (_shape(stored), stored):
        raise ModelError(
            f"the model takes {name} features of {stored[0]} x {stored[1]} (layers x dim), but its encoder gives "
            f"{' x '.join(map(str, row_shape))}; its config.json contradicts itself, take it from its source again"
        )


def _packed(name: str, rows: Sequence[np.ndarray | None], stored: tuple[int, int], device: torch.device) -> Resident:
    present = [array for array in rows if array is not None]
    if not present:
        return empty(len(rows), stored, device)
    check_stored(name, present[0].shape[1:], stored)
    lengths = torch.tensor([0 if array is None else len(array) for array in rows])
    return Resident.packed(torch.from_numpy(np.concatenate(present)).to(device), lengths)


def _shape(stored: tuple[int, int]) -> tuple[int, ...]:
    layers, dim = stored
    return (dim,) if layers == 1 else (layers, dim)
