"""A CSV or TSV of utterance vectors, one row an utterance, such as openSMILE and spreadsheets write.

Cells are separated by commas, semicolons or tabs, whichever the header has most of. One column names the utterance;
every other one must hold numbers in all rows, or be one of `NOT_FEATURES`. An empty cell is a missing value: NaN.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError

NAMES = ("id", "utterance", "utterance_id", "name", "file", "filename")  # columns that may name the utterance
NOT_FEATURES = ("start", "end", "frametime", "class")  # where openSMILE says which piece of a recording it was


@dataclass(frozen=True)
class Vectors:
    """Vectors by the name of their utterance, and the columns that were left out."""

    rows: dict[str, np.ndarray]  # (dim,) float32 each, or float64 where float32 cannot hold it
    left_out: list[str]


def read_vectors(path: Path, naming: str | None) -> Vectors:
    """The vectors of the table at `path`; column `naming` names the utterances (None: one of `NAMES`).

    Raises:
        DataError: no such column, a row of another length, a cell that is no number, a name that is empty or repeated.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            header_line = file.readline()
            delimiter = max(",;\t", key=header_line.count)
            file.seek(0)
            return _read(csv.reader(file, delimiter=delimiter, strict=True), path, naming)
    except csv.Error as error:
        raise DataError(f"{path}: {error}; look for a cell whose quote is not closed") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _read(reader: Any, path: Path, naming: str | None) -> Vectors:
    header = [name.strip().strip("'\"") for name in next(reader, [])]
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
            raise DataError(f"{where}: {len(cells)} cells, expected {len(header)} as in the header; mend the row")
        name = cells[column].strip().strip("'\"")
        if not name or name in rows:
            what = f"'{name}' is given twice" if name else f"column '{header[column]}' is empty"
            raise DataError(f"{where}: {what}; expected one row an utterance, by its name")
        rows[name] = _numbers(cells, kept, header, where)
    return Vectors(rows, [header[index] for index in left_out])


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


def _numbers(cells: Sequence[str], kept: Sequence[int], header: Sequence[str], where: str) -> np.ndarray:
    numbers = np.empty(len(kept))
    for place, index in enumerate(kept):
        try:
            numbers[place] = float(cells[index]) if cells[index].strip() else np.nan
        except ValueError:
            raise DataError(
                f"{where}: '{header[index]}' is {cells[index]!r:.40}, not a number; take the column out of the table"
            ) from None
    with np.errstate(over="ignore"):
        short = numbers.astype(np.float32)
    return short if (np.isfinite(short) == np.isfinite(numbers)).all() else numbers
