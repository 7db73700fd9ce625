"""The README and the page of parameters keep their word: parameters are those of the code, files exist."""

import re
from pathlib import Path

import pytest
import yaml

import fusion.cli
import pipeline.cli
from fusion.models import (
    CrossModalParams,
    DialogueGCNParams,
    DialogueRNNParams,
    ExpertsParams,
    HBAFParams,
    HCAMParams,
    LMFParams,
    MISAParams,
    MulTParams,
    SharedParams,
    TFNParams,
)
from fusion.params import GENERAL, EvaluateParams, FoldParams, LossParams, ModelParams, TrainParams
from pipeline.params import (
    AudioParams,
    DatasetParams,
    DegradeParams,
    FeaturesParams,
    FinetuneAudioParams,
    FinetuneTextParams,
    ImportParams,
    TextParams,
)
from pipeline.settings import ClusterParams, Section, read_section

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PARAMETERS = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
SECTIONS: dict[str, type[Section]] = {
    "dataset": DatasetParams,
    "audio": AudioParams,
    "text": TextParams,
    "features": FeaturesParams,
    "import": ImportParams,
    "model": ModelParams,
    "loss": LossParams,
    "train": TrainParams,
    "evaluate": EvaluateParams,
    "evaluate.degrade": DegradeParams,
    "folds": FoldParams,
    "cluster": ClusterParams,
}
GROUPS: dict[str, type[Section]] = {
    "audio.finetune": FinetuneAudioParams,
    "text.finetune": FinetuneTextParams,
    "model.hbaf": HBAFParams,
    "model.hcam": HCAMParams,
    "model.crossmodal": CrossModalParams,
    "model.tfn": TFNParams,
    "model.lmf": LMFParams,
    "model.misa": MISAParams,
    "model.mult": MulTParams,
    "model.dialoguernn": DialogueRNNParams,
    "model.dialoguegcn": DialogueGCNParams,
    "model.experts": ExpertsParams,
}
NO_KEYS = ("audio", "text", "concat")  # models that have no keys but those that all share
APPS = {
    "pipeline-prepare": pipeline.cli.prepare_app,
    "pipeline-finetune": pipeline.cli.finetune_app,
    "pipeline-audio": pipeline.cli.audio_app,
    "pipeline-text": pipeline.cli.text_app,
    "pipeline-import": pipeline.cli.import_app,
    "pipeline-degrade": pipeline.cli.degrade_app,
    "pipeline-join": pipeline.cli.join_app,
    "pipeline-inspect": pipeline.cli.inspect_app,
    "fusion-train": fusion.cli.train_app,
    "fusion-evaluate": fusion.cli.evaluate_app,
    "fusion-report": fusion.cli.report_app,
    "fusion-ablate": fusion.cli.ablate_app,
    "fusion-folds": fusion.cli.folds_app,
    "fusion-predict": fusion.cli.predict_app,
    "fusion-export": fusion.cli.export_app,
}


def own_keys(section: type[Section]) -> list[str]:
    """The keys of a section or group; those that models share stand in section `model`, its name first."""
    if section is ModelParams:
        return [*GENERAL, "dim", "heads", "dropout", "direction", "conversation_encoder", "linear_path", "standardise"]
    shared = ModelParams.model_fields if issubclass(section, SharedParams) else ()
    return [key for key in section.model_fields if key not in shared]


@pytest.mark.parametrize(("name", "section"), SECTIONS.items())
def test_params_yaml_lists_every_key(name: str, section: type[Section]) -> None:
    """`dvc exp run -S` can set only what the file lists."""
    listed = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for key in name.split("."):
        listed = listed[key]
    keys = [key for key in listed if f"{name}.{key}" not in GROUPS or key in section.model_fields]
    assert sorted(keys) == sorted([*section.model_fields, *(NO_KEYS if name == "model" else ())])
    read_section(ROOT / "params.yaml", name, section)


@pytest.mark.parametrize(("name", "group"), GROUPS.items())
def test_params_yaml_lists_every_key_of_a_group(name: str, group: type[Section]) -> None:
    section, key = name.split(".")
    listed = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))[section][key]
    assert list(listed) == own_keys(group)


@pytest.mark.parametrize(("name", "section"), [*SECTIONS.items(), *GROUPS.items()])
def test_the_table_of_parameters_is_complete(name: str, section: type[Section]) -> None:
    row = next(line for line in PARAMETERS.splitlines() if line.startswith(f"| `{name}` |"))
    assert re.findall(r"`([\w.]+)`", row)[1:] == own_keys(section)


def test_every_script_of_the_package_is_a_known_command() -> None:
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == set(APPS)


def test_every_file_that_is_named_exists() -> None:
    for name in re.findall(r"`((?:pipeline|fusion|scripts|data/demo|tests)/[\w./-]*)`", README):
        assert (ROOT / name).exists(), name


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README


def test_training_depends_on_every_parameter_but_memory() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    expected = {f"model.{key}" for key in own_keys(ModelParams)} | {"model.${model.name}", "loss"}
    expected |= {f"train.{key}" for key in own_keys(TrainParams)} - {"train.memory"}
    assert set(stages["train"]["params"]) == expected
