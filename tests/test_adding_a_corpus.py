"""docs/adding-a-corpus.md keeps its word: its adapter and its test are run as they stand there."""

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import prepare_app
from pipeline.datasets import ADAPTERS
from pipeline.params import DatasetParams

PAGE = (Path(__file__).parents[1] / "docs" / "adding-a-corpus.md").read_text(encoding="utf-8")
ADAPTER, TEST = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


class LettersParams(DatasetParams):
    """The parameters with the page's name among the corpora."""

    name: str = "letters"  # type: ignore[assignment]


def test_the_adapter_of_the_page_passes_the_test_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("pipeline.datasets.letters")
    exec(compile(ADAPTER, "letters.py", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "pipeline.datasets.letters", module)
    monkeypatch.setitem(ADAPTERS, "letters", module.read)
    monkeypatch.setattr("pipeline.params.DatasetParams", LettersParams)
    names: dict[str, Any] = {}
    exec(compile(TEST, "test_letters.py", "exec"), names)
    test: Callable[[Path], None] = names["test_letters_become_a_manifest"]
    test(tmp_path)
    (tmp_path / "params.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(prepare_app, command()[1:])  # of a release in which the test has left out a recording
    assert "published: 3 of 3" in done.stdout, done.stderr


def test_the_files_and_options_that_the_page_names_exist() -> None:
    root = Path(__file__).parents[1]
    for name in re.findall(r"`((?:pipeline|tests)/[\w/.]+)`", PAGE):
        assert (root / name).exists() or name.endswith("letters.py"), name


def command() -> list[str]:
    """The words of the page's command, on the folder that the test has made."""
    line = next(line for line in PAGE.splitlines() if line.startswith("    pipeline-prepare"))
    return shlex.split(line.replace("/data/letters", "."))
