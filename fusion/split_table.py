"""The splits that the rows of an ablation table need."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from fusion.data import Split, load_split, withhold
from fusion.params import Modalities, Recipe
from fusion.runs import Splits
from fusion.variants import Variant
from pipeline.store import Features


class SplitTable:
    """Splits by what the models of rows are given."""

    def __init__(self, loaded: Mapping[int, Splits]) -> None:
        self.loaded = loaded  # by model.audio_frames

    def __getitem__(self, recipe: Recipe) -> Splits:
        """What a model of `recipe` is given; a withheld modality costs no copy of the other one."""
        found, modalities = self.loaded[recipe.model.audio_frames], recipe.model.modalities
        return Splits(*(withhold(split, modalities) for split in (found.train, found.validation, found.test)))


def load_splits(features: Features, variants: Sequence[Variant], device: torch.device) -> SplitTable:
    """The splits of all `variants`; raises FeatureError where the features lack what a row needs."""
    loaded: dict[int, Splits] = {}
    given, target = [one.recipe.model for one in variants], variants[0].recipe.train.target
    for frames in dict.fromkeys(one.audio_frames for one in given):
        wanted = {one.modalities for one in given if one.audio_frames == frames}
        modalities: Modalities = wanted.pop() if len(wanted) == 1 else "both"
        load = partial(load_split, features, modalities=modalities, audio_frames=frames, target=target, device=device)
        loaded[frames] = Splits(load("train"), load("validation"), load("test"))
    return SplitTable(loaded)


def move(splits: Splits, device: torch.device) -> Splits:
    """The same with their rows on `device`."""
    return Splits(*(_move(split, device) for split in (splits.train, splits.validation, splits.test)))


def _move(split: Split, device: torch.device) -> Split:
    return replace(split, audio=split.audio.move(device), text=split.text.move(device))
