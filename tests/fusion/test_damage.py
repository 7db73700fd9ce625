"""Files that changed after they were written: every command that reads one names it, or gives what it gave."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fusion.cli import ablate_app, evaluate_app, export_app, predict_app, report_app, train_app
from pipeline.cli import inspect_app
from pipeline.store import read_features
from tests.forked import at_most
from tests.fusion.made import Made
from tests.fusion.paged import evaluated

FEATURES = ["--features", "feats.h5"]
MODELS = ["--models", "models"]
FEW = ["--jobs", "1", "--set", "train.epochs=1", "--set", "train.seeds=[0]"]
COMMANDS: dict[str, tuple[Any, list[str]]] = {
    "train": (train_app, [*FEATURES, *FEW, "--output", "made"]),
    "evaluate": (evaluate_app, [*FEATURES, *MODELS, "--output", "made"]),
    "predict": (predict_app, [*FEATURES, *MODELS, "--output", "made.jsonl"]),
    "ablate": (ablate_app, [*FEATURES, *FEW, "--output", "made"]),
    "report": (report_app, [*FEATURES, *MODELS, "--results", "results", "--output", "made"]),
    "export": (export_app, ["models/seed-0", "--results", "results", "--output", "made"]),
    "inspect": (inspect_app, ["feats.h5", "--verify"]),
}
READ_BY = {
    "feats.h5": ["train", "evaluate", "predict", "report", "inspect"],
    "manifest.jsonl": ["evaluate", "report"],
    "models/seed-0/config.json": ["evaluate", "predict", "report", "export"],
    "models/seed-1/hashes.json": ["evaluate", "predict"],
    "models/seed-1/history.json": ["evaluate", "report"],
    "models/seed-1/model.safetensors": ["evaluate", "predict"],
    "results/details.json": ["report", "export"],
    "results/curves.csv": ["report"],
    "results/confusion.csv": ["report"],
    "results/predictions.csv": ["report"],
    "params.yaml": ["train", "evaluate", "ablate"],
}
PARAMS = """
model: {dim: 8, heads: 2, audio_frames: 8}
evaluate: {resamples: 20}
ablations: {no gate: {model.hbaf.gate: false}}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that is whole."""
    folder = tmp_path_factory.mktemp("whole") / "base"
    folder.mkdir()
    evaluated(folder, Made(conversations=(4, 3, 3)), {})
    (folder / "params.yaml").write_text(PARAMS)
    return folder


@pytest.fixture
def project(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str) -> Result:
    app, arguments = COMMANDS[command]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def refusal(found: Result) -> str:
    """The one line of a refusal, what was warned of before it left out."""
    assert found.exit_code == 2, found.output
    assert "Traceback" not in found.stderr
    return found.stderr.strip().splitlines()[-1]


def made_files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in (folder / "made.jsonl", *(folder / "made").rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "ablate", "report", "inspect"])
def test_every_command_stops_at_a_flipped_bit_of_the_features_and_names_the_utterance(
    project: Path, command: str
) -> None:
    features = read_features(project / "feats.h5")
    part, split = features.text, "train" if command in ("train", "ablate") else "test"
    assert part
    place = next(i for i, name in enumerate(part.ids) if name.startswith(split) and len(part.rows(i)))
    content = bytearray(part.path.read_bytes())
    content[int(part.values.base.offset) + int(part.offsets[place]) * part.row_bytes + 1] ^= 64  # type: ignore[attr-defined]
    part.path.write_bytes(content)
    told = f"1 of {len(part.ids)} utterances do not match their checksum: '{part.ids[place]}'; the file was damaged"
    assert told in refusal(run(command))
    assert not made_files(project)


@pytest.mark.parametrize("name", READ_BY)
def test_nobody_waits_for_a_pipe(project: Path, name: str) -> None:
    (project / name).unlink()
    os.mkfifo(project / name)
    for command in READ_BY[name]:
        with at_most(30):
            assert Path(name).name in refusal(run(command))
    assert not made_files(project)


def flip(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]


DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [
    *[flip] * 4,
    lambda content, chance: content[: chance.randrange(len(content))],
    lambda content, chance: b"",
    lambda content, chance: b"[" * 50_000,
    lambda content, chance: content[:-64] + bytes(64),
    lambda content, chance: content + content,
]


@pytest.mark.soak
@pytest.mark.parametrize("name", READ_BY)
def test_no_damage_is_used_in_silence(base: Path, project: Path, name: str) -> None:
    chance = random.Random(name)
    for command in READ_BY[name]:
        shutil.copyfile(base / name, project / name)
        assert run(command).exit_code == 0
        expected = made_files(project)
        for damage in DAMAGES:
            for path in (project / "made", project / "made.jsonl", project / "made.partial"):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            (project / name).write_bytes(damage((base / name).read_bytes(), chance))
            found = run(command)
            if found.exit_code or name in (
                "manifest.jsonl",
                "params.yaml",
            ):  # what people write cannot be told from an edit
                assert found.exit_code == 0 or refusal(found)
            else:
                assert made_files(project) == expected, (command, damage)
