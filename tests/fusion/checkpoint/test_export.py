"""fusion-export, and what happens to a model folder on its way to somebody else."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from fusion.checkpoint import load_model
from fusion.cli import evaluate_app, export_app, train_app
from fusion.data import load_split
from fusion.errors import ModelError
from fusion.models import MODELS
from tests.fusion.made import Made, make_features, tiny_recipe, train_made, write_made

ROOT = Path(__file__).parents[3]
FILES = ["README.md", "config.json", "hashes.json", "history.json", "model.safetensors"]
PARAMS = """
model: {name: concat, dim: 8, heads: 2, audio_frames: 8, conversation_encoder: none}
train: {seeds: [0, 1], epochs: 2}
evaluate: {resamples: 20}
"""


def run(app: Any, *arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with features, models and results; not to be changed."""
    folder = tmp_path_factory.mktemp("project")
    write_made(folder / "data" / "feats.h5", Made(conversations=(4, 3, 3)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "params.yaml").write_text(PARAMS)
        assert run(train_app, "--features", "data/feats.h5").exit_code == 0
        assert run(evaluate_app, "--features", "data/feats.h5").exit_code == 0
        other = ["--set", "train.epochs=1", "--output", "models/other"]
        assert run(train_app, "--features", "data/feats.h5", *other).exit_code == 0
    return folder


@pytest.fixture
def project(trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy, which is the working directory."""
    copy = Path(shutil.copytree(trained, tmp_path / "project"))
    monkeypatch.chdir(copy)
    return copy


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_seed_becomes_a_folder_with_test_scores(project: Path) -> None:
    before = {name: (project / "models/concat/seed-1" / name).read_bytes() for name in FILES}
    done = run(export_app, "models/concat/seed-1", "--output", "shared/concat", "--results", "results")
    assert (done.exit_code, done.stdout) == (0, "shared/concat: concat, seed 1, with test scores\n")
    assert names(project / "shared") == ["concat"]
    assert names(project / "shared" / "concat") == FILES
    for name, content in before.items():
        assert (project / "models/concat/seed-1" / name).read_bytes() == content
        assert name == "README.md" or (project / "shared/concat" / name).read_bytes() == content
    card, content = (
        (project / "shared/concat/README.md").read_text(),
        json.loads(Path("results/details.json").read_text()),
    )
    own, mean = content["seeds"]["1"]["test"]["macro_f1"], content["test"]["macro_f1"]
    cells = [
        f"{own['value']:.3f}",
        f"{own['low']:.3f} to {own['high']:.3f}",
        f"{mean['mean']:.3f} ± {mean['std']:.3f}",
        f"{mean['low']:.3f} to {mean['high']:.3f}",
        f"{mean['floor']:.3f}",
        f"{mean['chance']:.3f}",
    ]
    assert f"| macro F1 | {' | '.join(cells)} |" in card
    results = ModelCard(card).data.eval_results
    assert results is not None
    assert {(one.dataset_split, one.metric_value) for one in results if one.metric_name == "macro F1"} == {
        ("test", own["value"])
    }


def test_a_folder_of_several_seeds_is_answered_with_one_of_them(project: Path) -> None:
    done = run(export_app, "models/concat", "--output", "shared")
    assert done.exit_code == 2
    assert "models/concat: the models of several seeds; name one of them, such as models/concat/seed-0" in done.stderr
    assert not (project / "shared").exists()


def test_a_shared_folder_is_replaced_only_where_that_is_said_and_nothing_else(project: Path) -> None:
    assert run(export_app, "models/concat/seed-0", "--output", "shared").exit_code == 0
    again = run(export_app, "models/concat/seed-0", "--output", "shared")
    assert again.stdout == "shared: concat, seed 0, as trained; it was there already, unchanged\n"
    for other in (["models/concat/seed-1"], ["models/concat/seed-0", "--results", "results"]):
        refused = run(export_app, *other, "--output", "shared")
        assert refused.exit_code == 2
        assert "shared: holds another model or card (" in refused.stderr
        assert load_model(project / "shared").provenance.seed == 0
    assert run(export_app, "models/concat/seed-1", "--output", "shared", "--overwrite").exit_code == 0
    assert load_model(project / "shared").provenance.seed == 1
    (project / "shared" / "notes.txt").write_text("mine")
    for output in ("shared", "data", "params.yaml", "models/concat/seed-0", "models/concat", "models/concat/seed-0/x"):
        refused = run(export_app, "models/concat/seed-0", "--output", output)
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1), output
        assert "name another one with --output" in refused.stderr
    assert (project / "shared" / "notes.txt").exists()
    assert (project / "data" / "feats.h5").exists()
    assert names(project / "models" / "concat" / "seed-0") == FILES


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "model": (lambda content: content["run"].update(model="hcam"), "its model hcam, the model's concat"),
    "parameters": (lambda content: content["run"].update(params="abc"), "of another model: its parameters abc"),
    "features": (lambda content: content["run"].update(trained_on="abc"), "its training features abc"),
    "seed": (lambda content: content["seeds"].pop("1"), "its seed 0,1, the model's 1"),
    "epochs": (lambda content: content["seeds"]["1"]["epochs"].update({"fusion.fused": 99}), "its chosen epochs"),
    "scores": (lambda content: content["seeds"]["1"]["validation"].update(uar=0.5), "its validation scores"),
    "no seeds": (lambda content: content.pop("seeds"), "details.json: damaged, or of another version (KeyError"),
}


@pytest.mark.parametrize("change", REFUSED)
def test_results_of_another_model_are_refused(project: Path, change: str) -> None:
    alter, message = REFUSED[change]
    edit(project / "results" / "details.json", alter)
    refused = run(export_app, "models/concat/seed-1", "--output", "shared", "--results", "results")
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert not (project / "shared").exists()


def test_results_of_another_training_and_missing_ones_are_refused(project: Path) -> None:
    other = run(export_app, "models/other/seed-0", "--output", "shared", "--results", "results")
    assert "results/details.json: of another model: its parameters" in other.stderr
    missing = run(export_app, "models/concat/seed-0", "--output", "shared", "--results", "none")
    assert "none/details.json: no such file; score the model with fusion-evaluate first" in missing.stderr
    several = run(export_app, "models/concat", "--output", "shared")
    assert "name one of them, such as models/concat/seed-0" in several.stderr


@pytest.mark.soak
def test_the_page_on_sharing_runs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own commands, with the model present for the one that it names."""
    done = run(export_app, "models/concat/seed-0", "--output", "shared/hbaf", "--results", "results", "--onnx")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == "shared/hbaf: concat, seed 0, with test scores and ONNX\n"
    assert names(project / "shared" / "hbaf") == sorted([*FILES, "model.onnx"])
    assert "model.onnx" in (project / "shared/hbaf/README.md").read_text()
    page = (ROOT / "docs" / "sharing.md").read_text(encoding="utf-8")
    loading, onnx = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(onnx, {})
    assert re.fullmatch(r"((anger|joy|neutral) (0\.\d+|1\.0)\n){3}", capsys.readouterr().out)
    exec(loading.replace("hbaf import HBAF", "baselines import Concat").replace("HBAF", "Concat"), {})


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", MODELS)
def test_a_folder_that_moved_gives_the_same_answers_by_every_loader(name: str, tmp_path: Path) -> None:
    features = make_features(Made(conversations=(4, 3, 3)))
    train_made(features, tmp_path / "trained", tiny_recipe({"name": name}, epochs=1))
    batch = load_split(features, "test", modalities="both", audio_frames=8).gather(torch.arange(3))
    with torch.inference_mode():
        expected = load_model(tmp_path / "trained" / "seed-0").model(batch).logits
        shutil.move(tmp_path / "trained" / "seed-0", tmp_path / "elsewhere")
        loaded = load_model(tmp_path / "elsewhere")
        shared = type(loaded.model).from_pretrained(tmp_path / "elsewhere")  # type: ignore[attr-defined]
        assert not shared.training
        assert torch.equal(loaded.model(batch).logits, expected)
        assert torch.equal(shared(batch).logits, expected)


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def resave(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def resaved(path: Path) -> None:
        weights = load_file(path)
        change(weights)
        save_file(weights, path)

    return resaved


BIAS = "classifier.1.bias"
DAMAGE: dict[str, tuple[Callable[[Path], Any], bool]] = {  # and whether `from_pretrained` sees it, too
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), True),
    "empty": (lambda path: path.write_bytes(b""), True),
    "header's length": (lambda path: path.write_bytes(flip(path.read_bytes(), 1)), True),
    "header": (lambda path: path.write_bytes(flip(path.read_bytes(), 9)), True),
    "a number": (lambda path: path.write_bytes(flip(path.read_bytes(), -1)), False),
    "more": (resave(lambda weights: weights.update(extra=torch.zeros(1))), True),
    "missing": (resave(lambda weights: weights.pop(BIAS)), True),
    "shape": (resave(lambda weights: weights.update({BIAS: torch.zeros(5)})), True),
    "dtype": (resave(lambda weights: weights.update({BIAS: weights[BIAS].half()})), False),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights_are_refused(project: Path, damage: str) -> None:
    folder = project / "models" / "concat" / "seed-0"
    spoil, seen = DAMAGE[damage]
    spoil(folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"seed-0/model\.safetensors: damaged.*; train it again"):
        load_model(folder)
    refused = run(export_app, str(folder), "--output", "shared")
    assert (refused.exit_code, (project / "shared").exists()) == (2, False)
    if seen:
        model: Any = type(load_model(project / "models" / "concat" / "seed-1").model)
        with pytest.raises(Exception, match=r"(?i)safetensor|header|state_dict|missing|size|invalid"):
            model.from_pretrained(folder)


def test_features_stay_unread(project: Path) -> None:
    """A folder is shared by whoever has the model, who may not have the data."""
    shutil.rmtree(project / "data")
    assert run(export_app, "models/concat/seed-0", "--output", "shared").exit_code == 0
