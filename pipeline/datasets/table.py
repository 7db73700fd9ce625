"""A user's own corpus: one CSV, TSV or JSONL table with one row a turn.

Only text or audio is needed; every other column is optional. Without `conversation`, each row is a conversation of its
own; without `turn`, rows follow each other as in the table. Columns are found by the field's own name, or by the name
that `dataset.columns` gives.
"""

import csv
import difflib
import io
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.datasets.turns import Corpus, Turn
from pipeline.errors import DataError
from pipeline.params import Columns, DatasetParams

SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
MENDED_BYTES = "lines that were not UTF-8, read as cp1252"
MENDED_CONTROLS = "texts with cp1252 punctuation that an earlier conversion had left as control characters"
MENDED_SURROGATES = "cells with half a character (a lone surrogate), now '?'"


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    line: int  # of the file, where the row ends
    cells: Mapping[str, str]  # column -> text, "" where there is none


def read(params: DatasetParams, to_encode: bool = True) -> Corpus:
    """The turns of `root/table`; where nothing is `to_encode`, it needs neither a text nor an audio column.

    Raises:
        DataError: the table is missing, empty or malformed, a column that `dataset.columns` names is not in it, or a
            value is not of its column's kind; the line is named.
    """
    path = Path(params.root) / params.table
    mended: Counter[str] = Counter()
    rows = _read_rows(path, mended)
    columns = _resolve_columns(list(rows[0].cells), params.columns, path)
    if to_encode:
        _check_media(list(rows[0].cells), columns, path)
    turns = [_turn(row, number, columns, path, mended) for number, row in enumerate(rows, start=1)]
    return Corpus(turns, mended, _notes(rows, columns))


def _notes(rows: list[Row], columns: Mapping[str, str]) -> list[str]:
    """What a user may have overlooked: columns that nothing reads, turns that no conversation holds together."""
    notes = []
    unused = [name for name in rows[0].cells if name not in columns.values()]
    if unused:
        notes.append(f"columns that are not used: {', '.join(unused)}")
    if "conversation" not in columns:
        notes.append(
            "no conversation column (dataset.columns.conversation): every row is a conversation of its own, so turns "
            "have no context, and splits made here may part what belongs together"
        )
    return notes


def _read_rows(path: Path, mended: Counter[str]) -> list[Row]:
    """All rows, each with every column of the table."""
    readers = {".csv": _read_delimited, ".tsv": _read_delimited, ".jsonl": _read_json_lines}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: a table must end in {', '.join(readers)}; convert it, or mend dataset.table")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such table; mend dataset.root and dataset.table in params.yaml") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if b"\0" in content:
        raise DataError(f"{path}: holds NUL bytes; save it as UTF-8 text (UTF-16 is not read)")
    rows = readers[path.suffix.lower()](path, _decode(content, mended), mended)
    if not rows:
        raise DataError(f"{path}: holds no rows")
    return rows


def _decode(content: bytes, mended: Counter[str]) -> str:
    """UTF-8; a line that is not is taken for cp1252, which copies of such tables often mix in."""
    lines = []
    for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            lines.append(line.decode("cp1252", errors="replace"))
            mended[MENDED_BYTES] += 1
    return "\n".join(lines)


def _read_delimited(path: Path, content: str, mended: Counter[str]) -> list[Row]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    written = (cells for cells in reader if any(cell.strip() for cell in cells))  # an empty line is no turn
    rows: list[Row] = []
    try:
        header = [name.strip() for name in next(written, [])]
        _check_header(header, path)
        for cells in written:
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, expected {len(header)} as in the header; "
                    "quote cells that hold the delimiter"
                )
            rows.append(Row(reader.line_num, dict(zip(header, cells, strict=True))))
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


def _read_json_lines(path: Path, content: str, mended: Counter[str]) -> list[Row]:
    rows = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected a JSON object, found a {type(row).__name__}")
        for key, value in row.items():
            if value is not None and not _is_scalar(value):
                raise DataError(
                    f"{path}, line {number}: '{key}' is a {type(value).__name__}; expected a text, a number or null"
                )
        rows.append(Row(number, {key.strip(): _plain(value, mended) for key, value in row.items()}))
    names = sorted({name for row in rows for name in row.cells})
    return [Row(row.line, {name: row.cells.get(name, "") for name in names}) for row in rows]


def _plain(value: object, mended: Counter[str]) -> str:
    """A JSON value as text that can be written again: JSON may escape half a character, UTF-8 cannot hold it."""
    text = "" if value is None else str(value)
    whole = text.encode("utf-8", "replace").decode("utf-8")
    if whole != text:
        mended[MENDED_SURROGATES] += 1
    return whole


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _resolve_columns(found: list[str], columns: Columns, path: Path) -> dict[str, str]:
    """Field -> column of the table."""
    resolved = {}
    for name, column in columns.model_dump().items():
        if column is not None and column not in found:
            close = difflib.get_close_matches(column, found, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise DataError(
                f"{path}: no column '{column}' (dataset.columns.{name}); it has {', '.join(found) or 'none'}{hint}"
            )
        if column is not None or name in found:
            resolved[name] = column or name
    return resolved


def _check_media(found: list[str], columns: Mapping[str, str], path: Path) -> None:
    if not {"text", "audio"} & columns.keys():
        raise DataError(
            f"{path}: neither a text nor an audio column; name them in dataset.columns "
            f"(the table has {', '.join(found) or 'none'})"
        )


def _turn(row: Row, number: int, columns: Mapping[str, str], path: Path, mended: Counter[str]) -> Turn:
    cells = {name: row.cells[column] for name, column in columns.items()}
    # before white space is stripped, which the control character U+0085 (a cp1252 ellipsis) would count as
    text = _mend_controls(cells.get("text", ""), mended)
    recognised = _mend_controls(cells["recognised"], mended) if "recognised" in cells else None
    cells = {name: cell.strip() for name, cell in cells.items()}
    where = f"{path}, line {row.line}"
    conversation = cells.get("conversation", f"{number:06d}")
    if not conversation:
        raise DataError(f"{where}: the conversation is empty; name it, or leave the column out")
    order = _number(cells.get("turn", str(number)), "turn", where)
    if order is None:
        raise DataError(f"{where}: the turn is empty; number it, or leave the column out to take the rows' order")
    split = cells.get("split", "")
    if split and split.lower() not in SPLIT_NAMES:
        raise DataError(f"{where}: split '{split}' is none of {', '.join(SPLIT_NAMES)}")
    return Turn(
        conversation=conversation,
        order=order,
        id=cells.get("id") or None,
        speaker=cells.get("speaker") or None,
        split=SPLIT_NAMES.get(split.lower()),
        label=cells.get("label") or None,
        score=_number(cells.get("score", ""), "score", where),
        text=text,
        recognised=recognised,
        audio=cells.get("audio") or None,
        start=_number(cells.get("start", ""), "start", where),
        end=_number(cells.get("end", ""), "end", where),
    )


def _number(text: str, name: str, where: str) -> float | None:
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: {name} '{text}' is not a number")
    return number


def _mend_controls(text: str, mended: Counter[str]) -> str:
    """Characters U+0080 .. U+009F are cp1252 bytes that were decoded as Latin-1: give them their meaning back."""
    if not any("\x80" <= character <= "\x9f" for character in text):
        return text
    mended[MENDED_CONTROLS] += 1
    return "".join(
        character.encode("latin-1").decode("cp1252", errors="replace") if "\x80" <= character <= "\x9f" else character
        for character in text
    )
