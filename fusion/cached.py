"""What a model is given of features that are in a file already, whatever labels the file has."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from fusion.data import Split, hold, load_split
from fusion.errors import FeatureError
from fusion.heard import Known, Stored, check_stored, empty
from fusion.memory import memory_for_features
from fusion.params import ModelParams
from pipeline.store import MODALITIES, Features


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
