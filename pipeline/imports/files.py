"""The user's files as trees: dicts and lists, with arrays, numbers and texts as leaves.

folder          file name without its ending (folders inside become `folder/name`) -> its array
.npy            one array (memory-mapped), or what an array of objects holds
.npz            name -> array
.h5 .hdf5 .csd  groups are dicts, data sets are leaves
.pkl .pickle .p whatever it holds, by `pipeline.imports.unpickle`
.pt .pth        tensors in plain containers, by torch.load(weights_only=True)
.csv .tsv       name -> vector
.txt            list of lines
"""

import os
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.errors import DataError
from pipeline.imports import formats, unpickle
from pipeline.imports.entries import Lazy, reading, value_of
from pipeline.imports.unpickle import STEP

PICKLES = (".pkl", ".pickle", ".p")
TENSORS = (".pt", ".pth")
HDF5 = (".h5", ".hdf5", ".hdf", ".csd")  # the last: of CMU's multimodal SDK
TABLES = (".csv", ".tsv")
IN_FOLDERS = (".npy", ".npz", *TENSORS, *PICKLES)  # what a folder may hold, an utterance a file


class Files:
    """Source files, each opened once and closed together; `notes` say what was passed over."""

    def __init__(self, known: formats.Known | None = None) -> None:
        self.notes: list[str] = []
        self._known = known or formats.Known()  # of the utterances
        self._open = ExitStack()
        self._trees: dict[Path, Any] = {}

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *raised: object) -> None:
        self._open.close()

    def tree(self, given: str) -> tuple[Any, str | None]:
        """The tree of `given` (PATH or PATH:KEY), and the key that is still to be looked up in it.

        Raises:
            DataError: there is no such file, it is of no known kind, or it cannot be read.
        """
        path, key = split_key(given)
        if path.suffix.lower() in TABLES and path.is_file():
            return self._vectors(path, key), None
        if path.is_dir():
            return self._folder(path, key), None
        if path not in self._trees:
            self._trees[path] = self._read(path)
        return self._trees[path], key

    def _read(self, path: Path) -> Any:
        if not path.is_file():
            raise DataError(f"{path}: no such file or folder; fix the path")
        suffix = path.suffix.lower()
        readers: dict[tuple[str, ...], Callable[[Path], Any]] = {
            (".npy",): formats.map_npy,
            (".npz",): self._npz,
            HDF5: self._hdf5,
            PICKLES: _pickle,
            TENSORS: _tensors,
            (".txt",): _lines,
        }
        for suffixes, read in readers.items():
            if suffix in suffixes:
                return read(path)
        known = [ending for endings in (*readers, TABLES) for ending in endings]
        raise DataError(f"{path}: not a kind of file that is read: {', '.join(known)}; convert it, or fix its ending")

    def _npz(self, path: Path) -> dict[str, Any]:
        with reading(str(path)):
            archive = self._open.enter_context(zipfile.ZipFile(path))
        return formats.read_npz(path, archive)

    def _hdf5(self, path: Path) -> dict[str, Any]:
        with reading(str(path)):
            try:
                file = self._open.enter_context(h5py.File(path, "r"))
            except OSError:  # perhaps open or locked elsewhere, which a Python file gets around
                file = self._open.enter_context(h5py.File(self._open.enter_context(path.open("rb")), "r"))
        return formats.tree_of(file, path)

    def _vectors(self, path: Path, key: str | None) -> dict[str, np.ndarray] | np.ndarray:
        vectors = formats.read_vectors(path, key, self._known)
        self.notes += vectors.notes
        return vectors.rows

    def _folder(self, folder: Path, key: str | None) -> dict[str, Any]:
        names: dict[str, Any] = {}
        others: Counter[str] = Counter()
        for path in _walk(folder):
            if path.suffix.lower() not in IN_FOLDERS:
                others[path.suffix or path.name] += 1
                continue
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in names:
                raise DataError(f"{folder}: '{name}' is there twice, with different endings; take one away")
            names[name] = Lazy(lambda path=path: _only_array(path, key))  # type: ignore[misc]
        if others:
            found = ", ".join(f"{count} of {ending}" for ending, count in sorted(others.items()))
            self.notes.append(f"{folder}: files that hold no features: {found}")
        if not names:
            there = f"it holds {found}" if others else "it is empty"
            raise DataError(
                f"{folder}: no file of {', '.join(IN_FOLDERS)} lies in it, which are read from a folder; {there}: "
                "convert these, or fix the path"
            )
        return names


def split_key(given: str) -> tuple[Path, str | None]:
    """PATH and KEY of PATH:KEY; a path that is there may hold a colon itself."""
    path, colon, key = given.rpartition(":")
    if not colon or Path(given).exists() or not path:
        return Path(given), None
    return Path(path), key or None


def _walk(folder: Path) -> list[Path]:
    """All files in and below `folder`, sorted; folders that are links are followed once."""
    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = Path(root).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [Path(root) / name for name in names if not name.startswith(".")]
    return sorted(found)


def _only_array(path: Path, key: str | None) -> Any:
    """What one file of a folder holds."""
    if path.suffix.lower() == ".npy":
        return formats.read_npy(path)
    with Files() as files:
        tree = files._read(path)
        if isinstance(tree, dict):
            if key is None and len(tree) != 1:
                raise DataError(f"{path}: holds {', '.join(map(str, tree)) or 'nothing'}; choose one: FOLDER:KEY")
            if key is not None and key not in tree:
                raise DataError(f"{path}: holds no '{key}' but {', '.join(map(str, tree)) or 'nothing'}")
            tree = tree[key] if key is not None else next(iter(tree.values()))
        return value_of(tree)


def _pickle(path: Path) -> Any:
    with reading(str(path)), path.open("rb") as file:
        return unpickle.load(file, str(path))


def _tensors(path: Path) -> Any:
    import torch

    with reading(str(path)):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                formats.refuse_packed(path, archive)
        try:
            return _without_tensors(torch.load(path, map_location="cpu", weights_only=True))
        except pickle.UnpicklingError as error:  # its own text advises to switch the check off
            asked = re.search(r"GLOBAL (\S+)", str(error))
            what = f"asks for {asked[1]}" if asked else "holds more than tensors, or is damaged"
            raise DataError(
                f"{path}: it {what}; only tensors in plain containers are read, since all else could run code; {STEP}"
            ) from None


def _without_tensors(value: Any) -> Any:
    """The same containers with numpy arrays; bfloat16, which numpy lacks, becomes float32 without loss."""
    import torch

    if isinstance(value, dict):
        return {key: _without_tensors(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(inner) for inner in value]
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return value


def _lines(path: Path) -> list[str]:
    with reading(str(path)):
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
