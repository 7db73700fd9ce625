"""Fabricated feature files with a planted signal, small enough that a model learns them in seconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from fusion.checkpoint import Provenance
from fusion.params import LossParams, ModelParams, Recipe, TrainParams
from fusion.training import train_seeds
from pipeline.store import Features, Identity, Part, Utterances, read_features
from tests.pipeline.made import part_from_arrays, write_features

LABELS = ["anger", "joy", "neutral"]
AUDIO = Identity({"model": "made-audio", "weights": "a1", "layers": [2]})
TEXT = Identity({"model": "made-text", "weights": "t1", "layers": [2]})

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Made:
    """How many conversations a split has, how features look, and where the signal is planted."""

    conversations: Sequence[int] = (12, 5, 6)  # of train, validation, test
    turns: tuple[int, int] = (1, 6)  # fewest and most of a conversation
    frames: tuple[int, int] = (0, 9)  # fewest and most of an utterance
    tokens: tuple[int, int] = (0, 5)
    audio_dim: int = 6
    text_dim: int = 5
    layers: tuple[int, int] = (1, 1)  # of audio and text
    dtype: Any = np.float16
    signal: Sequence[str] = ("audio", "text")  # modalities whose features tell the label or the score
    unlabelled: float = 0.1  # share
    scored: bool = False  # whether there are scores, which features tell then instead of the labels
    people: int = 0  # who speak in all conversations; 0: nobody knows
    seed: int = 0
    labels: Sequence[str] = field(default_factory=lambda: list(LABELS))


def tiny_recipe(
    model: Mapping[str, Any] = MappingProxyType({}), loss: Mapping[str, Any] = MappingProxyType({}), **train: Any
) -> Recipe:
    """A recipe that trains in a second; keywords are keys of section `train`, `model` has the model's own keys too."""
    small: dict[str, Any] = {"dim": 8, "heads": 2, "dropout": 0.1, "audio_frames": 8}
    short: dict[str, Any] = {"seeds": (0,), "epochs": 3, "conversations": 4, "learning_rate": 1e-2}
    short |= {"warmup_updates": 0, "patience_updates": 0, "average": 0}  # a few updates are all there are
    return Recipe(model_params(**small | dict(model)), LossParams(**loss), TrainParams(**short | train))


def model_params(name: str = "hbaf", **values: Any) -> ModelParams:
    """Section `model`, with the keys that are the model's own put into its group."""
    own = {key: value for key, value in values.items() if key not in ModelParams.model_fields}
    shared = {key: value for key, value in values.items() if key in ModelParams.model_fields}
    return ModelParams(name=name, **shared, **({name: own} if own else {}))  # type: ignore[arg-type]


def train_made(
    features: Features | Path, output: Path, recipe: Recipe, jobs: int | None = None, overwrite: bool = False
) -> list[Provenance]:
    """`train_seeds` on the CPU with one thread, in this process or in one that is about to be killed."""
    torch.set_num_threads(1)  # elsewhere than in a test, tests/fusion/conftest.py has not done it
    opened = read_features(features) if isinstance(features, Path) else features
    return train_seeds(opened, recipe, output, torch.device("cpu"), jobs, overwrite)


def make_table(made: Made) -> Utterances:
    random = np.random.default_rng(made.seed)
    ids, conversations, turns, splits = [], [], [], []
    for split, count in zip(SPLITS, made.conversations, strict=True):
        for conversation in range(count):
            for turn in range(random.integers(made.turns[0], made.turns[1] + 1)):
                ids.append(f"{split}/{conversation:03}/{turn:03}")
                conversations.append(f"{split}/{conversation:03}")
                turns.append(turn)
                splits.append(split)
    labels = random.integers(0, len(made.labels), len(ids))
    labels[random.random(len(ids)) < made.unlabelled] = -1
    scores = make_scores(made, len(ids))
    speakers = [f"speaker {who}" for who in np.random.default_rng(made.seed).integers(0, made.people or 1, len(ids))]
    return Utterances(
        ids, conversations, np.array(turns), speakers if made.people else [""] * len(ids), splits, labels, scores
    )


def make_scores(made: Made, count: int) -> np.ndarray:
    """Scores from -3 to 3 in steps of 0.2, some of them exactly 0, a share of them missing."""
    if not made.scored:
        return np.full(count, np.nan, np.float32)
    random = np.random.default_rng(made.seed + 100)
    scores = np.round(np.clip(random.normal(0, 1.5, count), -3, 3) * 5) / 5
    return np.where(random.random(count) < made.unlabelled, np.nan, scores).astype(np.float32)


def make_rows(
    made: Made, shifts: np.ndarray, span: tuple[int, int], layers: int, planted: bool, seed: int
) -> list[np.ndarray]:
    """Noise, one array an utterance; `planted` adds its row of `shifts` (utterances, dim) to every frame."""
    random = np.random.default_rng(seed)
    rows = []
    for shift in shifts:
        shape = (random.integers(span[0], span[1] + 1), *((layers,) if layers > 1 else ()), len(shift))
        noise = random.normal(0, 0.5, shape)
        rows.append((noise + shift * planted).astype(made.dtype))
    return rows


def make_shifts(made: Made, table: Utterances, dim: int) -> np.ndarray:
    """What features tell, (utterances, dim): a direction of the label's own, or the score along the first one."""
    if made.scored:
        return np.nan_to_num(table.scores)[:, None] * np.eye(dim)[0]
    return np.eye(dim)[table.labels] * 2.0 * (table.labels >= 0)[:, None]


def make_parts(made: Made, table: Utterances) -> dict[str, list[np.ndarray]]:
    """Rows of both modalities."""
    options = {
        "audio": (made.frames, made.audio_dim, made.layers[0]),
        "text": (made.tokens, made.text_dim, made.layers[1]),
    }
    return {
        name: make_rows(made, make_shifts(made, table, dim), span, layers, name in made.signal, made.seed + 1 + index)
        for index, (name, (span, dim, layers)) in enumerate(options.items())
    }


def make_features(made: Made = Made()) -> Features:
    """A feature file that was never written."""
    table = make_table(made)
    rows = make_parts(made, table)
    path = Path("made.h5")
    audio = part_from_arrays(path, table.ids, rows["audio"], AUDIO)
    text = part_from_arrays(path, table.ids, rows["text"], TEXT)
    return Features(path, table, list(made.labels), audio, text)


def write_made(path: Path, made: Made = Made()) -> Features:
    """The same, written to `path` and read again."""
    table = make_table(made)
    rows = make_parts(made, table)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_features(path, table, list(made.labels), (rows["audio"], AUDIO), (rows["text"], TEXT))
    return read_features(path)


def plant_copies(features: Features, split: str) -> Features:
    """The same, whose utterances of `split` have the features of the first of train, one of each in order."""
    places = np.arange(len(features.utterances))
    here = np.flatnonzero(np.array(features.utterances.splits) == split)
    places[here] = np.arange(len(here))
    audio, text = (part.take(places, part.ids) if part else None for part in (features.audio, features.text))
    return replace(features, audio=audio, text=text)


def garble_test_split(features: Features) -> Features:
    """The same file with other labels and features in its test split."""
    table = features.utterances
    test = np.array(table.splits) == "test"
    assert features.audio is not None
    assert features.text is not None
    return replace(
        features,
        utterances=replace(table, labels=np.where(test, (table.labels + 2) % len(features.label_names), table.labels)),
        audio=garble_part(features.audio, test),
        text=garble_part(features.text, test),
    )


def garble_part(part: Part, utterances: np.ndarray) -> Part:
    """A part whose rows of the marked `utterances` are not numbers, with digests to match."""
    rows = [
        np.full_like(part.rows(index), np.nan) if marked else part.rows(index)
        for index, marked in enumerate(utterances)
    ]
    return part_from_arrays(part.path, part.ids, rows, part.identity)
