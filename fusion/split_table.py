"""The splits that the rows of an ablation table need."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from fusion.data import Split, hold, load_split, withhold
from fusion.memory import Held
from fusion.params import Modalities, Recipe
from fusion.ragged import Resident
from fusion.runs import Splits
from fusion.variants import Variant
from pipeline.store import Features

NAMES = ("train", "validation", "test")


class SplitTable:
    """Splits by what the models of rows are given.

    Attributes:
        held: the splits by model.audio_frames.
    """

    def __init__(self, on_device: Mapping[int, Splits], off_device: Mapping[int, Splits]) -> None:
        self.held = Held(on_device, off_device)

    def __getitem__(self, recipe: Recipe) -> Splits:
        """What a model of `recipe` is given; a withheld modality costs no copy of the other one."""
        found, modalities = self.held.here[recipe.model.audio_frames], recipe.model.modalities
        return Splits(*(withhold(split, modalities) for split in (found.train, found.validation, found.test)))


def load_splits(
    features: Features, variants: Sequence[Variant], device: torch.device, memory: int | None
) -> SplitTable:
    """The splits of all `variants`, whose rows take at most `memory` bytes of the device's or stay in the file.

    Raises:
        FeatureError: the features lack what a row needs.
    """
    splits: list[Split] = []
    given, target = [one.recipe.model for one in variants], variants[0].recipe.train.target
    all_frames = list(dict.fromkeys(one.audio_frames for one in given))
    for frames in all_frames:
        wanted = {one.modalities for one in given if one.audio_frames == frames}
        modalities: Modalities = wanted.pop() if len(wanted) == 1 else "both"
        given_to_it: dict[str, Any] = {"modalities": modalities, "audio_frames": frames, "target": target}
        splits += [load_split(features, name, **given_to_it, device=device, resident=False) for name in NAMES]
    return SplitTable(_by_frames(all_frames, hold(splits, memory)), _by_frames(all_frames, splits))


def place_splits(loaded: Mapping[int, Splits], device: torch.device, memory: int) -> SplitTable:
    """Splits in the memory of this machine, by model.audio_frames; on a GPU they take at most `memory` bytes."""
    splits = [split for one in loaded.values() for split in (one.train, one.validation, one.test)]
    off_device = [_leave(split, device) for split in splits]
    on_device = splits if device.type == "cpu" else hold(off_device, memory)
    return SplitTable(_by_frames(list(loaded), on_device), _by_frames(list(loaded), off_device))


def _leave(split: Split, device: torch.device) -> Split:
    audio, text = (rows.leave(device) if isinstance(rows, Resident) else rows for rows in (split.audio, split.text))
    return replace(split, audio=audio, text=text)


def _by_frames(all_frames: Sequence[int], splits: Sequence[Split]) -> dict[int, Splits]:
    return {frames: Splits(*splits[3 * number :][:3]) for number, frames in enumerate(all_frames)}
