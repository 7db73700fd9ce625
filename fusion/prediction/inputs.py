"""The split that a model is given: of turns that were encoded a moment ago, or of features in a file, whatever labels
it has.

Axes: utterances, frames (audio) or tokens (text), layers, dim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fusion.data import Resident, Split, conversation_offsets, hold, load_split, number_speakers, pool
from fusion.errors import FeatureError, ModelError
from fusion.params import ModelParams
from fusion.runtime import memory_for_features
from pipeline.store import MODALITIES, UNLABELLED, Features

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
    names, speakers = [turn.conversation for turn in turns], [turn.speaker or "" for turn in turns]
    return Split(
        name="predicted",
        ids=[turn.id for turn in turns],
        conversation_ids=names,
        labels=torch.full((len(turns),), UNLABELLED),
        scores=torch.full((len(turns),), torch.nan),
        conversations=conversation_offsets(names),
        speakers=number_speakers(names, speakers),
        speaker_names=speakers,
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


def load_cached(features: Features, name: str, model: ModelParams, stored: Stored, device: torch.device) -> Split:
    """A split, in which a modality that the file lacks, or that the model does not look at, is empty.

    Raises:
        ModelError: features are of another size than what the model has `stored`.
        FeatureError: the split has no utterance, or the file nothing that the model looks at.
    """
    parts = {name: part for name in model.looks_at if (part := getattr(features, name)) is not None}
    if not parts:
        raise FeatureError(
            f"{features.path}: the model looks at {' and '.join(model.looks_at)}, of which nothing is in the file; "
            "name one with such features"
        )
    for modality, part in parts.items():
        check_stored(modality, part.values.shape[1:], stored[modality])
    split = load_split(
        features,
        name,
        modalities="both" if len(parts) == 2 else "audio" if "audio" in parts else "text",
        audio_frames=model.audio_frames,
        target=None,
        device=device,
        resident=False,
    )
    absent: Mapping[str, Any] = {
        modality: empty(len(split.ids), stored[modality], device) for modality in MODALITIES if modality not in parts
    }
    return hold([replace(split, **absent)], memory_for_features("auto", device))[0]


def cached_turns(features: Features, split: Split, model: ModelParams) -> list[Known]:
    """What the file says of each utterance of `split`; the status is that of the modalities that the model looks at."""
    table, first = features.utterances, features.utterances.splits.index(split.name)
    return [
        Known(
            conversation=table.conversations[index],
            turn=int(table.turns[index]),
            speaker=table.speakers[index] or None,
            id=table.ids[index],
            status=_status(features, split, index - first, model),
        )
        for index in range(first, first + len(split.ids))
    ]


def _status(features: Features, split: Split, index: int, model: ModelParams) -> str:
    """In the words of `pipeline.manifest`."""
    issues = []
    for modality in model.looks_at:
        if not int(getattr(split, modality).lengths[index]):
            part = getattr(features, modality)
            issues.append((part.failed if part else {}).get(split.ids[index], f"no-{modality}"))
    if len(issues) == len(model.looks_at):
        issues.append("context-only")
    return "+".join(issues) or "ok"
