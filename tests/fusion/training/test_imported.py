"""An imported feature file trains like any other."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fusion.errors import ModelError
from fusion.prediction import Predictor, Turn
from pipeline.errors import EncoderError
from pipeline.imports import import_features
from pipeline.imports.layout import Given
from pipeline.params import DatasetParams, ImportParams
from pipeline.store import Features, read_features
from tests.fusion.made import Made, make_features, tiny_recipe, train_made, write_made
from tests.pipeline.made import write_rows

MADE = Made(conversations=(6, 3, 3))


def imported(root: Path, features: Features) -> Features:
    """The features, taken apart to an .npz a modality and a table, and imported."""
    table = features.utterances
    rows = [
        {
            "id": name,
            "conversation": table.conversations[index],
            "turn": int(table.turns[index]),
            "split": table.splits[index],
            "label": "" if table.labels[index] < 0 else features.label_names[table.labels[index]],
        }
        for index, name in enumerate(table.ids)
    ]
    given = []
    for modality in ("audio", "text"):
        part = getattr(features, modality)
        np.savez(root / f"{modality}.npz", **{name: part.rows(index) for index, name in enumerate(table.ids)})
        given.append(Given(modality, str(root / f"{modality}.npz")))
    path = write_rows(root / "table.tsv", rows[::-1])
    import_features(path, given, root / "imported.h5", ImportParams(), DatasetParams())
    return read_features(root / "imported.h5")


def test_it_holds_what_the_other_holds(tmp_path: Path) -> None:
    made = make_features(MADE)
    features = imported(tmp_path, made)
    assert vars(features.utterances).keys() == vars(made.utterances).keys()
    for name, column in vars(made.utterances).items():
        np.testing.assert_array_equal(getattr(features.utterances, name), column)
    assert features.label_names == made.label_names
    for modality in ("audio", "text"):
        part, expected = getattr(features, modality), getattr(made, modality)
        np.testing.assert_array_equal(part.values, expected.values)
        np.testing.assert_array_equal(part.offsets, expected.offsets)
        assert part.digest == expected.digest


def test_it_trains_to_the_same_weights(tmp_path: Path) -> None:
    recipe = tiny_recipe(epochs=2)
    train_made(write_made(tmp_path / "made.h5", MADE), tmp_path / "models" / "made", recipe)
    train_made(imported(tmp_path, make_features(MADE)), tmp_path / "models" / "imported", recipe)
    weights = [
        (tmp_path / "models" / name / "seed-0" / "model.safetensors").read_bytes() for name in ("made", "imported")
    ]
    assert weights[0] == weights[1]
    assert "imported" in (tmp_path / "models" / "imported" / "seed-0" / "config.json").read_text()


def test_its_model_says_that_it_answers_for_the_utterances_of_its_import_alone(tmp_path: Path) -> None:
    train_made(imported(tmp_path, make_features(MADE)), tmp_path / "models", tiny_recipe(epochs=1))
    (tmp_path / "others").mkdir()
    others = imported(tmp_path / "others", make_features(replace(MADE, seed=1)))
    with Predictor.load(tmp_path / "models", "cpu") as predictor:
        with pytest.raises(ModelError, match="can only predict the utterances of that import: import others together"):
            predictor.predict_features(others)
        with pytest.raises(EncoderError, match="imported, which no encoder can make of others"):
            predictor.predict([Turn("Hello.")])
