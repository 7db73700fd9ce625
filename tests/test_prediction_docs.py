"""docs/prediction.md keeps its word: its commands and its Python run, its statuses and keys are those of the code."""

import json
import re
import shlex
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from typer.testing import CliRunner

from fusion.prediction.stream import StreamedTurn
from tests.fusion.recorded import Recorded, make_recorded
from tests.test_readme import APPS, ROOT

DOCS = (ROOT / "docs" / "prediction.md").read_text(encoding="utf-8")
BLOCKS = [dedent(block).strip() for block in re.findall(r"(?:^ {4}.*\n)(?:^(?: {4}.*)?\n)*", DOCS, flags=re.MULTILINE)]
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("fusion-predict")]
STREAM = next(block for block in BLOCKS if '"last": true' in block)
PYTHON = next(block for block in BLOCKS if block.startswith("from fusion"))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A folder with the files that the page names: a piece of the demo, features and models of it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("docs")
    made = make_recorded(folder)
    (folder / "data").mkdir()
    (folder / "data" / "demo").mkdir()
    (folder / "data" / "demo" / "audio").symlink_to(made.root / "audio")
    (folder / "utterances.csv").rename(folder / "data" / "demo" / "utterances.csv")
    for name in ("audio.h5", "text.h5", "feats.h5"):
        (folder / name).rename(folder / "data" / name)
    made.train(seeds=(0, 1)).rename(folder / "models" / "hbaf")
    (folder / "turns.jsonl").write_text(STREAM + "\n")
    return made


@pytest.mark.soak
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(recorded: Recorded, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(recorded.folder)
    words, _, source = command.partition(" < ")
    name, *arguments = shlex.split(words)
    given = Path(source).read_text() if source else None
    done = CliRunner().invoke(APPS[name], arguments, input=given, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    if source:
        assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == ["ok", "no-audio", "no-audio"]


def test_python_runs(recorded: Recorded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(recorded.folder)
    exec(compile(PYTHON, "docs/prediction.md", "exec"), {})
    labels = recorded.features.label_names
    assert len([line for line in capsys.readouterr().out.splitlines() if line.split()[0] in labels]) == 2


def test_every_key_of_a_line_is_told() -> None:
    section = DOCS.partition("## Turn by turn")[2].partition("## ")[0]
    assert set(StreamedTurn.model_fields) <= set(re.findall(r"`(\w+)`", section))


def test_every_status_of_its_own_is_told() -> None:
    import pipeline.recordings

    assert pipeline.recordings.__doc__
    own = re.findall(r"^    ([a-z-]+) {2,}", pipeline.recordings.__doc__, flags=re.MULTILINE)
    assert own == ["cut-text", "context-only"]
    assert all(f"`{status}`" in DOCS for status in own)
    assert f"{pipeline.recordings.LONGEST_TEXT:,} characters" in DOCS
