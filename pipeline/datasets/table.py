"""A user's own corpus: one CSV, TSV, JSONL or Parquet table with one row a turn; and tables of all kinds as rows of
texts.

Only text or audio is needed; every other column is optional. Without `conversation`, each row is a conversation of its
own; without `turn`, rows follow each other as in the table. Columns are found by the field's own name, or by the name
that `dataset.columns` gives; all others are carried along into the manifest, as `extra`.

Numbers become the text that Python writes for them, what is null or NaN becomes "". Lists, mappings and truth values
become JSON, for columns that are only carried along.
"""

import csv
import io
import json
import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, time, timedelta
from decimal import Decimal
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

from pipeline.datasets.corpus import Corpus, Turn
from pipeline.datasets.repairs import Repairs, decode, fix_surrogates, repair_controls
from pipeline.errors import DataError, refuse_pipe, suggest
from pipeline.manifest import LARGEST_SCORE
from pipeline.params import Columns, DatasetParams
from pipeline.settings import take_check

SCALARS = (str, int, float, Decimal, date, time, timedelta, type(None))
DELIMITER_LINE = re.compile(r'\A\s*"?sep=([^"\r\n])"?[ \t]*(?=\r?\n|\r)', re.IGNORECASE)  # that Excel asks for
UNNAMED = re.compile(r"(Unnamed: \d+(\.\d+)?)?|__index_level_\d+__")  # as pandas writes its index
RECORDING = re.compile(
    r"\.(wav|flac|mp3|ogg|oga|opus|m4a|aac|aiff?|amr|wma|mp4|mkv|avi|mov|webm|wmv|flv|mpe?g|3gp)", re.IGNORECASE
)
LABEL_BLANKS = "labels with blanks around them, now without"
INDEX = "columns with the row numbers of pandas, left out"
MAY_BE_ROWS = "if each line is a row, double the quotes in its cells and put these cells in quotes"

csv.field_size_limit(sys.maxsize)  # a cell may hold a whole interview; csv stops at 131,072 characters otherwise


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


def read_rows(
    path: str | PathLike[str], repaired: Counter[str] | None = None, encoding: str | None = None
) -> list[Row]:
    """All rows, each with every column of the table but those that number the rows without having a name.

    Args:
        repaired: where repairs are counted; `Repairs` also say the encoding.
        encoding: of text, beside another counter; None: UTF-8, in which lines may be cp1252.

    Raises:
        DataError: the table is missing, empty, malformed or of no kind that is read; the line is named.
    """
    path, repairs = Path(path), repaired if isinstance(repaired, Repairs) else Repairs(encoding)
    readers = {".csv": _read_delimited, ".tsv": _read_delimited, ".jsonl": _read_json_lines, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: a table must end in {', '.join(readers)}; convert it, or name another")
    try:
        refuse_pipe(path)
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such table; fix dataset.root and dataset.table in params.yaml") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    rows = readers[path.suffix.lower()](path, content, repairs)
    if not rows:
        raise DataError(f"{path}: holds no rows")
    rows = _without_index(rows, repairs)
    if repaired is not None and repaired is not repairs:
        repaired.update(repairs)
    return rows


def _without_index(rows: Sequence[Row], repaired: Repairs) -> list[Row]:
    unnamed = [name for name in rows[0].cells if UNNAMED.fullmatch(name)]
    values = {name: [row.cells[name].strip() for row in rows] for name in unnamed}
    numbers = {
        name
        for name, cells in values.items()
        if len(set(cells)) == len(cells) and all(cell.isdecimal() for cell in cells)
    }
    repaired.update({INDEX: len(numbers)} if numbers else {})
    return [replace(row, cells={name: cell for name, cell in row.cells.items() if name not in numbers}) for row in rows]


def _read_delimited(path: Path, content: bytes, repaired: Repairs) -> list[Row]:
    delimiter, text = "\t" if path.suffix.lower() == ".tsv" else ",", decode(path, content, repaired)
    if stated := DELIMITER_LINE.match(text):
        delimiter, text = stated[1], text[stated.end() :]  # its line end stays, for the numbers of lines
    lines = list(io.StringIO(text, newline=""))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    written = (cells for cells in reader if any(cell.strip() for cell in cells))  # an empty line is no turn
    rows: list[Row] = []
    doubtful: list[str] = []
    try:
        names = [_column_name(name) for name in next(written, [])]
        unnamed = [
            f"Unnamed: {index}{'.1' * (f'Unnamed: {index}' in names)}" for index in range(len(names))
        ]  # as pandas
        header = [name or other for name, other in zip(names, unnamed, strict=True)]
        _check_header(header, path)
        before = reader.line_num
        for cells in written:
            own, before = lines[before : reader.line_num], reader.line_num
            if _may_be_rows(own, len(header), delimiter):
                doubtful.append(f"lines {before - len(own) + 1} to {before}")
            where = f"{path}, line {reader.line_num}"
            if len(cells) != len(header):
                raise DataError(
                    f"{where}: {len(cells)} cells, expected {len(header)} as in the header; "
                    + (
                        "if rows begin with their name, as R writes them, write the table with row.names = FALSE; else "
                        if not rows and len(cells) == len(header) + 1
                        else ""
                    )
                    + "quote cells that hold the delimiter"
                )
            rows.append(Row(where, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error}; look for a cell whose quote is not closed, and double the "
            "quotes inside quoted cells"
        ) from None
    if doubtful:
        repaired[f"rows of several lines by their quotes ({doubtful[0]}); {MAY_BE_ROWS}"] += len(doubtful)
    return rows


def _may_be_rows(lines: Sequence[str], columns: int, delimiter: str) -> bool:
    """Whether the lines of a row may be rows themselves, of texts that people put in quotes."""
    lines = [line for line in lines if line.strip()]
    return len(lines) > 1 and all(len(line.split(delimiter)) == columns > 1 for line in lines)


@lru_cache(maxsize=1_000)  # JSON lines name them in every line
def _column_name(name: str) -> str:
    r"""Composed, without blanks and invisible characters around it.

    >>> _column_name("\ufeff\u200b Gefu\u0308hl\xa0")
    'Gefühl'
    """
    seen = [place for place, character in enumerate(name) if character.isprintable() and not character.isspace()]
    return unicodedata.normalize("NFC", name[seen[0] : seen[-1] + 1]) if seen else ""


def _check_header(header: list[str], path: Path) -> None:
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: column name '{repeated[0]}' is given twice in the header ({', '.join(header)})")
    if len(header) == 1 and any(sign in header[0] for sign in ";\t|"):
        raise DataError(
            f"{path}: the header is a single cell, {header[0]!r}; cells are separated by commas in a .csv and by tabs "
            "in a .tsv: save it so, or give it the other ending"
        )


def _read_json_lines(path: Path, content: bytes, repaired: Repairs) -> list[Row]:
    rows = []
    for number, line in enumerate(decode(path, content, repaired).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = json.loads(take_check(line, where))  # a manifest is a table, too
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error}); expected an object {{..}} on each line") from None
        if not isinstance(values, dict):
            raise DataError(f"{where}: expected a JSON object, found a {type(values).__name__}")
        names = [_column_name(fix_surrogates(name, repaired)) for name in values]
        rows.append(_row(where, names, list(values.values()), repaired))
    names = sorted({name for row in rows for name in row.cells})
    return [replace(row, cells={name: row.cells.get(name, "") for name in names}) for row in rows]


def _read_parquet(path: Path, content: bytes, repaired: Repairs) -> list[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow; pip install pyarrow, or save the table as .csv or .jsonl"
        ) from None
    try:
        table = parquet.ParquetFile(pyarrow.BufferReader(content)).read()
        columns = [_to_microseconds(column).to_pylist() for column in table.columns]
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({error})") from None
    names = [_column_name(fix_surrogates(name, repaired)) for name in table.column_names]
    return [
        _row(f"{path}, row {number}", names, values, repaired)
        for number, values in enumerate(zip(*columns, strict=True), start=1)
    ]


def _to_microseconds(column: Any) -> Any:
    """A column of times in nanoseconds, which Python has not, in microseconds; others as they are."""
    import pyarrow

    kind, types = column.type, pyarrow.types
    made = {
        types.is_timestamp: lambda: pyarrow.timestamp("us", kind.tz),
        types.is_duration: lambda: pyarrow.duration("us"),
        types.is_time64: lambda: pyarrow.time64("us"),
    }
    narrower = next((make() for fits, make in made.items() if fits(kind) and kind.unit == "ns"), None)
    return column if narrower is None else column.cast(narrower, safe=False)


def _row(where: str, names: Sequence[str], values: Sequence[Any], repaired: Counter[str]) -> Row:
    if len(set(names)) < len(names):
        repeated = next(name for name, count in Counter(names).items() if count > 1)
        raise DataError(f"{where}: column name '{repeated}' is given twice")
    try:
        cells = {name: fix_surrogates(_plain(value), repaired) for name, value in zip(names, values, strict=True)}
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


SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


def read(params: DatasetParams, to_encode: bool = True) -> Corpus:
    """The turns of `root/table`; where nothing is `to_encode`, it needs neither a text nor an audio column.

    Raises:
        DataError: the table is missing, empty or malformed, a column that `dataset.columns` names is not in it, or a
            value is not of its column's kind; the line is named.
    """
    return read_table(Path(params.root) / params.table, params, to_encode)


def read_table(
    path: Path,
    params: DatasetParams,
    to_encode: bool = True,
    unread: Collection[str] = (),
    optional: Collection[str] = (),
) -> Corpus:
    """The turns of the table at `path`; raises as `read`.

    Args:
        unread: fields whose columns are only carried along.
        optional: fields whose column in `dataset.columns` the table may lack.
    """
    repaired = Repairs(params.encoding)
    rows, named = read_rows(path, repaired), params.columns
    resolved = _resolve_columns(list(rows[0].cells), named, path, optional)
    columns = {field: column for field, column in resolved.items() if field not in unread}
    if to_encode:
        _check_media(list(rows[0].cells), columns, path)
    extra = [name for name in rows[0].cells if name not in columns.values()]
    turns = [_turn(row, number, columns, extra, repaired) for number, row in enumerate(rows, start=1)]
    return Corpus(turns, repaired, _notes(columns, extra, turns), columns=resolved)


def unused_columns(names: Iterable[str], turns: Sequence[Turn]) -> list[str]:
    """A note on columns that nothing reads, if there are any, with the key that names one of recordings."""
    without_audio = all(turn.audio is None for turn in turns)
    told = [
        name + " (recordings? name it with dataset.columns.audio)" * (without_audio and _names_recordings(name, turns))
        for name in names
    ]
    return [f"columns that are not used, only carried along: {', '.join(told)}"] if told else []


def _names_recordings(name: str, turns: Sequence[Turn]) -> bool:
    cells = [turn.extra[name] for turn in turns if name in turn.extra]
    found = sum(bool(RECORDING.fullmatch(Path(cell).suffix)) for cell in cells)
    return 2 * found > len(cells)


def _notes(columns: Mapping[str, str], extra: Sequence[str], turns: Sequence[Turn]) -> list[str]:
    """What a user may have overlooked: columns that nothing reads, turns that no conversation holds together."""
    notes = unused_columns(extra, turns)
    if "conversation" not in columns:
        notes.append(
            "no conversation column (dataset.columns.conversation): every row is a separate conversation, so turns "
            "have no context, and splits made here may part what belongs together"
        )
    return notes


def _resolve_columns(found: list[str], columns: Columns, path: Path, optional: Collection[str]) -> dict[str, str]:
    """Field -> column of the table."""
    resolved = {}
    for name, given in columns.model_dump().items():
        column = None if given is None else _column_name(given)
        if name in optional and column not in found:
            column = None
        if column is not None and column not in found:
            hint = suggest(column, found)
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


def _turn(row: Row, number: int, columns: Mapping[str, str], extra: Sequence[str], repaired: Counter[str]) -> Turn:
    row.refuse_unfit(columns.values())
    cells = {name: row.cells[column] for name, column in columns.items()}
    # before white space is stripped, which the control character U+0085 (a cp1252 ellipsis) would count as
    text = repair_controls(cells.get("text", ""), repaired)
    recognised = repair_controls(cells["recognised"], repaired) if "recognised" in cells else None
    if cells.get("label", "").strip() not in (cells.get("label", ""), ""):
        repaired[LABEL_BLANKS] += 1
    cells = {name: cell.strip() for name, cell in cells.items()}
    where = row.where
    conversation = cells.get("conversation", f"{number:06d}")
    if not conversation:
        raise DataError(f"{where}: the conversation is empty; name it, or leave the column out")
    order = parse_number(cells.get("turn", str(number)), "turn", where)
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
        score=parse_number(cells.get("score", ""), "score", where),
        text=text,
        recognised=recognised,
        audio=cells.get("audio") or None,
        start=parse_number(cells.get("start", ""), "start", where),
        end=parse_number(cells.get("end", ""), "end", where),
        extra={name: cell for name in extra if (cell := repair_controls(row.cells[name], repaired).strip())},
        where=where,
    )


def parse_number(text: str, name: str, where: str) -> float | None:
    """A cell as a number; None where it is empty. Raises DataError."""
    if not text:
        return None
    try:
        number = float(text) if "_" not in text else math.nan  # Python takes 1_0 for 10
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: {name} '{text}' is not a number; {_number_hint(text, name)}")
    if abs(number) > LARGEST_SCORE:
        raise DataError(f"{where}: {name} '{text}' is beyond {LARGEST_SCORE:.1e}, the largest number of 32 bits")
    return number


def _number_hint(text: str, name: str) -> str:
    """How it should have been written."""
    if name == "turn":
        return "number the turns, or leave the column out to take the rows' order"
    if ":" in text:
        return "write seconds, such as 62.5"
    return "use a decimal point: 62.5" if "," in text else "expected one such as 62.5, or an empty cell"
