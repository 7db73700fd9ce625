"""params/*.yaml, the authors' settings: every line names its source, is accepted, and trains."""

import re
from pathlib import Path

import pytest

from fusion.ablation.variants import read_variants
from fusion.cli import evaluate_app, train_app
from fusion.data import load_split
from fusion.params import read_recipe
from fusion.training import fit
from pipeline.params import AudioParams, DatasetParams, TextParams
from pipeline.settings import read_section
from tests.fusion.made import Made, make_features, write_made
from tests.fusion.test_fusion_cli import run

FOLDER = Path(__file__).parents[2] / "params"
FILES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SMALL = {
    "hcam-paper": ["model.dim=12", "model.hcam.attention_dim=6", "train.epochs=2", "train.seeds=[0]"],
    "hbaf-sister": ["model.dim=8", "train.epochs=2", "train.seeds=[0]"],
}


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.yaml"


def test_every_file_is_tried() -> None:
    assert set(FILES) == set(SMALL)


@pytest.mark.parametrize("name", FILES)
def test_every_line_names_its_source_and_is_accepted(name: str) -> None:
    text = path_of(name).read_text(encoding="utf-8")
    sources = re.findall(r"^#   (\w+)  +\S", text, re.MULTILINE)
    settings = text[text.index("\n\n") :].partition("\nablations:")[0].splitlines()
    keys = [line for line in settings if re.match(r"\s+\w+: \S", line)]
    assert len(keys) > 20
    assert not [line for line in keys if not re.search(rf"#.*\b({'|'.join(sources)})\b", line)]
    path = path_of(name)
    for section, params in (("dataset", DatasetParams), ("audio", AudioParams), ("text", TextParams)):
        read_section(path, section, params)
    assert read_recipe(path).model.name == name.partition("-")[0]


@pytest.mark.soak
@pytest.mark.parametrize("name", FILES)
def test_every_choice_taken_back_trains(name: str) -> None:
    features = make_features(Made(conversations=(8, 4, 2), turns=(2, 6)))
    table = features.utterances
    table.speakers[:] = [f"speaker {turn % 3}" for turn in table.turns]
    splits = [load_split(features, split, modalities="both", audio_frames=8) for split in ("train", "validation")]
    for variant in read_variants(path_of(name), SMALL[name]):
        done = fit(*splits, variant.recipe, 0, classes=3)
        assert all(epoch.train["total"] > 0 for epoch in done.history), variant.name


@pytest.mark.soak
@pytest.mark.parametrize("name", FILES)
def test_the_commands_take_the_file(name: str, tmp_path: Path) -> None:
    features = tmp_path / "feats.h5"
    write_made(features, Made(conversations=(8, 4, 4)))
    settings = [text for override in SMALL[name] for text in ("--set", override)]
    models, given = str(tmp_path / "models"), ["--features", str(features), "--params", str(path_of(name))]
    run(train_app, *given, "--output", models, "--device", "cpu", *settings)
    run(evaluate_app, *given, "--models", models, "--output", str(tmp_path / "results"), "--device", "cpu")
    by = {"hcam-paper": ("lowest loss", "the loss"), "hbaf-sister": ("best weighted_f1", "weighted F1")}[name]
    assert f"kept are its epochs of the {by[0]} on validation" in (tmp_path / "results" / "table.md").read_text()
    assert f"were chosen by {by[1]} on" in (tmp_path / "models" / "seed-0" / "README.md").read_text()
