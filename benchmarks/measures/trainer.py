"""This project's trainer by the clock: `load_split` and `fit`, without a change to either.

Epochs are told apart from outside: their ends by the state that `fit` hands out after each, where learning turns into
validation by the first batch that is asked of the validation split.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fusion.data import Split, load_split
from fusion.params import Recipe
from fusion.training import State, StateFile, fit
from measures.epochs import EpochTime, Training, count_padding
from pipeline.store import Features


@dataclass(frozen=True, eq=False)
class _ClockedSplit(Split):
    """A split that writes down when batches are asked for; so do the splits that stages make of it."""

    clock: Callable[[], float] = time.perf_counter
    asked: list[float] = field(default_factory=list)

    def batches(self, *arguments: Any, **options: Any) -> Any:
        self.asked.append(self.clock())
        return super().batches(*arguments, **options)


@dataclass(frozen=True)
class _Clock(StateFile):
    """Takes the place of a state on disk: keeps nothing but the time, and the stage that is under way."""

    now: Callable[[], float] = time.perf_counter
    epochs: list[tuple[str, float]] = field(default_factory=list)

    def save(self, state: State) -> None:
        self.epochs.append((state.stage, self.now()))

    def load(self) -> None:
        return None


def train_ours(
    features: Features,
    recipe: Recipe,
    seed: int,
    device: str,
    loading: Mapping[str, Any],
    padding: bool,
    now: Callable[[], float] = time.perf_counter,
) -> Training:
    """All epochs of the recipe, timed by `now`; `loading` are further arguments of `load_split`."""
    load: Callable[[str], Split] = partial(
        load_split,
        features,
        modalities=recipe.model.modalities,
        audio_frames=recipe.model.audio_frames,
        target=recipe.train.target,
        device=torch.device(device),
        **dict(loading),
    )
    train, validation = _clocked(load("train"), now), _clocked(load("validation"), now)
    clock, loaded = _Clock(Path(), "", now=now), now()
    done = fit(train, validation, recipe, seed, classes=len(features.label_names), state=clock)
    epochs = []
    for (stage, ended), epoch in zip(clock.epochs, done.history, strict=True):
        learned = max(asked for asked in validation.asked if asked < ended)
        began = max(asked for asked in train.asked if asked < learned)
        epochs.append(EpochTime(stage, began, learned, ended, epoch.scores[recipe.train.metric]))
    batches = train.batches(recipe.train.conversations, torch.Generator().manual_seed(seed))
    return Training(
        epochs=epochs,
        loaded=loaded,
        score=done.validation["fused"][recipe.train.metric],
        utterances=len(train.ids),
        padding=count_padding(batches) if padding else None,
    )


def _clocked(split: Split, now: Callable[[], float]) -> _ClockedSplit:
    return _ClockedSplit(**{item.name: getattr(split, item.name) for item in fields(split)}, clock=now)
