"""Folders and files that take the place of older ones together, wherever the process dies."""

import os
import resource
import shutil
from collections.abc import Callable, Mapping
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import pytest

from fusion.errors import OutputError
from fusion.runtime import replace_files, replacing, write_file
from pipeline.settings import publish, restore
from tests.forked import exit_status, fork


def folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


def die_after(steps: int, run: Callable[[], Any]) -> int:
    """Exit status of a process that does `run`, and dies (9) when so many files and folders were moved or removed."""

    def dying() -> None:
        left = iter(range(steps))

        def until_dead(step: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            if next(left, None) is None:
                os._exit(9)
            return step(*arguments, **options)

        for name in ("rename", "replace", "unlink"):
            setattr(Path, name, partialmethod(partial(until_dead, getattr(Path, name))))
        shutil.rmtree = partial(until_dead, shutil.rmtree)  # type: ignore[assignment]
        run()

    return exit_status(fork(dying))


def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS."""
    monkeypatch.setattr("pipeline.settings.output.exchange", lambda one, other: False)


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("older", [True, False])
def test_a_folder_takes_the_place_of_an_older_one(
    tmp_path: Path, exchanges: bool, older: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:
        without_exchange(monkeypatch)
    target = tmp_path / "models"
    if older:
        folder(target, "old")
    publish(folder(tmp_path / "made", "new"), target)
    assert (target / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("steps", range(4))
def test_killed_between_any_two_steps_the_folder_is_the_old_or_the_new_one(
    tmp_path: Path, exchanges: bool, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:
        without_exchange(monkeypatch)
    target, made = folder(tmp_path / "models", "old"), folder(tmp_path / "made", "new")

    assert die_after(steps, lambda: publish(made, target)) in (0, 9)
    if exchanges:
        assert target.is_dir()  # at every moment
    restore(target)
    assert (target / "file").read_text() in ("old", "new")
    publish(folder(tmp_path / "again", "newest"), target)
    assert (target / "file").read_text() == "newest"
    assert not target.with_name("models.replaced").exists()


OLD = {"metrics.json": "old", "table.md": "old", "robustness/words.png": "old", "robustness/noise.png": "old"}
NEW = {"metrics.json": "new", "table.md": "new", "robustness/words.png": None, "robustness/noise.png": "new"}


def read(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("steps", range(12))
def test_files_are_replaced_together(tmp_path: Path, steps: int) -> None:
    folder, there = tmp_path / "results", {name: content for name, content in NEW.items() if content}
    assert replace_files(folder, OLD, "evaluation")
    (folder / "report").write_text("of another command")
    earlier, later = ({**files, "report": "of another command"} for files in (OLD, there))

    def write(contents: Mapping[str, str | None] = NEW) -> bool:
        with replacing(folder, "evaluation"):
            return replace_files(folder, contents, "evaluation")

    status = die_after(steps, write)
    with replacing(folder, "evaluation"):  # what the next run begins with
        found = read(folder)
        del found["evaluation.lock"]
    assert found in ([later] if status == 0 else [earlier, later])
    assert write() == (found == earlier)
    assert read(folder) == later
    assert not write()


def test_a_link_in_place_of_what_is_being_written_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("other work")
    (tmp_path / "table.md.tmp").symlink_to("other")
    write_file(tmp_path / "table.md", b"new")
    assert read(tmp_path) == {"other": "other work", "table.md": "new"}


def test_files_that_cannot_be_written_leave_the_older_ones(tmp_path: Path) -> None:
    replace_files(tmp_path, OLD, "evaluation")

    def on_a_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with pytest.raises(OutputError, match=r"table.md: cannot be written \(File too large\)"):
            replace_files(tmp_path, NEW | {"table.md": "new" * 1000}, "evaluation")

    assert exit_status(fork(on_a_full_disk)) == 0
    assert read(tmp_path) == OLD
