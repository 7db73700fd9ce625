"""What all commands of both packages share."""

import errno
import os
import pty
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline.settings import single_command
from tests.forked import exit_status
from tests.test_readme import APPS

PARAMS = ["--params", "PATH"]
ARGUMENTS = {  # by command, with what reads a file first
    "pipeline-prepare": PARAMS,
    "pipeline-finetune": ["--modality", "audio", *PARAMS],
    "pipeline-audio": PARAMS,
    "pipeline-text": PARAMS,
    "pipeline-import": PARAMS,
    "pipeline-degrade": PARAMS,
    "pipeline-join": PARAMS,
    "pipeline-inspect": ["PATH"],
    "fusion-train": ["--features", "feats.h5", *PARAMS],
    "fusion-evaluate": ["--features", "feats.h5", *PARAMS],
    "fusion-report": ["--features", "feats.h5", *PARAMS],
    "fusion-ablate": ["--features", "feats.h5", *PARAMS],
    "fusion-folds": ["PATH", "PATH"],
    "fusion-predict": ["--model", "PATH", "--text", "Good morning."],
    "fusion-export": ["PATH", "--output", "shared"],
}
every_command = pytest.mark.parametrize("name", APPS)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory; and commands set threads for all that comes after them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("")
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))


def run(name: str, *arguments: str) -> Result:
    return CliRunner().invoke(APPS[name], arguments, catch_exceptions=False)


def refusal_of(name: str, path: str) -> str:
    """The one line on stderr that answers a `path`."""
    done = run(name, *(path if argument == "PATH" else argument for argument in ARGUMENTS[name]))
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@every_command
def test_every_command_prints_to_a_terminal_of_any_encoding(name: str) -> None:
    done = CliRunner(charset="ascii").invoke(APPS[name], ["--help"], catch_exceptions=False)
    assert done.exit_code == 0
    command = single_command(lambda: print("0.847 ± 0.029 žal"), sections={})
    assert CliRunner(charset="latin-1").invoke(command, []).stdout_bytes == b"0.847 \xb1 0.029 \\u017eal\n"


@every_command
def test_every_command_has_help_and_a_version(name: str) -> None:
    short, long = run(name, "-h"), run(name, "--help")
    assert (short.exit_code, short.stdout) == (0, long.stdout)
    assert "--version" in short.stdout
    told = run(name, "--version")
    assert (told.exit_code, told.stdout) == (0, f"erc-fusion {version('erc-fusion')}\n")


@every_command
def test_control_characters_in_errors_are_escaped(name: str) -> None:
    """A terminal would obey them."""
    assert "red\\x1b[31m.txt" in refusal_of(name, "red\x1b[31m.txt")
    usage = run(name, *ARGUMENTS[name], "--no\x1b[31m")
    assert usage.exit_code == 2
    assert "--no\\x1b[31m" in usage.stderr
    assert "\x1b" not in usage.stderr


@every_command
def test_what_the_system_refuses_is_one_line(name: str) -> None:
    line = refusal_of(name, "n" * 300)
    assert "n" * 300 in line
    assert "File name too long" in line


def raising(error: BaseException, goes_on: bool = False) -> Result:
    def body() -> None:
        raise error

    return CliRunner().invoke(single_command(body, sections={}, goes_on=goes_on), catch_exceptions=False)


def test_an_error_of_the_system_names_the_path_and_what_to_do() -> None:
    full = raising(OSError(errno.ENOSPC, "what a library says", "results/\x1b[2J"))
    expected = "error: results/\\x1b[2J: No space left on device; make room, then run the command again\n"
    assert (full.exit_code, full.stderr) == (2, expected)


def test_ctrl_c_is_one_line_that_says_whether_work_is_kept() -> None:
    kept = raising(KeyboardInterrupt(), goes_on=True)
    assert (kept.exit_code, kept.stderr.count("\n")) == (130, 1)
    assert "what was finished is kept" in kept.stderr
    lost = raising(KeyboardInterrupt())
    assert (lost.exit_code, lost.stderr) == (130, "interrupted\n")


def test_what_a_user_cannot_fix_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())


@pytest.mark.soak
def test_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        script = Path(sys.executable).with_name("pipeline-prepare")
        demo = Path(__file__).parents[3] / "data" / "demo"
        overrides = ["--set", f"dataset.root={demo}"]
        command = [script, *overrides, "--output", str(tmp_path / "manifest.jsonl")]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    expected = "error: output: No space left on device; make room, then run the command again\n"
    assert (done.returncode, done.stderr) == (2, expected)


@pytest.mark.parametrize("error", [MemoryError("1 MiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_ran_out_is_one_line(error: Exception) -> None:
    done = raising(error)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: memory ran out ({error}); close other programs, or raise the limit")


def test_control_characters_in_warnings_are_escaped() -> None:
    script = (
        "import logging\nfrom pipeline.settings import single_command\n"
        "def body() -> None: logging.warning('%s:\\nunread', 'red\\x1b[31m')\n"
        "single_command(body, sections={})()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "red\\x1b[31m:\nunread\n"


def test_fusion_trains_with_one_thread_and_encodes_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the user has set how many."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    refusal_of("fusion-predict", "none")
    refusal_of("pipeline-audio", "none")
    assert "OMP_NUM_THREADS" not in os.environ
    refusal_of("fusion-train", "none")
    assert os.environ["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    refusal_of("fusion-train", "none")
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_a_run_outlives_its_terminal(tmp_path: Path) -> None:
    """A window that is closed while SIGHUP is ignored, as after `disown`."""
    closed, told = os.pipe()

    def body() -> None:
        print("begun", file=sys.stderr)
        os.read(closed, 1)
        for stream in (sys.stdout, sys.stderr):
            print("nobody reads this", file=stream, flush=True)
        (tmp_path / "done").touch()

    process, terminal = pty.fork()
    if process == 0:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        sys.argv = ["command"]
        try:
            single_command(body, sections={})()
        except SystemExit as done:
            os._exit(int(done.code or 0))
        finally:
            os._exit(1)
    assert b"begun" in os.read(terminal, 1000)
    os.close(terminal)
    os.write(told, b".")
    assert exit_status(process) == 0
    assert (tmp_path / "done").exists()
