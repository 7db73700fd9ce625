"""Feature files that DVC links to its cache: damage is in both, and deleting one of them does not help."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.store import Identity, Utterances, read_features
from tests.pipeline.made import write_features


def write_one(path: Path) -> None:
    """The features of a single utterance."""
    utterances = Utterances(["a"], ["c"], np.array([0]), [""], ["train"], np.array([0]), np.array([0], np.float32))
    identity = Identity({"modality": "audio", "model": "made"})
    write_features(path, utterances, ["joy"], ([np.ones((2, 3), np.float16)], identity), None)


@pytest.mark.parametrize("cut", [0, 100])
@pytest.mark.parametrize("cache", ["project/.dvc/cache", "shared cache"])
@pytest.mark.parametrize("link", [Path.hardlink_to, Path.symlink_to])
def test_the_message_on_damage_says_how_to_delete_it_in_the_cache_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: Callable[[Path, Path], None], cache: str, cut: int
) -> None:
    cached, file, dvc = tmp_path / cache / "4d3c", Path("my data") / "feats.h5", tmp_path / "bin" / "dvc"
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    for path in (cached, file, dvc):
        path.parent.mkdir(parents=True)
    dvc.write_text(f"#!/bin/sh\necho '{cached.parent}'\n")  # what `dvc cache dir` prints
    dvc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{dvc.parent}:{os.environ['PATH']}")
    write_one(cached)
    content = bytearray(cached.read_bytes())
    content[600] ^= 1
    cached.write_bytes(content[: len(content) - cut])
    link(file, cached)
    with pytest.raises(StoreError, match=r"(truncated|damaged).* then make it with dvc repro") as error:
        read_features(file)
    if file.is_symlink():
        assert f"delete it and what it links to, {cached}," in str(error.value)
        return
    command = re.search(r"\((find .* -delete)\)", str(error.value))
    assert command
    subprocess.run(command[1], shell=True, check=True)
    assert not cached.exists()
    assert not file.exists()


def test_the_message_on_damage_of_a_file_by_itself_has_no_such_command(tmp_path: Path) -> None:
    path = tmp_path / "feats.h5"
    write_one(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StoreError, match="; delete it and make it with dvc repro"):
        read_features(path)


def test_a_link_whose_file_is_gone_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "feats.h5"
    path.symlink_to(tmp_path / "cache")
    with pytest.raises(
        StoreError, match=r"feats\.h5: a link to .*cache, which is gone; fix the link, or make it with dvc repro"
    ):
        read_features(path)
