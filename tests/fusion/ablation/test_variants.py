"""Section ablations: which rows it makes, and what it refuses."""

from pathlib import Path

import pytest

from fusion.ablation import read_variants
from fusion.ablation.variants import BASE, Variant
from fusion.models import HBAFParams
from fusion.params import ModelParams
from pipeline.settings import SettingsError

ROOT = Path(__file__).parents[3]


def read(folder: Path, sets: str, *overrides: str, only: tuple[str, ...] = ()) -> list[Variant]:
    path = folder / "params.yaml"
    lines = "".join(f"  {line}\n" for line in sets.strip().splitlines())
    path.write_text(f"model: {{dim: 8, heads: 2, dropout: 0.1}}\nablations:\n{lines}", encoding="utf-8")
    return read_variants(path, overrides, only)


def test_the_base_row_is_always_there_and_the_first(tmp_path: Path) -> None:
    assert [(one.name, one.base) for one in read_variants(None)] == [(BASE, None)]
    rows = read(tmp_path, "b: {model.hbaf.gate: false}\na: {loss.absolute: 0, train.epochs: 2}")
    assert [(one.name, one.base) for one in rows] == [(BASE, None), ("b", BASE), ("a", BASE)]
    assert [one.recipe.own.gate for one in rows] == [True, False, True]
    assert (rows[2].recipe.loss.absolute, rows[2].recipe.train.epochs) == (0, 2)
    assert all(one.recipe.model.dim == 8 for one in rows)


def test_overrides_of_the_command_line_change_every_row(tmp_path: Path) -> None:
    rows = read(tmp_path, "a: {model.hbaf.gate: false}", "model.dropout=0.5", "train.seeds=[7]")
    assert all((one.recipe.model.dropout, one.recipe.train.seeds) == (0.5, (7,)) for one in rows)


def test_a_set_inherits_what_its_base_overrides(tmp_path: Path) -> None:
    rows = read(
        tmp_path,
        "c: {base: b, model.dim: 16}\nb: {base: a, model.hbaf.gate: true, model.heads: 4}\na: {model.hbaf.gate: false}",
    )
    by_name = {one.name: one for one in rows}
    assert by_name["c"].overrides == {"model.hbaf.gate": True, "model.heads": 4, "model.dim": 16}
    assert by_name["c"].base == "b"
    assert by_name["c"].recipe.own.gate


def test_a_grid_makes_a_row_for_every_combination(tmp_path: Path) -> None:
    rows = read(
        tmp_path, "s: {model.hbaf.gate: false, grid: {model.hbaf.context: [none, text], model.dropout: [0.0, 0.2]}}"
    )
    assert [one.name for one in rows] == [
        "base",
        "s model.hbaf.context=none model.dropout=0.0",
        "s model.hbaf.context=none model.dropout=0.2",
        "s model.hbaf.context=text model.dropout=0.0",
        "s model.hbaf.context=text model.dropout=0.2",
    ]
    assert all(one.recipe.own.gate is (one.name == BASE) for one in rows)
    assert (rows[3].recipe.own.context, rows[3].recipe.model.dropout) == ("text", 0)


def test_the_combination_of_a_grid_that_is_its_base_is_in_the_table_already(tmp_path: Path) -> None:
    assert [one.name for one in read(tmp_path, "s: {grid: {model.dim: [4, 8]}}")] == ["base", "s model.dim=4"]


def test_a_grid_of_widths_need_not_suit_the_heads_that_a_model_lacks(tmp_path: Path) -> None:
    rows = read(tmp_path, "s: {model.name: concat, grid: {model.dim: [6, 10]}}", "model.heads=4")
    assert [one.recipe.own.dim for one in rows] == [8, 6, 10]


def test_a_row_of_a_grid_can_be_a_base(tmp_path: Path) -> None:
    rows = read(tmp_path, "s: {grid: {model.dim: [4, 16]}}\nb: {base: s model.dim=4, model.hbaf.gate: false}")
    assert (rows[-1].recipe.model.dim, rows[-1].recipe.own.gate) == (4, False)


def test_only_takes_sets_or_rows_with_what_they_are_based_on(tmp_path: Path) -> None:
    sets = (
        "a: {model.hbaf.gate: false}\nb: {base: a, model.hbaf.relevance: false}\nc: {base: b, model.hbaf.levels: raw}"
    )
    sets += "\ns: {grid: {model.dim: [4, 16]}}"
    assert [one.name for one in read(tmp_path, sets, only=("c",))] == ["base", "a", "b", "c"]
    assert [one.name for one in read(tmp_path, sets, only=("s",))] == ["base", "s model.dim=4", "s model.dim=16"]
    assert [one.name for one in read(tmp_path, sets, only=("s model.dim=4",))] == ["base", "s model.dim=4"]
    assert read(tmp_path, sets, only=("c",))[3].overrides == {
        "model.hbaf.gate": False,
        "model.hbaf.relevance": False,
        "model.hbaf.levels": "raw",
    }


def test_a_key_that_no_row_of_its_set_uses_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sets = """
several: {loss.supervised: 0.5, grid: {model.name: [hcam, concat]}}
idle: {model.name: tfn, model.heads: 4, grid: {model.dim: [4, 16]}}
"""
    read(tmp_path, sets, "model.hbaf.gate=false")
    assert [message.partition("params.yaml: ")[2] for message in caplog.messages] == [
        "'ablations.idle': 'model.heads' has no effect: model.name is tfn; "
        "only hbaf, hcam, crossmodal, misa, mult use it"
    ]


def test_an_override_that_some_row_uses_is_not_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(tmp_path, "a: {model.name: hcam}", "loss.supervised=0.5")
    assert not caplog.messages
    read(tmp_path, "a: {model.name: concat}", "loss.supervised=0.5")
    assert caplog.messages == ["'loss.supervised' has no effect: model.name is hbaf; only hcam uses it"]


REFUSED = [
    ("a: {model.contxt: none}", r"'ablations\.a': unknown key 'model\.contxt'; did you mean 'model\.hbaf\.context'\?"),
    ("a: {modle.context: none}", r"'ablations\.a': unknown key 'modle\.context': expected a key of .*'model'\?"),
    ("a: {context: none}", r"'ablations\.a': unknown key 'context': expected a key of model, loss, train"),
    ("a: {train: {learning_rate: 0.1}}", r"'train' is a section, and a set names keys of sections, such as \{model\."),
    ("a: {evaluate.seed: 1}", r"'ablations\.a': unknown key 'evaluate\.seed'"),
    ("a: {model.hbaf.context: nonne}", r"'ablations\.a': 'model\.hbaf\.context' is 'nonne': .*did you mean 'none'\?"),
    ("a: {model.dim: 7}", r"'ablations\.a': 'model': heads is 2: must divide model\.dim, which is 7"),
    ("a: {model.gate: false}", r"'ablations\.a': 'model\.gate' is now 'model\.hbaf\.gate'"),
    ("a: {model.hcam.blocks: 1}", r"'ablations\.a': 'model\.hcam\.blocks' is of model hcam, but model\.name is hbaf"),
    ("a: {model.dim.x: 1}", r"'ablations\.a': 'model\.dim\.x': 'dim' is not a group of keys"),
    ("a: {train.seeds: [1]}", r"'ablations\.a': train\.seeds cannot be set here: all rows share the seeds"),
    ("a: {model.dropout: 0.1}", r"'ablations\.a' changes nothing of 'base': the chosen model does not take these keys"),
    ("a: {}", r"'ablations\.a' changes nothing of 'base'"),
    ("a: {grid: {model.dim: [8]}}", r"'ablations\.a' changes nothing of 'base'"),
    ("a: {model.hbaf.gate: false}\nb: {base: a}", r"'ablations\.b' changes nothing of 'a'"),
    ("a: {model.hbaf.gate: false}\nb: {model.hbaf.gate: false}", r"rows 'a' and 'b' of ablations are the same; take"),
    ("a: {grid: {model.dim: [4, 4]}}", r"'ablations\.a': a row called 'a model\.dim=4' is there already"),
    ("base: {model.hbaf.gate: false}", r"'ablations\.base': a row called 'base' is there already"),
    ("a: {base: bb}\nbbb: {model.hbaf.gate: false}", r"'ablations\.a\.base' is 'bb': no row .*did you mean 'bbb'\?"),
    ("a: {base: b}\nb: {base: c}\nc: {base: a}", r"'ablations\.a\.base' leads back to itself: a -> b -> c -> a"),
    ("a: {base: a}", r"'ablations\.a\.base' leads back to itself: a -> a"),
    ("a: {model.dim: 4, grid: {model.dim: [16]}}", r"'ablations\.a': model\.dim is in the grid and beside it"),
    ("a: {grid: {model.dim: 4}}", r"'ablations\.a\.grid\.model\.dim' is 4: input should be a list"),
    ("a: {grid: {model.dim: []}}", r"'ablations\.a\.grid\.model\.dim' is \[\]: list should have at least 1 item"),
    ("a: {grid: {model.dmi: [4]}}", r"'ablations\.a': unknown key 'model\.dmi'; did you mean 'model\.dim'\?"),
    ("a: false", r"'ablations\.a' is False: input should be a group of keys and values"),
    ("s: {grid: {model.dim: [8, 4]}}\nb: {base: s model.dim=8, model.hbaf.gate: false}", "which changes nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("sets", "message"), REFUSED, ids=[sets.splitlines()[0] for sets, _ in REFUSED])
def test_a_set_that_is_not_right_is_refused(tmp_path: Path, sets: str, message: str) -> None:
    with pytest.raises(SettingsError, match=r"params\.yaml: " + f"(?s:.*){message}"):
        read(tmp_path, sets)


def test_only_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--only 'no gat': no set or row of ablations .*did you mean 'no gate'\?"):
        read(tmp_path, "no gate: {model.hbaf.gate: false}", only=("no gat",))


def test_a_set_that_changes_nothing_is_no_matter_where_it_is_not_asked_for(tmp_path: Path) -> None:
    sets = "a: {model.hbaf.gate: false}\nb: {model.hbaf.levels: raw}"
    assert len(read(tmp_path, sets, "model.hbaf.gate=false", only=("b",))) == 2


def test_sets_that_are_not_asked_for_need_not_suit_the_model(tmp_path: Path) -> None:
    sets = "withheld: {model.modalities: audio}\nb: {model.name: concat}\nc: {base: b, model.dim: 16}"
    assert [one.name for one in read(tmp_path, sets, "model.name=text", only=("c",))] == ["base", "b", "c"]
    with pytest.raises(SettingsError, match="withholds all that model 'text' looks at"):
        read(tmp_path, sets, "model.name=text")


SWITCHES = {"context", "direction", "levels", "self_attention", "cross_attention", "gate", "relevance", "residual"}
SWITCHES |= {"conversation_encoder", "modalities"}


def test_the_default_table_has_every_part_of_hbaf() -> None:
    assert {*ModelParams.model_fields, *HBAFParams.model_fields} >= SWITCHES
    switched = {
        key.replace("model.hbaf.", "model.") for one in read_variants(ROOT / "params.yaml") for key in one.overrides
    }
    losses = {"loss.auxiliary", "loss.absolute", "loss.relative"}
    assert switched >= {f"model.{name}" for name in SWITCHES} | losses
