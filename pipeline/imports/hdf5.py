"""An HDF5 file as a tree: groups are dicts, data sets are leaves, which are read by the slice."""

from pathlib import Path
from typing import Any

import h5py

from pipeline.errors import DataError
from pipeline.imports.source import reading

DEEPEST = 16  # groups in groups


def tree_of(file: h5py.File, path: Path) -> dict[str, Any]:
    """The groups and data sets of an open file.

    Raises:
        DataError: it holds links (to other places or files), which are not followed, or the library cannot read it.
    """
    with reading(str(path)):
        return _branch(file, path, 0)


def _branch(group: h5py.Group, path: Path, depth: int) -> dict[str, Any]:
    if depth > DEEPEST:
        raise DataError(f"{path}: '{group.name}': groups lie more than {DEEPEST} deep; make it flat")
    branch: dict[str, Any] = {}
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise DataError(
                f"{path}: '{group.name.rstrip('/')}/{name}' is a link, which is not followed; copy the data"
            )
        child = group[name]
        branch[name] = _branch(child, path, depth + 1) if isinstance(child, h5py.Group) else child
    return branch
