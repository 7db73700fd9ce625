"""One writer an output: who is refused, who is not, and what is left behind."""

import errno
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import BusyError
from pipeline.settings import output as module
from pipeline.settings import sole_writer
from tests.forked import exit_status, fork


@contextmanager
def holder(output: Path) -> Iterator[int]:
    """The id of a process that holds `output`."""
    ready, written = os.pipe()

    def run() -> None:
        sys.argv = ["/bin/fusion-train", "--features", "feats.h5"]
        with sole_writer(output):
            os.write(written, b".")
            time.sleep(60)

    process = fork(run)
    assert os.read(ready, 1) == b"."
    try:
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        exit_status(process)
        os.close(ready)
        os.close(written)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_second_writer_is_refused_by_name_and_a_killed_one_blocks_nobody(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "real"
    if kind != "file":
        output.mkdir()
    named = output
    if kind == "link":
        named = tmp_path / "named"
        named.symlink_to(output)
    with holder(output) as process:
        found = (
            rf"named|real: another process .* \(process {process}, fusion-train --features feats.h5, since 2\d+-.*\); "
        )
        with pytest.raises(BusyError, match=found), sole_writer(named):
            pass
    with sole_writer(named) as place:
        assert place == output
        assert (tmp_path / "real.lock").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        {output.name, named.name} - {"real"} | ({"real"} if kind != "file" else set())
    )


def test_a_link_to_a_folder_to_come_is_followed_and_a_loop_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("large/models")
    with sole_writer(tmp_path / "link") as place:
        assert place == tmp_path / "large" / "models"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="Too many levels of symbolic links"), sole_writer(tmp_path / "loop"):
        pass


def test_what_a_killed_process_had_started_may_take_a_moment_to_end(tmp_path: Path) -> None:
    def start_and_die() -> None:
        with sole_writer(tmp_path / "output"):
            fork(lambda: time.sleep(0.3))  # it has the lock, too
            os._exit(9)

    assert exit_status(fork(start_and_die)) == 9
    assert (tmp_path / "output.lock").exists()
    began = time.monotonic()
    with sole_writer(tmp_path / "output"):
        assert 0.2 < time.monotonic() - began < 3


def test_threads_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    held = sole_writer(tmp_path / "a"), sole_writer(tmp_path / "b")
    refused = pytest.raises(BusyError, match=f"process {os.getpid()}")
    with held[0], held[1], refused, sole_writer(tmp_path / "a"):
        pass
    assert not list(tmp_path.iterdir())


def test_folders_that_were_made_for_nothing_go_again(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("mine/output", "new/deep/output", "used/output"):
        with sole_writer(tmp_path / name):
            if name.startswith("used"):
                (tmp_path / name).write_text("")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "used"]


@pytest.mark.parametrize("place", ["file/output", "x" * 255, "loop/output"])
def test_where_nobody_can_write_the_command_has_the_word(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with sole_writer(tmp_path / place):
        pass


def test_a_disk_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with sole_writer(tmp_path / "output"):
        pass
    assert "output.lock: this disk knows no locks" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_note_that_says_nothing_names_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    with sole_writer(tmp_path / "output"):
        (tmp_path / "output.lock").write_text("[")
        with (
            pytest.raises(BusyError, match="output: another process is writing it; wait"),
            sole_writer(tmp_path / "output"),
        ):
            pass
