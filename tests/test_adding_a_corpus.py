"""docs/adding-a-corpus.md keeps its word: its adapter, its test and its command are run as they stand there; and other
adapters that plug in.
"""

import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.cli import prepare_app
from pipeline.datasets import ADAPTERS, Corpus, Turn, read_corpus
from pipeline.errors import DataError
from pipeline.params import CORPORA, DatasetParams
from pipeline.settings import SettingsError, read_section

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding-a-corpus.md").read_text(encoding="utf-8")
ADAPTER, TEST = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
COMMAND = next(line for line in PAGE.splitlines() if line.startswith("    pipeline-prepare"))
FROM_PYTHON = re.findall(r"```python\n(.*?)```", (ROOT / "docs/from-python.md").read_text("utf-8"), flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current one, with the page's adapter and others in it; what is imported from it is forgotten behind it."""
    (tmp_path / "letters.py").write_text(ADAPTER)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "odd.py").write_text(
        "from pipeline.datasets import Corpus, Turn\n"
        "def read(params):\n    return Corpus([Turn('c', 0, label=params.target)])\n"
        "def load(params):\n    return [1]\n"
        "def dev(params):\n    return Corpus([Turn('c', 0, split='dev', where='odd.csv, line 2')])\n"
        "def word(params):\n    return Corpus([Turn('c', 0, issues='no-mood')])\n"
        "def some(params):\n    return Corpus(turns=(Turn('c', place) for place in (1, 0)))\n"
        "def other(params):\n    return Corpus([{'conversation': 'c'}])\n"
        "def bare():\n    return Corpus([])\n"
        "def leave(params):\n    raise SystemExit\n"
        "class Reader:\n    def __init__(self, root, table): ...\n"
    )
    (tmp_path / "mine" / "lacking.py").write_text("import no_such_library\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("letters", "mine"):
            del sys.modules[name]


def test_the_adapter_of_the_page_passes_the_test_of_the_page_and_its_command(folder: Path) -> None:
    names: dict[str, object] = {}
    exec(compile(TEST, "test_letters.py", "exec"), names)
    test = names["test_letters_become_a_manifest"]
    assert callable(test)
    test(folder)
    (folder / "params.yaml").write_text("")
    done = CliRunner().invoke(prepare_app, shlex.split(COMMAND.replace("/data/letters", "."))[1:])
    assert "published: 3 of 3" in done.stdout, done.stderr
    assert (folder / "data" / "manifest.jsonl").exists()


def test_the_installed_command_finds_what_lies_in_its_folder(folder: Path) -> None:
    """The script of an environment, unlike `python -m`, does not look there by itself."""
    (folder / "params.yaml").write_text("dataset: {name: 'letters:read', root: nowhere}")
    script = "import sys; sys.path.remove(''); from pipeline.cli import prepare_app; prepare_app()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nowhere/train.csv: " in done.stderr


def test_the_files_that_the_page_names_exist() -> None:
    for name in re.findall(r"`((?:pipeline|tests)/[\w/.]+)`", PAGE):
        assert (ROOT / name).exists(), name


@pytest.mark.soak
def test_the_pages_code_passes_ruff_and_mypy(tmp_path: Path) -> None:
    files = {"letters.py": ADAPTER, "test_letters.py": TEST, "notebook.py": "\n".join(FROM_PYTHON)}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    paths = [str(tmp_path / name) for name in files]
    for command in (["ruff", "check", "--config", "pyproject.toml", *paths], ["mypy", *paths]):
        done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def read(name: str) -> Corpus:
    return read_corpus(read_section(None, "dataset", DatasetParams, [f"dataset.name={name}", "dataset.target=joy"]))


@pytest.mark.parametrize("name", ["mine.odd", "mine.odd:read"])
def test_a_module_of_the_current_folder_is_a_corpus_which_is_given_the_target(folder: Path, name: str) -> None:
    assert [turn.label for turn in read(name).turns] == ["joy"]


def test_an_installed_package_gives_its_corpus_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(group: str) -> EntryPoints:
        return EntryPoints([EntryPoint("odd", "mine.odd:read", group)] if group == "erc_fusion.corpora" else [])

    monkeypatch.setattr("pipeline.settings.closure.entry_points", installed)
    monkeypatch.syspath_prepend(folder)
    assert [turn.label for turn in read("odd").turns] == ["joy"]
    with pytest.raises(SettingsError, match=r"'mosi' or odd \(installed\) or the place of an adapter"):
        read("od")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mled", "'dataset.name' is 'mled': .*'demo', 'table', 'meld', .* did you mean 'meld'"),
        ("letters", "or the place of an adapter: my_package.module or module:function"),
        ("mine/odd.py", "or the place of an adapter"),
        (
            "mine.none",
            r"dataset.name 'mine.none': there is no module 'mine.none' in .*; go to the folder that holds it",
        ),
        ("none.odd:read", "there is no module 'none' in "),
        ("letters.odd", "there is no module 'letters.odd' in "),
        ("letters:raed", r"letters.py has no function 'raed'; it has read\. Name another one"),
    ],
)
def test_what_is_missing_is_named(folder: Path, name: str, expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        read(name)


def test_an_adapter_that_returns_something_else_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"'mine.odd:load': its adapter returned list; expected a pipeline\.datasets"):
        read("mine.odd:load")


def test_a_field_of_another_kind_is_refused_with_its_place(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"odd\.csv, line 2: split of a turn is 'dev'; expected train, validation, test or"
    ):
        read("mine.odd:dev")
    with pytest.raises(
        DataError, match=r"'mine\.odd:word', turn 1 of its list: issues of a turn is 'no-mood'; expected a tuple of str"
    ):
        read("mine.odd:word")


def test_turns_may_come_from_a_generator(folder: Path) -> None:
    assert [turn.order for turn in read("mine.odd:some").turns] == [1, 0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("other", "turn 1 of its list: {'conversation': 'c'}; expected a pipeline.datasets.Turn"),
        ("bare", r"called with one argument, .* \(too many positional arguments\); make it a function read\(params\)"),
        ("Reader", r"\(missing a required argument: 'table'\); make it a function read\(params\)"),
        ("leave", r"its adapter ends the process \(exit status None\)"),
    ],
)
def test_an_adapter_of_another_form_is_refused(folder: Path, name: str, expected: str) -> None:
    with pytest.raises(DataError, match=f"'mine.odd:{name}'.*{expected}"):
        read(f"mine.odd:{name}")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("order", math.nan, "an int or float of Python, finite"),
        ("order", np.int64(3), "an int or float of Python"),
        ("order", True, "an int or float"),
        ("score", math.nan, "an int or float .*, or None"),
        ("score", 1e300, "an int or float of Python, finite in 32 bits"),
        ("start", math.inf, "an int or float .*, or None"),
        ("label", 3, "a str that is not empty, or None"),
        ("label", ["joy"], "a str that is not empty, or None"),
        ("speaker", " ", "a str that is not empty, or None"),
        ("conversation", "", "a str that is not empty"),
        ("audio", Path("a.wav"), "a path in a str"),
        ("audio", "", "a path in a str"),
        ("text", "\ud800", "a str of valid Unicode .*fix_surrogates"),
        ("extra", {"take": 1}, "a mapping of str to str"),
        ("extra", None, "a mapping of str to str"),
        ("issues", (1,), "a tuple of str"),
        ("where", Path("a.csv"), "a str .*, or None"),
    ],
)
def test_a_value_that_no_turn_may_have_is_refused_with_its_turn(
    monkeypatch: pytest.MonkeyPatch, field: str, value: object, expected: str
) -> None:
    fine = Turn("c", 0)
    offer(monkeypatch, Corpus([fine, replace(fine, **{field: value})]))  # type: ignore[arg-type]
    with pytest.raises(
        DataError, match=rf"'made:read', turn 2 of its list: {field} of a turn is .*; expected {expected}"
    ):
        read("made:read")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("turns", None),
        ("turns", "abc"),
        ("repaired", {"fixed": 2}),
        ("notes", "careful"),
        ("warnings", None),
        ("columns", None),
        ("published", {"train": 4}),
        ("published", {"utterances": {"dev": 4}}),
        ("published", {"utterances": {"train": "4"}}),
        ("published", {"utterances": {"train": None}}),
    ],
)
def test_a_value_that_no_corpus_may_have_is_refused(monkeypatch: pytest.MonkeyPatch, field: str, value: object) -> None:
    offer(monkeypatch, replace(Corpus([Turn("c", 0)]), **{field: value}))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"'made:read': {field} of its corpus is .*; expected .*; fix the adapter"):
        read("made:read")


def offer(monkeypatch: pytest.MonkeyPatch, corpus: Corpus) -> None:
    """Make module `made` a plug-in that returns the corpus."""
    module = ModuleType("made")
    module.read = lambda params: corpus  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made", module)


def test_what_an_adapter_lacks_itself_is_its_own_error(folder: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        read("mine.lacking")


def test_every_name_of_the_parameters_is_in_the_table() -> None:
    assert set(CORPORA) == set(ADAPTERS)
