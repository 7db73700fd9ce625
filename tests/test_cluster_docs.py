"""docs/cluster.md keeps its word: its parameters are those of the code, its commands would be taken."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from pipeline.settings import ClusterParams, read_section
from tests.test_readme import APPS

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
COMMANDS = sorted(
    {line.split("#")[0].strip() for line in re.findall(r"^ {4}((?:pipeline|fusion)-.*)$", DOCS, flags=re.MULTILINE)}
)


def test_its_table_lists_every_parameter() -> None:
    table = DOCS.split("## Parameters")[1].split("##")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == list(ClusterParams.model_fields)


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_would_be_taken(command: str) -> None:
    name, *arguments = shlex.split(command)
    known = {option for parameter in get_command(APPS[name]).params for option in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= known
    overrides = [argument for argument in arguments if argument.startswith("cluster.")]
    params = read_section(ROOT / "params.yaml", "cluster", ClusterParams, overrides)
    assert params.engine == ("ray" if overrides else "local")


def test_its_script_for_slurm_is_valid_bash() -> None:
    (script,) = re.findall(r"^ {4}#!/bin/bash\n(?:(?: {4}.*)?\n)+", DOCS, flags=re.MULTILINE)
    lines = "\n".join(line[4:] for line in script.splitlines())
    subprocess.run(["bash", "-n"], input=lines, text=True, check=True)
    assert lines.count("ray start") == 2
