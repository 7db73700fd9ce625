"""docs/adding-a-model.md keeps its word: its model plugs in, passes its tests, and all that is asked of every model."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import fusion
from fusion.ablation import read_variants
from fusion.cli import ablate_app, evaluate_app, export_app, predict_app, train_app
from fusion.errors import ModelError
from fusion.params import ModelParams, read_recipe
from pipeline.settings import SettingsError
from tests.commands import commands_of
from tests.fusion.made import tiny_recipe, train_made, write_made
from tests.fusion.models import test_models as every_model

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding-a-model.md").read_text(encoding="utf-8")
MODEL, TESTS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
NAME = "gated:Gated"
SETTINGS: list[dict[str, Any]] = [
    {},
    {"gate": False},
    {"conversation_encoder": "none"},
    {"direction": "past"},
    {"audio_layers": 3, "text_layers": 2},
]
APPS = {"fusion-train": train_app, "fusion-evaluate": evaluate_app, "fusion-predict": predict_app}
PARAMS = "train: {epochs: 1, seeds: [0]}\nmodel: {dim: 8, heads: 2}\nevaluate: {resamples: 10}\n"


def forget() -> None:
    """What was imported from a test's folder, as a new process would not know it."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("gated", "gates", "mine")]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current one, with the page's model, features and parameters."""
    (tmp_path / "gated.py").write_text(MODEL)
    (tmp_path / "params.yaml").write_text(PARAMS)
    write_made(tmp_path / "data" / "feats.h5")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    forget()


def run(app: Any, *arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def refused(app: Any, *arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.stderr
    return done.stderr


def test_the_tests_of_the_page_pass(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    defined: dict[str, Any] = {}
    exec(compile(TESTS, "test_gated.py", "exec"), defined)
    tests = {name: test for name, test in defined.items() if name.startswith("test_")}
    tests.pop("test_it_learns_what_features_tell")(folder)
    assert len(tests) == 2
    for test in tests.values():
        test()


@pytest.mark.parametrize("setting", SETTINGS, ids=every_model.name_of)
def test_the_model_of_the_page_is_as_every_model_must_be(setting: dict[str, Any], tmp_path: Path) -> None:
    every_model.test_padding_changes_nothing(NAME, setting)
    every_model.test_groups_change_nothing(NAME, setting)
    every_model.test_empty_modalities_give_finite_outputs_and_gradients(NAME, setting, "some empty")
    every_model.test_a_gradient_reaches_every_parameter_in_some_stage_and_no_other_in_any(NAME, setting)
    every_model.test_a_saved_model_gives_identical_answers(NAME, setting, tmp_path)


def test_the_model_of_the_page_has_no_view_of_later_turns_and_says_what_it_takes(tmp_path: Path) -> None:
    every_model.test_a_model_of_the_past_sees_no_later_turn(NAME)
    every_model.test_a_model_of_both_directions_sees_its_conversation_and_no_other(NAME)
    every_model.test_config_json_holds_every_argument_and_nothing_else(NAME, tmp_path)
    every_model.test_views_are_given_only_when_asked_and_change_nothing(NAME)


def test_the_settings_that_the_page_names_are_those_that_are_tried_here() -> None:
    (named,) = re.findall(r'`"gated": (\[.*?\])`', PAGE)
    assert eval(named) == SETTINGS[1:4]


def test_the_commands_of_the_page_run(folder: Path) -> None:
    commands = [one for one in commands_of("docs/adding-a-model.md") if one.name in APPS]
    assert [one.name for one in commands] == list(APPS)
    for one in commands:
        run(APPS[one.name], *one.text.split()[1:])
        forget()
    assert (folder / "models" / NAME / "seed-0" / "config.json").exists()


@pytest.mark.soak
def test_the_pages_code_passes_ruff_and_mypy(tmp_path: Path) -> None:
    (tmp_path / "test_gated.py").write_text(TESTS)
    paths = [str(tmp_path / name) for name in ("gated.py", "test_gated.py")]
    for command in (["ruff", "check", "--config", "pyproject.toml", *paths], ["mypy", *paths]):
        done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_files_that_the_page_names_exist() -> None:
    for name in re.findall(r"`((?:fusion|tests|pipeline)/[\w/.]+)`", PAGE):
        assert (ROOT / name).exists(), name


WRONG = {
    "a tensor": ("self.classifier(fused)", "forward returns Tensor, expected a fusion.batch.Output"),
    "a label too few": (
        "Output(logits=self.classifier(fused)[:, 1:])",
        r"the logits of head fused have the shape \(\d+, 2\), expected \(\d+, 3\): \(utterances, classes\)",
    ),
    "an utterance too few": ("Output(logits=self.classifier(fused)[1:])", r"head fused have the shape .* expected \("),
}


@pytest.mark.parametrize(("returned", "expected"), WRONG.values(), ids=WRONG)
def test_a_model_that_returns_something_else_is_refused_in_a_line(folder: Path, returned: str, expected: str) -> None:
    right = "Output(logits=self.classifier(fused), views=shown)"
    assert right in MODEL
    changed = MODEL.replace(right, returned)
    (folder / "gated.py").write_text(changed)
    found = refused(train_app, "--features", "data/feats.h5", "--set", f"model.name={NAME}")
    assert re.search(f"model Gated, stage fusion: .*{expected}", found)


def test_the_group_of_the_page_is_read(folder: Path) -> None:
    block = re.search(r"^    model:\n(?:     .*\n)+", PAGE, flags=re.MULTILINE)
    assert block
    (folder / "params.yaml").write_text(block[0])
    assert read_recipe(folder / "params.yaml").own.model_dump()["gate"] is True
    assert read_recipe(folder / "params.yaml", [f"model.{NAME}.gate=false"]).own.model_dump()["gate"] is False


@pytest.fixture
def package(folder: Path) -> str:
    """The same model in a package, with a module beside it; its name."""
    (folder / "mine").mkdir()
    (folder / "mine" / "gated.py").write_text(MODEL)
    (folder / "mine" / "other.py").write_text("")
    return f"mine.{NAME}"


def test_the_group_of_a_package_is_one_level_for_each_dot(package: str, folder: Path) -> None:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({"model": {"name": package, "mine": {NAME: {"gate": False}}}}))
    recipe = read_recipe(path)
    assert recipe.own.model_dump()["gate"] is False
    assert recipe.to_json()["model"]["mine"] == {NAME: {"gate": False}}
    assert read_recipe(path, ["model.name=hbaf"]).model.name == "hbaf"  # where the group waits
    again = ModelParams.model_validate(recipe.to_json()["model"])
    assert again.group == recipe.model.group


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["model.name=gated:Gted"],
            r"gated\.py has no class 'Gted'; it has Gated\. Name another one with gated:<class>",
        ),
        (
            ["model.name=gated:GatedParams"],
            r"has a class 'GatedParams', which is not derived from fusion\.models\.HubModel; it has Gated\.",
        ),
        (["model.name=gatd:Gated"], "there is no module 'gatd' in .*; go to the folder that holds it, or install it"),
        (["model.name=gated"], "'model.name' is 'gated'.*or the place of a model: my_package.module:Class"),
        (["model.name=os:system"], "has no class 'system'; it has none"),
        ([f"model.name={NAME}", f"model.{NAME}.gate=1"], rf"'model.{NAME}.gate' is 1.*boolean"),
        (
            [f"model.name={NAME}", f"model.{NAME}.gat=true"],
            rf"unknown key 'model.{NAME}.gat'; did you mean .*{NAME}.gate",
        ),
        ([f"model.name={NAME}", f"model.{NAME}.dim=4"], rf"'model.{NAME}.dim' is shared by all models"),
        ([f"model.name={NAME}", "model.hbaf.gate=true"], f"is of model hbaf, but model.name is {NAME}"),
        ([f"model.{NAME}.gate=true"], f"is of model {NAME}, but model.name is hbaf"),
        (["model.mine.gate=true"], "unknown key 'model.mine'"),
    ],
)
def test_a_name_or_key_that_is_wrong_is_refused(overrides: list[str], expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        read_recipe(None, overrides)


LINE = MODEL[: MODEL.index("class Gated(")].count("\n") + 1
SHAPES = {
    "not derived from HubModel": (
        ("class Gated(nn.Module, HubModel)", "class Gated(nn.Module)"),
        r"gated\.py has a class 'Gated', which is not derived from fusion\.models\.HubModel; it has none\. Derive it",
    ),
    "without Params": (
        ("    Params = GatedParams\n", ""),
        rf"gated\.py, line {LINE}: class Gated has no Params; write Params = <its params class",
    ),
    "Params of another kind": (
        ("Params = GatedParams", "Params = dict"),
        rf"gated\.py, line {LINE}: class Gated has the Params <class 'dict'>; expected a class derived",
    ),
    "without sizes": (
        ("params: GatedParams, sizes: Sizes)", "params: GatedParams)"),
        rf"gated\.py, line {LINE}: class Gated has the constructor .*; expected __init__\(self, params, sizes\)",
    ),
    "a module that ends the process": (
        ("from torch import nn", "import sys\nfrom torch import nn\nsys.exit(3)"),
        r"gated\.py, line 5: the module ends the process \(exit status 3\) as it is imported; put what is for its own",
    ),
}


@pytest.mark.parametrize(("change", "expected"), SHAPES.values(), ids=SHAPES)
def test_a_class_of_another_shape_is_refused_in_a_line_with_its_place(
    folder: Path, change: tuple[str, str], expected: str
) -> None:
    assert change[0] in MODEL
    (folder / "gated.py").write_text(MODEL.replace(*change))
    found = refused(train_app, "--features", "data/feats.h5", "--set", f"model.name={NAME}")
    assert re.search(expected, found), found


def test_a_group_with_a_dot_in_its_name_says_how_to_write_it(package: str, folder: Path) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump({"model": {"name": package, package: {}}}))
    with pytest.raises(SettingsError, match=f"'model.{package}': write each part between dots on a line by itself"):
        read_recipe(folder / "params.yaml")


def test_an_installed_package_gives_its_model_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a folder of such a model is loaded without a word, since installing it was one."""

    def installed(group: str) -> EntryPoints:
        return EntryPoints([EntryPoint("gated", NAME, group)] if group == "erc_fusion.models" else [])

    monkeypatch.setattr("pipeline.settings.closure.entry_points", installed)
    monkeypatch.syspath_prepend(folder)
    run(train_app, "--features", "data/feats.h5", "--set", "model.name=gated", "--set", "model.gated.gate=false")
    forget()
    assert fusion.load_model("models/gated/seed-0").provenance.recipe.to_json()["model"]["gated"] == {"gate": False}
    with pytest.raises(SettingsError, match=r"'model.name' is 'gate'.*gated \(installed\) or the place of a model"):
        read_recipe(None, ["model.name=gate"])
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "gated.py").write_text("raise SystemExit('the wrong one')")
    forget()
    monkeypatch.chdir(folder / "elsewhere")
    fusion.load_model(folder / "models/gated/seed-0")  # not what lies in the current folder under that name


def test_a_model_folder_alone_has_nothing_imported(folder: Path) -> None:
    """Whoever made it: its code runs once it is named in params.yaml, by --set, or imported."""
    train_made(folder / "data" / "feats.h5", folder / "strange", tiny_recipe({"name": NAME}))
    forget()
    mark = folder / "imported"
    (folder / "gated.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n{MODEL}")
    given = ("--model", "strange", "--features", "data/feats.h5")
    message = rf"seed-0/config.json: its model is {NAME}, code from outside erc-fusion.*--set model.name={NAME}"
    with pytest.raises(ModelError, match=message):
        fusion.load_model("strange/seed-0")
    assert re.search(message, refused(predict_app, *given))
    assert re.search(message, refused(export_app, "strange/seed-0", "--output", "shared"))
    assert re.search(message, refused(evaluate_app, "--models", "strange", *given[2:]))
    (folder / "params.yaml").write_text(f"model: {{name: {NAME}}}\nablations: {{unread: {{}}}}\n")
    assert not mark.exists()
    run(predict_app, *given)
    assert mark.exists()
    forget()
    (folder / "params.yaml").write_text("another: project\n")
    assert re.search(message, refused(predict_app, *given))
    run(export_app, "strange/seed-0", "--output", "shared", "--set", f"model.name={NAME}")


@pytest.mark.soak
def test_an_edit_of_the_models_code_makes_its_runs_due_and_is_said_when_it_is_loaded(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also of what it imports from beside it."""
    (folder / "gates.py").write_text("from fusion.layers import Gate\n")
    (folder / "gated.py").write_text(
        MODEL.replace("    Gate,\n", "").replace("from torch import nn", "from gates import Gate\nfrom torch import nn")
    )
    (folder / "params.yaml").write_text(
        f"{PARAMS.replace('dim: 8', f'dim: 8, name: {NAME}')}ablations:\n  no gate: {{model.{NAME}.gate: false}}\n"
        "  concat: {model.name: concat}\n"
    )
    features = ("--features", "data/feats.h5", "--jobs", "1")

    def finished() -> set[str]:
        run(ablate_app, *features)
        return {path.name for path in (folder / "results" / "ablations").glob("*.npz")}

    run(train_app, *features)
    once = finished()
    assert len(once) == 3
    assert finished() == once
    before = json.loads((folder / "models" / NAME / "seed-0" / "config.json").read_text())["erc"]["source"]
    (folder / "gates.py").write_text("from fusion.layers import Gate  # edited\n")
    forget()
    assert len(finished() - once) == 2  # not the row of concat
    with caplog.at_level(logging.WARNING):
        loaded = fusion.load_model(folder / "models" / NAME / "seed-0")
    assert loaded.provenance.source == before
    assert f"the code of its model, {NAME}, is not what it was trained with" in caplog.text


def test_ablations_name_it_and_keys_of_it(folder: Path) -> None:
    (folder / "params.yaml").write_text(
        f"ablations: {{gated: {{model.name: {NAME}}}, open: {{base: gated, model.{NAME}.gate: false}}}}\n"
    )
    base, gated, open_ = read_variants(folder / "params.yaml")
    assert [one.recipe.model.name for one in (base, gated, open_)] == ["hbaf", NAME, NAME]
    assert open_.recipe.own.model_dump()["gate"] is False
