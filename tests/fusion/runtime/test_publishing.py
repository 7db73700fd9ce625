"""Folders that take the place of older ones: at no moment is there neither, wherever the process dies."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fusion.runtime import publish, restore
from tests.forked import exit_status, fork


def folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS."""
    monkeypatch.setattr("fusion.runtime.files.exchange", lambda one, other: False)


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

    def dying() -> None:
        left = iter(range(steps))

        def until_dead(step: Callable[..., Any], *arguments: Any) -> Any:
            if next(left, None) is None:
                raise SystemExit(9)
            return step(*arguments)

        rename = Path.rename
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "rename", lambda one, other: until_dead(rename, one, other))
            patch.setattr("fusion.runtime.files.shutil.rmtree", partial(until_dead, shutil.rmtree))
            publish(made, target)

    assert exit_status(fork(dying)) in (0, 9)
    if exchanges:
        assert target.is_dir()  # at every moment
    restore(target)
    assert (target / "file").read_text() in ("old", "new")
    publish(folder(tmp_path / "again", "newest"), target)
    assert (target / "file").read_text() == "newest"
    assert not target.with_name("models.old").exists()
