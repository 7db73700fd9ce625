"""The README keeps its word: its parameters are those of the code, its commands and files exist."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

import fusion.cli
import pipeline.cli
from fusion.params import EvaluateParams, LossParams, ModelParams, TrainParams
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
from pipeline.settings import ClusterParams, Section, check_section, read_section

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
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
    "cluster": ClusterParams,
}
GROUPS: dict[str, type[Section]] = {"audio.finetune": FinetuneAudioParams, "text.finetune": FinetuneTextParams}
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


def code_blocks() -> list[str]:
    """Indented blocks of the README, dedented."""
    blocks = re.findall(r"(?:^ {4}.*\n)(?:^(?: {4}.*)?\n)*", README, flags=re.MULTILINE)
    return ["\n".join(line[4:] for line in block.splitlines()).strip() for block in blocks]


COMMANDS = sorted(
    {
        line.split("  #")[0].strip()
        for block in code_blocks()
        for line in block.splitlines()
        if line.startswith(("fusion-", "pipeline-"))
    }
)


@pytest.mark.parametrize(("name", "section"), SECTIONS.items())
def test_params_yaml_lists_every_key(name: str, section: type[Section]) -> None:
    """`dvc exp run -S` can set only what the file lists."""
    listed = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for key in name.split("."):
        listed = listed[key]
    assert list(listed) == list(section.model_fields)
    read_section(ROOT / "params.yaml", name, section)


@pytest.mark.parametrize(("name", "group"), GROUPS.items())
def test_params_yaml_lists_every_key_of_a_group(name: str, group: type[Section]) -> None:
    section, key = name.split(".")
    listed = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))[section][key]
    assert list(listed) == list(group.model_fields)


@pytest.mark.parametrize(("name", "section"), [*SECTIONS.items(), *GROUPS.items()])
def test_the_table_of_parameters_is_complete(name: str, section: type[Section]) -> None:
    row = next(line for line in README.splitlines() if line.startswith(f"| `{name}` |"))
    assert re.findall(r"`([\w.]+)`", row)[1:] == list(section.model_fields)


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 2


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_commands_exist(command: str) -> None:
    name, *arguments = shlex.split(command)
    known = {option for parameter in get_command(APPS[name]).params for option in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= known


@pytest.mark.parametrize("command", COMMANDS)
def test_overrides_of_commands_are_accepted(command: str) -> None:
    for argument in shlex.split(command):
        if re.fullmatch(r"\w+\.[\w.]+=.*", argument):
            name = argument.split("=")[0].rpartition(".")[0]
            name = name if name in SECTIONS else name.split(".")[0]
            read_section(ROOT / "params.yaml", name, SECTIONS[name], [argument])


def test_yaml_examples_are_accepted() -> None:
    examples = [
        yaml.safe_load(block) for block in code_blocks() if block.startswith(("dataset:", "audio:", "evaluate:"))
    ]
    assert len(examples) >= 2
    for example in examples:
        for name, content in example.items():
            check_section(content, name, SECTIONS[name], "README.md")
            if "degrade" in content:
                check_section(content["degrade"], "evaluate.degrade", DegradeParams, "README.md")


def test_every_script_of_the_package_is_a_known_command() -> None:
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == set(APPS)


def test_every_file_that_is_named_exists() -> None:
    for name in re.findall(r"`((?:pipeline|fusion|scripts|data/demo|tests)/[\w./-]*)`", README):
        assert (ROOT / name).exists(), name


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README
