"""A piece of the embedded corpus from recordings to features, with toy encoders, and models that were trained on it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fusion.params import LossParams, Recipe, TrainParams
from pipeline.extraction import extract_audio, extract_text
from pipeline.join import join
from pipeline.manifest import Utterance, write_manifest
from pipeline.params import AudioParams, TextParams
from pipeline.store import Features
from tests.demo import DEMO, conversations, prepared
from tests.fusion.made import model_params, train_made

SHARES = {"train": 3, "validation": 1, "test": 2}  # conversations


@dataclass(frozen=True)
class Recorded:
    """Where it lies: `utterances.csv` in `folder`, the recordings in `root`."""

    folder: Path
    root: Path
    utterances: list[Utterance]
    features: Features

    @property
    def table(self) -> Path:
        return self.folder / "utterances.csv"

    def train(self, name: str = "hbaf", seeds: tuple[int, ...] = (0,), target: str = "label", **model: Any) -> Path:
        """The folder of small models, which are trained with the first call."""
        key = "-".join([name, target, *map(str, seeds), *(f"{key}={value}" for key, value in model.items())])
        folder = self.folder / "models" / key
        if not folder.exists():
            recipe = Recipe(
                model_params(name, **{"dim": 8, "heads": 2, "audio_frames": 16} | model),
                LossParams(),
                TrainParams(epochs=2, seeds=seeds, target=target, learning_rate=1e-2),  # type: ignore[arg-type]
            )
            train_made(self.features, folder, recipe)
        return folder


def make_recorded(folder: Path) -> Recorded:
    """Encode a few conversations of each split; scores are made of how long a text is."""
    names = conversations()
    chosen = [name for split, count in SHARES.items() for name in names[split][:count]]
    utterances = [u.model_copy(update={"score": len(u.text) / 10 - 2}) for u in prepared(chosen, folder)]
    write_manifest(folder / "manifest.jsonl", utterances)
    extract_audio(folder / "manifest.jsonl", folder / "audio.h5", AudioParams(), DEMO, "downmix", "cpu")
    extract_text(folder / "manifest.jsonl", folder / "text.h5", TextParams(), "cpu")
    features = join(folder / "manifest.jsonl", folder / "audio.h5", folder / "text.h5", folder / "feats.h5")
    return Recorded(folder, DEMO, utterances, features)


def without(features: Features, modality: str) -> Features:
    """The same features, of which one modality is not there."""
    return replace(features, **{modality: None})  # type: ignore[arg-type]
