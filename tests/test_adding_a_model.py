"""docs/adding-a-model.md keeps its word: its model passes its tests, and all that is asked of every model."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from fusion.cli import evaluate_app, train_app
from fusion.models import MODELS
from fusion.params import MODEL_NAMES, ModelParams
from tests.fusion.made import write_made
from tests.fusion.models import test_models as every_model

PAGE = (Path(__file__).parents[1] / "docs" / "adding-a-model.md").read_text(encoding="utf-8")
MODEL, TESTS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
SETTINGS: list[dict[str, Any]] = [
    {},
    {"gate": False},
    {"conversation_encoder": "none"},
    {"direction": "past"},
    {"audio_layers": 3, "text_layers": 2},
]


class WithGated(ModelParams):
    """The section with the page's name among the models."""

    name: str = "gated"  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def gated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's lines, done."""
    module = ModuleType("fusion.models.gated")
    exec(compile(MODEL, "gated.py", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "fusion.models.gated", module)
    monkeypatch.setitem(MODELS, "gated", module.Gated)
    for place in ("fusion.params", "fusion.checkpoint.provenance", "tests.fusion.made"):
        monkeypatch.setattr(f"{place}.ModelParams", WithGated)
    monkeypatch.setattr("fusion.params.MODEL_NAMES", (*MODEL_NAMES, "gated"))


def names() -> dict[str, Any]:
    defined: dict[str, Any] = {}
    exec(compile(TESTS, "test_gated.py", "exec"), defined)
    return defined


def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    defined = names()
    defined["test_the_gate_is_between_none_and_all_and_one_for_each_dimension"]()
    defined["test_it_learns_what_features_tell"](tmp_path)
    assert sum(name.startswith("test_") for name in defined) == 2


@pytest.mark.parametrize("setting", SETTINGS, ids=every_model.name_of)
def test_the_model_of_the_page_is_as_every_model_must_be(setting: dict[str, Any], tmp_path: Path) -> None:
    every_model.test_padding_changes_nothing("gated", setting)
    every_model.test_groups_change_nothing("gated", setting)
    every_model.test_empty_modalities_give_finite_outputs_and_gradients("gated", setting, "some empty")
    every_model.test_a_gradient_reaches_every_parameter_in_some_stage_and_no_other_in_any("gated", setting)
    every_model.test_a_saved_model_gives_identical_answers("gated", setting, tmp_path)


def test_the_model_of_the_page_has_no_view_of_later_turns_and_says_what_it_takes(tmp_path: Path) -> None:
    every_model.test_a_model_of_the_past_sees_no_later_turn("gated")
    every_model.test_a_model_of_both_directions_sees_its_conversation_and_no_other("gated")
    every_model.test_config_json_holds_every_argument_and_nothing_else("gated", tmp_path)
    every_model.test_views_are_given_only_when_asked_and_change_nothing("gated")


def test_the_settings_that_the_page_names_are_those_that_are_tried_here() -> None:
    (named,) = re.findall(r'`"gated": (\[.*?\])`', PAGE)
    assert eval(named) == SETTINGS[1:4]


def test_the_commands_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_made(tmp_path / "data" / "feats.h5")
    Path("params.yaml").write_text("train: {epochs: 1, seeds: [0]}\nmodel: {dim: 8}\nevaluate: {resamples: 10}\n")
    for name, app in (("fusion-train", train_app), ("fusion-evaluate", evaluate_app)):
        (arguments,) = re.findall(rf"^ {{4}}{name} (.*)$", PAGE, flags=re.MULTILINE)
        done = CliRunner().invoke(app, arguments.split())
        assert done.exit_code == 0, done.stderr


def test_the_files_that_the_page_names_exist() -> None:
    root = Path(__file__).parents[1]
    for name in re.findall(r"`((?:fusion|tests)/[\w/.]+)`", PAGE):
        assert (root / name).exists() or name.endswith("gated.py"), name
