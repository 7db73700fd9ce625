"""The splits that the rows of an ablation table need."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from fusion.data import Split, hold, load_split, withhold
from fusion.params import Modalities, Recipe
from fusion.runs import Splits
from fusion.variants import Variant
from pipeline.store import Features

NAMES = ("train", "validation", "test")


class SplitTable:
    """Splits by what the models of rows are given."""

    def __init__(self, loaded: Mapping[int, Splits]) -> None:
        self.loaded = loaded  # by model.audio_frames

    def __getitem__(self, recipe: Recipe) -> Splits:
        """What a model of `recipe` is given; a withheld modality costs no copy of the other one."""
        found, modalities = self.loaded[recipe.model.audio_frames], recipe.model.modalities
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
    held = hold(splits, memory)
    return SplitTable({frames: Splits(*held[3 * number :][:3]) for number, frames in enumerate(all_frames)})


def move(splits: Splits, device: torch.device) -> Splits:
    """The same with their rows on `device`."""
    return Splits(*(_move(split, device) for split in (splits.train, splits.validation, splits.test)))


def _move(split: Split, device: torch.device) -> Split:
    return replace(split, audio=split.audio.move(device), text=split.text.move(device))
