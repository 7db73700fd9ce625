"""numpy's own files: .npy (an array) and .npz (arrays by name), without numpy's pickles."""

import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.errors import DataError
from pipeline.imports.source import Lazy, reading
from pipeline.imports.unpickle import load


def map_npy(path: Path) -> Any:
    """The array of a .npy file, memory-mapped; objects (a list of arrays, a dict) come through the safe unpickler."""
    with reading(str(path)):
        try:
            return np.lib.format.open_memmap(path, mode="r")
        except ValueError:  # objects, or nothing to map
            return read_npy(path)


def read_npy(path: Path) -> Any:
    """The same, read into memory."""
    with reading(str(path)), path.open("rb") as file:
        return _read(file, str(path))


def read_npz(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    """Name -> array of an .npz file, which stays open.

    Raises:
        DataError: a name is given twice, or a member is no array.
    """
    members = archive.namelist()
    for member, count in Counter(members).items():
        if count > 1 or not member.endswith(".npy"):
            what = "is given twice" if count > 1 else "is no array (.npy)"
            raise DataError(f"{path}: its member '{member}' {what}; save it with numpy.savez")
    return {member.removesuffix(".npy"): Lazy(lambda m=member: _member(path, archive, m)) for member in members}  # type: ignore[misc]


def _member(path: Path, archive: zipfile.ZipFile, member: str) -> Any:
    where = f"{path}: '{member}'"
    with reading(where), archive.open(member) as file:
        return _read(file, where)  # type: ignore[arg-type]


def _read(file: BinaryIO, where: str) -> Any:
    try:
        return np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
    content = load(file, where)  # the header has been read
    return content.item() if isinstance(content, np.ndarray) and content.shape == () else content
