"""Ctrl-C, as a terminal gives it: to a command and to all processes that it started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.manifest import write_manifest
from pipeline.params import DatasetParams
from pipeline.preparation import prepare
from tests.pipeline.made import rows_of, write_corpus, write_params

KEPT = "interrupted; what was finished is kept: run the same command again to go on\n"


def interrupted(command: list[str], folder: Path, at: Callable[[int], bool], times: int = 1) -> tuple[int, str]:
    """Exit status and stderr of a console script that gets Ctrl-C, so many `times`, once `at` (process id) is true."""
    with subprocess.Popen(
        [str(Path(sys.executable).with_name(command[0])), *command[1:]],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # which background jobs ignore
    ) as process:
        try:
            while process.poll() is None and not at(process.pid):
                time.sleep(0.005)
            for _ in range(times):
                os.killpg(process.pid, signal.SIGINT)  # the group is there until `communicate` has waited for it
                time.sleep(0.05 * (times > 1))
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, stderr


def children(process: int) -> list[str]:
    """Process ids."""
    return " ".join(path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children")).split()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with params.yaml and 240 recordings, which take a second to decode and to encode."""
    rows = [row | {"audio": f"{number}.wav"} for number, row in enumerate(rows_of(60, 4))]
    write_corpus(tmp_path / "corpus", rows)
    dataset = {"name": "table", "root": "corpus", "table": "table.csv"}
    write_params(tmp_path / "params.yaml", dataset=dataset, audio={"batch": 0.2})
    return tmp_path


def test_prepare_keeps_nothing_and_says_so_in_one_word(project: Path) -> None:
    command = ["pipeline-prepare", "--output", "manifest.jsonl"]
    assert interrupted(command, project, lambda process: bool(children(process))) == (130, "interrupted\n")
    assert sorted(path.name for path in project.iterdir()) == ["corpus", "params.yaml"]


def test_a_second_ctrl_c_ends_a_command_at_once_without_what_libraries_say(project: Path) -> None:
    command = ["pipeline-prepare", "--output", "manifest.jsonl"]
    status, told = interrupted(command, project, lambda process: bool(children(process)), times=3)
    assert (status in (130, -signal.SIGINT), told) == (True, "interrupted\n")


@pytest.mark.soak
def test_extraction_says_that_it_goes_on_and_keeps_its_work(project: Path) -> None:
    dataset = DatasetParams(name="table", root=str(project / "corpus"), table="table.csv")
    write_manifest(project / "manifest.jsonl", prepare(dataset).utterances)
    command = ["pipeline-audio", "--manifest", "manifest.jsonl", "--output", "audio.h5", "--device", "cpu"]
    partial = project / "audio.h5.partial"
    assert interrupted(command, project, lambda _: partial.exists() and partial.stat().st_size > 0) == (130, KEPT)
    assert partial.exists()
    assert not (project / "audio.h5").exists()
