"""Tables of all kinds -> rows of texts: .csv, .tsv, .jsonl and .parquet.

Numbers become the text that Python writes for them, what is null or NaN becomes "". Lists, mappings and truth values
become JSON, for columns that are only carried along.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from pipeline.datasets.mending import decode_lines, mend_surrogates
from pipeline.errors import DataError

SCALARS = (str, int, float, Decimal, date, time, timedelta, type(None))


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    where: str  # the file and the line in which the row ends, to lead messages
    cells: Mapping[str, str]  # column -> text, "" where there is none
    unfit: Mapping[str, str] = field(default_factory=dict)  # column -> type of a value that is no text, number or null

    def refuse_unfit(self, columns: Iterable[str]) -> None:
        """Raise DataError if one of `columns`, which are to be read as text or number, holds something else."""
        for column in columns:
            if column in self.unfit:
                raise DataError(
                    f"{self.where}: '{column}' is a {self.unfit[column]}; expected a text, a number or null"
                )


def read_rows(path: Path, mended: Counter[str]) -> list[Row]:
    """All rows, each with every column of the table.

    Raises:
        DataError: the table is missing, empty, malformed or of no kind that is read; the line is named.
    """
    readers = {".csv": _read_delimited, ".tsv": _read_delimited, ".jsonl": _read_json_lines, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: a table must end in {', '.join(readers)}; convert it, or name another")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such table; mend dataset.root and dataset.table in params.yaml") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    rows = readers[path.suffix.lower()](path, content, mended)
    if not rows:
        raise DataError(f"{path}: holds no rows")
    return rows


def _text(path: Path, content: bytes, mended: Counter[str]) -> str:
    if b"\0" in content:
        raise DataError(f"{path}: holds NUL bytes; save it as UTF-8 text (UTF-16 is not read)")
    return decode_lines(content, mended)


def _read_delimited(path: Path, content: bytes, mended: Counter[str]) -> list[Row]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(_text(path, content, mended), newline=""), delimiter=delimiter, strict=True)
    written = (cells for cells in reader if any(cell.strip() for cell in cells))  # an empty line is no turn
    rows: list[Row] = []
    try:
        header = [name.strip() for name in next(written, [])]
        _check_header(header, path)
        for cells in written:
            where = f"{path}, line {reader.line_num}"
            if len(cells) != len(header):
                raise DataError(
                    f"{where}: {len(cells)} cells, expected {len(header)} as in the header; "
                    "quote cells that hold the delimiter"
                )
            rows.append(Row(where, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error}; look for a cell whose quote is not closed, and double the "
            "quotes inside quoted cells"
        ) from None
    return rows


def _check_header(header: list[str], path: Path) -> None:
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: column name '{repeated[0]}' is given twice in the header ({', '.join(header)})")
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise DataError(
            f"{path}: the header is a single cell, {header[0]!r}; cells are separated by commas in a .csv and by tabs "
            "in a .tsv: save it so, or give it the other ending"
        )


def _read_json_lines(path: Path, content: bytes, mended: Counter[str]) -> list[Row]:
    rows = []
    for number, line in enumerate(_text(path, content, mended).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error})") from None
        if not isinstance(values, dict):
            raise DataError(f"{where}: expected a JSON object, found a {type(values).__name__}")
        names = [mend_surrogates(name, mended).strip() for name in values]
        rows.append(_row(where, names, list(values.values()), mended))
    names = sorted({name for row in rows for name in row.cells})
    return [replace(row, cells={name: row.cells.get(name, "") for name in names}) for row in rows]


def _read_parquet(path: Path, content: bytes, mended: Counter[str]) -> list[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow; pip install pyarrow, or save the table as .csv or .jsonl"
        ) from None
    try:
        table = parquet.read_table(pyarrow.BufferReader(content))
        columns = [column.to_pylist() for column in table.columns]
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({error})") from None
    names = [mend_surrogates(name, mended).strip() for name in table.column_names]
    return [
        _row(f"{path}, row {number}", names, values, mended)
        for number, values in enumerate(zip(*columns, strict=True), start=1)
    ]


def _row(where: str, names: Sequence[str], values: Sequence[Any], mended: Counter[str]) -> Row:
    if len(set(names)) < len(names):
        repeated = next(name for name, count in Counter(names).items() if count > 1)
        raise DataError(f"{where}: column name '{repeated}' is given twice")
    try:
        cells = {name: mend_surrogates(_plain(value), mended) for name, value in zip(names, values, strict=True)}
    except RecursionError:
        raise DataError(f"{where}: nested too deeply") from None
    unfit = {name: type(value).__name__ for name, value in zip(names, values, strict=True) if not _is_scalar(value)}
    return Row(where, cells, unfit)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, SCALARS) and not isinstance(value, bool)


def _plain(value: Any) -> str:
    if value is None or value != value:  # NaN
        return ""
    if not _is_scalar(value):
        return json.dumps(value, ensure_ascii=False, default=lambda odd: f"<{type(odd).__name__}>")
    return str(value)
