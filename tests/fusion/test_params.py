"""The sections of params.yaml that fusion owns: what they accept, and that they are the model's own arguments."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from pydantic import ValidationError

from fusion.models import MODELS, HBAFParams, HCAMParams, Needs, SharedParams, idle_keys
from fusion.params import (
    GENERAL,
    MODEL_NAMES,
    EvaluateParams,
    LossParams,
    ModelParams,
    Recipe,
    TrainParams,
    own_params,
    read_recipe,
    report_unused,
)
from pipeline.settings import Section, SettingsError, check_section
from tests.fusion.made import tiny_recipe

PARAMS = Path(__file__).parents[2] / "params.yaml"
SECTIONS: dict[str, type[Section]] = {
    "model": ModelParams,
    "loss": LossParams,
    "train": TrainParams,
    "evaluate": EvaluateParams,
}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("model", {"name": "hbat"}, "'model.name' is 'hbat'.*'hbaf'"),
    ("model", {"modalities": "video"}, "'model.modalities'"),
    ("model", {"audio_frames": 0}, "'model.audio_frames' is 0.*greater than or equal to 1"),
    ("model", {"dim": 10, "heads": 4}, "heads is 4: must divide model.dim, which is 10"),
    ("model", {"dropout": 1.0}, "'model.dropout' is 1.0.*less than 1"),
    ("model", {"dropout": "0.3"}, "'model.dropout' is '0.3'"),
    ("model", {"dim": 9, "heads": 3}, "dim is 9: must be even"),
    ("model", {"hbaf": 3}, "'model.hbaf' is 3: expected a group of keys and values"),
    ("model", {"gate": True}, "'model.gate' is now 'model.hbaf.gate'"),
    ("model", {"blocks": 1}, "'model.blocks' is now 'model.hcam.blocks' or 'model.crossmodal.blocks'"),
    ("model", {"hbfa": {}}, "unknown key 'model.hbfa'; did you mean 'model.hbaf'"),
    ("loss", {"supervised": 1.5}, "'loss.supervised' is 1.5.*less than or equal to 1"),
    ("model", {"contxt": "none"}, "unknown key 'model.contxt'; did you mean 'model.hbaf.context'"),
    ("loss", {"auxiliary": -0.1}, "'loss.auxiliary' is -0.1"),
    ("loss", {"temperature": 0.0}, "'loss.temperature' is 0.0.*greater than 0"),
    ("loss", {"absolute": float("nan")}, "'loss.absolute'"),
    ("train", {"seeds": []}, "'train.seeds'"),
    ("train", {"seeds": [1, 1]}, "every seed may be given once only"),
    ("train", {"seeds": [-1]}, "'train.seeds.0' is -1"),
    ("train", {"metric": "f1"}, "'train.metric' is 'f1'"),
    ("train", {"learning_rate": float("inf")}, "'train.learning_rate'"),
    ("train", {"patience": 0}, "'train.patience' is 0"),
    ("evaluate", {"confidence": 95}, "'evaluate.confidence' is 95"),
    ("evaluate", {"resamples": 1.5}, "'evaluate.resamples' is 1.5"),
]


@pytest.mark.parametrize(("name", "content", "message"), REFUSED)
def test_a_value_out_of_range_is_refused_by_its_key(name: str, content: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_section(content, name, SECTIONS[name], "params.yaml")


@pytest.mark.parametrize("name", SECTIONS)
def test_an_absent_section_means_its_defaults(name: str, tmp_path: Path) -> None:
    assert check_section({}, name, SECTIONS[name], "params.yaml") == SECTIONS[name]()


@pytest.mark.parametrize("name", MODELS)
def test_params_yaml_and_the_code_have_one_set_of_defaults(name: str) -> None:
    shipped, built_in = (read_recipe(path, [f"model.name={name}"]) for path in (PARAMS, None))
    assert shipped.to_json() == built_in.to_json()
    assert shipped.train.seeds == built_in.train.seeds


def test_every_model_is_in_the_section() -> None:
    assert set(MODEL_NAMES) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_takes_shared_keys_with_the_same_defaults(name: str) -> None:
    model = ModelParams(name=name)  # type: ignore[arg-type]
    assert own_params(model, "model") == MODELS[name].Params().for_modalities(model.looks_at)


def test_every_key_of_the_model_section_is_taken_by_some_model() -> None:
    taken = {key for one in MODELS.values() for key in one.Params.model_fields}
    assert set(ModelParams.model_fields) - taken == set(GENERAL)


@pytest.mark.parametrize(
    ("name", "group", "message"),
    [
        ("hbaf", {"gate": 1}, "params.yaml: 'model.hbaf.gate' is 1.*boolean"),
        ("hbaf", {"gates": True}, "unknown key 'model.hbaf.gates'; did you mean 'model.hbaf.gate'"),
        ("hbaf", {"dim": 8}, "'model.hbaf.dim' is shared by all models; set 'model.dim'"),
        ("hbaf", {"self_attention": False, "cross_attention": False}, "both false: nothing is left to fuse"),
        ("hcam", {"stages": []}, "'model.hcam.stages'"),
        ("hcam", {"stages": ["fusion", "utterance"]}, "'model.hcam.stages'.*each once, in this order"),
        ("hcam", {"blocks": -1}, "'model.hcam.blocks' is -1"),
        ("crossmodal", {"blocks": 0}, "'model.crossmodal.blocks' is 0"),
        ("concat", {"gate": True}, "unknown key 'model.concat.gate'"),
    ],
)
def test_the_group_of_the_model_named_is_checked(
    name: str, group: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({"model": {"name": name, name: group}}))
    with pytest.raises(SettingsError, match=message):
        read_recipe(path)


def test_the_groups_of_other_models_wait(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("model: {hbaf: {gate: false}, hcam: {blocks: 1}}\n")
    assert read_recipe(path).own == HBAFParams(gate=False, levels="both")
    assert read_recipe(path, ["model.name=hcam"]).own == HCAMParams(blocks=1)
    assert read_recipe(path).digest == read_recipe(None, ["model.hbaf.gate=false"]).digest


@pytest.mark.parametrize(("modalities", "levels"), [("both", "both"), ("audio", "raw"), ("text", "raw")])
def test_levels_are_two_where_both_modalities_are_given(modalities: str, levels: str) -> None:
    recipe = read_recipe(None, [f"model.modalities={modalities}"])
    assert recipe.own.levels == levels  # type: ignore[attr-defined]
    same = read_recipe(None, [f"model.modalities={modalities}", f"model.hbaf.levels={levels}"])
    assert same.digest == recipe.digest
    asked = read_recipe(None, [f"model.modalities={modalities}", "model.hbaf.levels=both"])
    assert asked.own.levels == "both"  # type: ignore[attr-defined]


def test_an_override_of_another_model_is_refused() -> None:
    assert read_recipe(None, ["model.name=hcam", "model.hcam.blocks=1"]).own == HCAMParams(blocks=1)
    with pytest.raises(SettingsError, match=r"override 'model.hcam.blocks=1'.*of model hcam, but model.name is hbaf"):
        read_recipe(None, ["model.hcam.blocks=1"])
    with pytest.raises(SettingsError, match=r"override 'model.hbaf={}'.*is of model hbaf, but model.name is concat"):
        read_recipe(None, ["model.name=concat", "model.hbaf={}"])


@pytest.mark.parametrize("name", MODELS)
def test_heads_divide_the_width_of_models_that_have_heads_and_of_no_other(name: str) -> None:
    overrides = [f"model.name={name}", "model.dim=6"]
    if "heads" not in MODELS[name].Params.model_fields:
        assert read_recipe(None, overrides).own.dim == 6
        return
    with pytest.raises(SettingsError, match=r"override 'model.dim=6': .*heads is 4: must divide model.dim, which is 6"):
        read_recipe(None, overrides)


def test_an_old_flat_key_is_refused_with_its_new_name() -> None:
    with pytest.raises(SettingsError, match=r"override 'model.gate=false'.*'model.gate' is now 'model.hbaf.gate'"):
        read_recipe(None, ["model.gate=false"])


def test_a_parameter_that_the_model_does_not_take_changes_no_digest() -> None:
    def digest(**params: Any) -> str:
        return tiny_recipe(**params).digest

    others = Recipe(ModelParams(name="hcam", hbaf={"gate": False}), LossParams(), TrainParams())
    assert others.digest == Recipe(ModelParams(name="hcam"), LossParams(), TrainParams()).digest
    assert digest(model={"name": "hcam", "conversation_encoder": "none"}) == digest(model={"name": "hcam"})
    assert digest(model={"name": "concat", "heads": 4}) == digest(model={"name": "concat"})
    assert digest(model={"name": "concat"}, loss={"auxiliary": 0.0}) == digest(model={"name": "concat"})
    assert digest(loss={"supervised": 0.7}) == digest()
    assert digest(model={"name": "hcam"}, loss={"supervised": 0.7}) != digest(model={"name": "hcam"})


NO_EFFECT = [
    (["model.name=concat", "model.heads=2"], "'model.heads' has no effect: model.name is concat; only hbaf, hcam, "),
    (["model.name=dialoguernn", "model.conversation_encoder=none"], "model.name is dialoguernn; only hbaf, audio"),
    (["loss.supervised=0.9"], "'loss.supervised' has no effect: model.name is hbaf; only hcam uses it"),
    (
        ["train.target=score", "loss.kind=focal"],
        "'loss.kind' has no effect: train.target is score; set target to label",
    ),
    (["loss.gamma=5"], "'loss.gamma' has no effect: loss.kind is cross_entropy; set kind to focal"),
    (["train.step_epochs=3"], "'train.step_epochs' has no effect: train.schedule is constant; set schedule to step"),
    (
        ["model.hbaf.context=text", "model.hbaf.context_turns=9"],
        "model.hbaf.context is text; set context to conversation or both",
    ),
    (
        ["model.name=hcam", "model.hcam.training=joint", "model.hcam.freeze=false"],
        "'model.hcam.freeze' has no effect: model.hcam.training is joint; set training to hierarchical",
    ),
]


@pytest.mark.parametrize(("overrides", "expected"), NO_EFFECT, ids=[overrides[-1] for overrides, _ in NO_EFFECT])
def test_a_switch_that_has_no_effect_is_named_with_what_uses_it(
    overrides: list[str], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, without = read_recipe(None, overrides), read_recipe(None, overrides[:-1])
    report_unused(overrides, [recipe])
    assert len(caplog.messages) == 1
    assert expected in caplog.messages[0]
    assert recipe.digest == without.digest


@pytest.mark.parametrize(
    ("value", "said"), [({"gate": False}, "gate is False; set gate to True"), ({"layers": (1, 2)}, "add 3 to layers")]
)
def test_what_a_key_needs_may_be_any_value(value: dict[str, Any], said: str) -> None:
    class Params(SharedParams):
        gate: bool = True
        layers: tuple[int, ...] = (3,)
        width: int = 1
        depth: int = 1
        needs: ClassVar[Needs] = {"width": ("gate", True), "depth": ("layers", 3)}

    assert not idle_keys(Params())
    (why,) = idle_keys(Params(**value)).values()
    assert why.endswith(said)


def test_a_misspelt_way_to_standardise_is_answered_with_all_of_them() -> None:
    with pytest.raises(SettingsError) as error:
        read_recipe(None, ["model.standardise=robst"])
    expected = "'model.standardise' is 'robst': input should be 'robust' or a valid boolean; did you mean 'robust'?"
    assert expected in str(error.value)


def test_switches_that_have_an_effect_are_not_named(caplog: pytest.LogCaptureFixture) -> None:
    of_hcam = ["model.name=hcam", "loss.supervised=0.5", "model.hcam.freeze=false", "model.hcam={blocks: 1}"]
    others = ["model.modalities=audio", "train.seeds=[3]", "train.memory=1", "evaluate.seed=4", "model.heads=2"]
    report_unused([*of_hcam, *others], [read_recipe(None, [*of_hcam, *others])])
    assert not caplog.messages


def test_what_no_loss_trains_is_not_built() -> None:
    wanted = tiny_recipe(loss={"auxiliary": 0.0, "absolute": 0.0, "relative": 0.0}).wanted
    assert not wanted.auxiliary
    assert not wanted.contrastive
    assert tiny_recipe(loss={"absolute": 0.0}).wanted.contrastive


def test_a_recipe_reads_its_three_sections_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("model: {hbaf: {context: none}}\ntrain: {seeds: [3]}\naudio: {encoder: tiny}\n")
    recipe = read_recipe(path, ["train.learning_rate=1e-4", "loss.label_aware=true", "evaluate.seed=4"])
    assert (recipe.own, recipe.train.seeds) == (HBAFParams(context="none", levels="both"), (3,))
    assert (recipe.train.learning_rate, recipe.loss.label_aware) == (1e-4, True)


def test_the_digest_of_a_recipe_changes_with_every_parameter_but_the_seeds() -> None:
    digest = tiny_recipe().digest
    assert tiny_recipe(seeds=(5, 6)).digest == digest
    assert tiny_recipe(epochs=4).digest != digest
    assert tiny_recipe(model={"context": "none"}).digest != digest
    assert tiny_recipe(loss={"relative": 0.2}).digest != digest


def test_a_model_of_one_modality_is_not_left_without_it() -> None:
    with pytest.raises(ValidationError, match="withholds all that model 'text' looks at; set it to both or text"):
        ModelParams(name="text", modalities="audio")
    assert ModelParams(name="text", modalities="text").modalities == "text"
