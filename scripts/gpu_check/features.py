"""Features for training: made to MELD's lengths or to a size's own, with a signal planted in them."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measures.corpora import Source, sampled
from measures.planted import write_planted
from measures.spoken import Spoken

from fusion.data import Split, load_split
from fusion.params import Recipe, read_recipe
from fusion.training import StateFile, fit
from fusion.training.loop import Fit
from gpu_check.context import Context
from gpu_check.sizes import SAMPLE_RATE, Corpus
from pipeline.datasets.meld import LABELS
from pipeline.manifest import SPLITS, Utterance, manifest_order
from pipeline.media.decoding import resampled_length
from pipeline.store import Features, read_features

FIELDS = ("split", "conversation", "turn", "label", "frames", "tokens", "samples", "sample_rate")


def made_features(context: Context, corpus: Corpus) -> Features:
    """Those of a corpus of the size, in a file that is made once."""
    return read_features(write_planted(made_spoken(corpus), context.work, corpus.dim))


def made_spoken(corpus: Corpus) -> list[Spoken]:
    """Conversations whose lengths are drawn evenly between the corpus' limits; the same every time."""
    random, labels = np.random.default_rng(0), LABELS["emotion"][: corpus.labels]
    spoken: list[Spoken] = []
    for split, count in zip(SPLITS, corpus.conversations, strict=True):
        for name in (f"{split}-{number:04}" for number in range(count)):
            for turn in range(int(random.integers(corpus.turns[0], corpus.turns[1] + 1))):
                record = Utterance(
                    id=f"{name}/{turn:03}",
                    conversation=name,
                    turn=turn,
                    split=split,
                    label=labels[len(spoken) % len(labels)],
                )
                frames, tokens = (int(random.integers(low, high + 1)) for low, high in (corpus.frames, corpus.tokens))
                spoken.append(Spoken(record, frames, tokens))
    return sorted(spoken, key=lambda one: manifest_order(one.record))


def meld_spoken(context: Context, longest: int) -> tuple[list[Spoken], str]:
    """MELD's conversations by the kit, else made ones, and a note of which.

    No utterance has more than `longest` frames: training pools what is longer to as many, so its steps are the same.
    """
    table = _lengths_table(context)
    if table is None:
        made = context.size.meld
        spoken, note = made_spoken(made), "lengths are made, not MELD's"
    else:
        spoken, note = read_lengths(table), "MELD's conversations and lengths"
    return [Spoken(one.record, min(one.frames, longest), one.tokens) for one in spoken], note


def _lengths_table(context: Context) -> Path | None:
    """The kit's meld.csv; None where it has none, and at toy size."""
    table = context.kit / "meld.csv" if context.kit and context.judges else None
    return table if table is not None and table.exists() else None


def read_lengths(table: Path) -> list[Spoken]:
    """The utterances of a kit's meld.csv, in the order of a manifest."""
    spoken = []
    for row in _rows(table):
        record = Utterance(
            id=f"{row['conversation']}/{row['turn']}",
            conversation=row["conversation"],
            turn=int(row["turn"]),
            split=next(split for split in SPLITS if split == row["split"]),
            label=row["label"] or None,
        )
        spoken.append(Spoken(record, int(row["frames"]), int(row["tokens"])))
    return spoken


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def recipe_of(context: Context, model: str, *overrides: str) -> Recipe:
    """That of a model by default at the context's size, without early stopping."""
    given = [*context.size.model, f"model.name={model}", "train.seeds=[0]", "train.patience=100"]
    return read_recipe(None, [*given, *overrides])


@dataclass(frozen=True, eq=False)
class Data:
    """What a model learns from, on a device."""

    train: Split
    validation: Split
    classes: int

    def fit(self, recipe: Recipe, state: StateFile | None = None) -> Fit:
        """A model of seed 0."""
        return fit(self.train, self.validation, recipe, 0, classes=self.classes, state=state)


def load_data(features: Features, recipe: Recipe, device: str) -> Data:
    """Train and validation as models of the recipe are given them."""
    train, validation = (load_one(features, recipe, name, device) for name in ("train", "validation"))
    return Data(train, validation, len(features.label_names))


def load_one(features: Features, recipe: Recipe, split: str, device: str) -> Split:
    """A split, its rows on the device."""
    model = recipe.model
    return load_split(
        features, split, modalities=model.modalities, audio_frames=model.audio_frames, device=torch.device(device)
    )


def clip_lengths(context: Context, seconds: float) -> tuple[list[int], str]:
    """Samples at the encoder's rate of about so many seconds of audio, and a note of whose lengths they are."""
    table = _lengths_table(context)
    if table is not None:
        sources = [Source(int(row["samples"]), int(row["sample_rate"])) for row in _rows(table) if int(row["samples"])]
        note = "MELD's lengths"
    else:
        drawn = np.random.default_rng(0).lognormal(np.log(2.6), 0.7, max(4, int(seconds / 3.3)))
        sources = [Source(int(one * SAMPLE_RATE), SAMPLE_RATE) for one in np.clip(drawn, 0.3, 40.0)]
        note = "lengths are made, not MELD's"
    chosen = sampled(sources, seconds)
    return [resampled_length(one.samples, one.sample_rate, SAMPLE_RATE) for one in chosen], note
