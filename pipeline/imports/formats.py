"""Files of arrays and vectors as trees: numpy's own (.npy, .npz), HDF5, and tables of utterance vectors (CSV, TSV).

Such tables hold one row an utterance, as openSMILE and spreadsheets write them.
Cells are separated by commas, semicolons or tabs, whichever the first line has most of, or by blanks if it has none.
A column names the utterance; every other one must hold numbers in all rows, or be one of `NOT_FEATURES`. Where no
column names it, rows are in the order of the table, as those of an array; then there may be no header, and a first
column without a name that counts the rows, as pandas writes one, is left out. An empty cell is a missing value: NaN.
"""

import csv
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from pipeline.errors import DataError
from pipeline.imports.entries import Lazy, reading, refuse_bomb
from pipeline.imports.unpickle import load
from pipeline.store import lies_elsewhere


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
        return _read_array(file, str(path))


def read_npz(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    """Name -> array of an .npz file, which stays open.

    Raises:
        DataError: a name is given twice, or a member is no array.
    """
    refuse_packed(path, archive)
    members = archive.namelist()
    for member, count in Counter(members).items():
        if count > 1 or not member.endswith(".npy"):
            what = "is given twice" if count > 1 else "is no array (.npy)"
            raise DataError(f"{path}: its member '{member}' {what}; save it with numpy.savez")
    return {member.removesuffix(".npy"): Lazy(lambda m=member: _member(path, archive, m)) for member in members}  # type: ignore[misc]


def refuse_packed(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise DataError where the members of an archive would fill the memory with next to nothing."""
    members = archive.infolist()
    refuse_bomb(str(path), sum(one.file_size for one in members), sum(one.compress_size for one in members))


def _member(path: Path, archive: zipfile.ZipFile, member: str) -> Any:
    where = f"{path}: '{member}'"
    with reading(where), archive.open(member) as file:
        return _read_array(file, where)  # type: ignore[arg-type]


def _read_array(file: BinaryIO, where: str) -> Any:
    try:
        return np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
    content = load(file, where)  # the header has been read
    return content.item() if isinstance(content, np.ndarray) and content.shape == () else content


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
        if isinstance(child, h5py.Dataset) and lies_elsewhere(child):
            raise DataError(
                f"{path}: '{child.name}' takes its bytes from other files (external storage or a virtual data set), "
                "which is refused; copy the data into one file"
            )
        if isinstance(child, h5py.Dataset):
            size = (child.size or 0) * child.dtype.itemsize
            refuse_bomb(f"{path}: '{child.name}'", size, child.id.get_storage_size())
        branch[name] = _branch(child, path, depth + 1) if isinstance(child, h5py.Group) else child
    return branch


NAMES = ("id", "utterance", "utterance_id", "name", "file", "filename")  # columns that may name the utterance
NOT_FEATURES = ("start", "end", "frametime", "class")  # where openSMILE says which piece of a recording it was


@dataclass(frozen=True)
class Vectors:
    """Vectors by the name of their utterance, or in the order of the table, and the columns that were left out."""

    rows: dict[str, np.ndarray] | np.ndarray  # (dim,) float32 each, or float64 where float32 cannot hold it
    left_out: list[str]


def read_vectors(path: Path, naming: str | None) -> Vectors:
    """The vectors of the table at `path`; column `naming` names the utterances (None: one of `NAMES`, if it has one).

    Raises:
        DataError: no such column, a row of another length, a cell that is no number, a name that is empty or repeated.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            first_line = file.readline()
            delimiter = max(",;\t", key=first_line.count)
            file.seek(0)
            if naming is None and not first_line.count(delimiter) and len(first_line.split()) > 1:  # numpy.savetxt
                return _read_cells(csv.reader((" ".join(line.split()) for line in file), delimiter=" "), path, naming)
            return _read_cells(csv.reader(file, delimiter=delimiter, strict=True), path, naming)
    except csv.Error as error:
        raise DataError(f"{path}: {error}; look for a cell whose quote is not closed") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _read_cells(reader: Any, path: Path, naming: str | None) -> Vectors:
    header = [name.strip().strip("'\"") for name in next(reader, [])]
    if naming is None and not any(name.lower() in NAMES for name in header):
        return _read_unnamed(header, reader, path)
    column = _naming_column(header, path, naming)
    left_out = [index for index, name in enumerate(header) if name.lower() in NOT_FEATURES and index != column]
    kept = [index for index in range(len(header)) if index != column and index not in left_out]
    if not kept:
        raise DataError(f"{path}: no column of numbers (it has {', '.join(header)}); expected one column a dimension")
    rows: dict[str, np.ndarray] = {}
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        where = f"{path}, line {reader.line_num}"
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} cells, expected {len(header)} as in the header; fix the row")
        name = cells[column].strip().strip("'\"")
        if not name or name in rows:
            what = f"'{name}' is given twice" if name else f"column '{header[column]}' is empty"
            raise DataError(f"{where}: {what}; expected one row an utterance, by its name")
        rows[name] = _numbers(cells, kept, header, where)
    return Vectors(rows, [header[index] for index in left_out])


def _read_unnamed(header: list[str], reader: Any, path: Path) -> Vectors:
    """Rows in the order of the table: all columns hold numbers, the first line perhaps, too."""
    lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    counted = header[:1] == [""] and [cells[0].strip() for _, cells in lines] in _counts(len(lines))
    named = header[1:] if counted else header
    if all(map(_is_number, named)) and named != [str(place) for place in range(len(named))]:
        lines.insert(0, (1, header))
        header = [f"column {place}" for place in range(len(header))]
    left_out = [index for index, name in enumerate(header) if name.lower() in NOT_FEATURES or (counted and not index)]
    kept = [index for index in range(len(header)) if index not in left_out]
    if not kept or not lines:
        raise DataError(f"{path}: no column of numbers (it has {', '.join(header)}); expected one column a dimension")
    rows = []
    for number, cells in lines:
        where = f"{path}, line {number}"
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} cells, expected {len(header)} as in the first line; fix the row")
        unnamed = f"name the column that names the utterances ({path}:COLUMN), or take"
        rows.append(_numbers(cells, kept, header, where, unnamed))
    return Vectors(np.stack(rows), [header[index] or "(the number of the row)" for index in left_out])


def _counts(rows: int) -> list[list[str]]:
    """What a column that counts so many rows holds."""
    return [[str(row) for row in range(first, first + rows)] for first in (0, 1)]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _naming_column(header: list[str], path: Path, naming: str | None) -> int:
    repeated = (
        next((name for name in header if header.count(name) > 1), None) if len(set(header)) < len(header) else None
    )
    if repeated is not None:
        raise DataError(f"{path}: column '{repeated}' is given twice in the header")
    known = [name for name in header if (name == naming if naming else name.lower() in NAMES)]
    if not known:
        wanted = f"'{naming}'" if naming else f"of {', '.join(NAMES)}"
        raise DataError(
            f"{path}: no column {wanted} names the utterances (it has {', '.join(header[:8])} ...); "
            f"name the column: {path}:COLUMN"
        )
    return header.index(known[0])


def _numbers(
    cells: Sequence[str], kept: Sequence[int], header: Sequence[str], where: str, fix: str = "take"
) -> np.ndarray:
    numbers = np.empty(len(kept))
    for place, index in enumerate(kept):
        try:
            numbers[place] = float(cells[index]) if cells[index].strip() else np.nan
        except ValueError:
            raise DataError(
                f"{where}: '{header[index]}' is {cells[index]!r:.40}, not a number; {fix} the column out of the table"
            ) from None
    with np.errstate(over="ignore"):
        short = numbers.astype(np.float32)
    return short if (np.isfinite(short) == np.isfinite(numbers)).all() else numbers
