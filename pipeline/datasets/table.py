"""A user's own corpus: one CSV, TSV, JSONL or Parquet table with one row a turn.

Only text or audio is needed; every other column is optional. Without `conversation`, each row is a conversation of its
own; without `turn`, rows follow each other as in the table. Columns are found by the field's own name, or by the name
that `dataset.columns` gives; all others are carried along into the manifest, as `extra`.
"""

import difflib
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pipeline.datasets.mending import mend_controls
from pipeline.datasets.rows import Row, read_rows
from pipeline.datasets.turns import Corpus, Turn
from pipeline.errors import DataError
from pipeline.manifest import LARGEST_SCORE
from pipeline.params import Columns, DatasetParams

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
    return read_table(Path(params.root) / params.table, params.columns, to_encode)


def read_table(path: Path, named: Columns, to_encode: bool = True, unread: Collection[str] = ()) -> Corpus:
    """The turns of the table at `path`; raises as `read`. Columns of the fields `unread` are only carried along."""
    mended: Counter[str] = Counter()
    rows = read_rows(path, mended)
    columns = _resolve_columns(list(rows[0].cells), named, path)
    columns = {field: column for field, column in columns.items() if field not in unread}
    if to_encode:
        _check_media(list(rows[0].cells), columns, path)
    extra = [name for name in rows[0].cells if name not in columns.values()]
    turns = [_turn(row, number, columns, extra, mended) for number, row in enumerate(rows, start=1)]
    return Corpus(turns, mended, _notes(columns, extra))


def _notes(columns: Mapping[str, str], extra: Sequence[str]) -> list[str]:
    """What a user may have overlooked: columns that nothing reads, turns that no conversation holds together."""
    notes = []
    if extra:
        notes.append(f"columns that are not used, only carried along: {', '.join(extra)}")
    if "conversation" not in columns:
        notes.append(
            "no conversation column (dataset.columns.conversation): every row is a conversation of its own, so turns "
            "have no context, and splits made here may part what belongs together"
        )
    return notes


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


def _turn(row: Row, number: int, columns: Mapping[str, str], extra: Sequence[str], mended: Counter[str]) -> Turn:
    row.refuse_unfit(columns.values())
    cells = {name: row.cells[column] for name, column in columns.items()}
    # before white space is stripped, which the control character U+0085 (a cp1252 ellipsis) would count as
    text = mend_controls(cells.get("text", ""), mended)
    recognised = mend_controls(cells["recognised"], mended) if "recognised" in cells else None
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
        extra={name: cell for name in extra if (cell := mend_controls(row.cells[name], mended).strip())},
        where=where,
    )


def parse_number(text: str, name: str, where: str) -> float | None:
    """A cell as a number; None where it is empty. Raises DataError."""
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: {name} '{text}' is not a number")
    if abs(number) > LARGEST_SCORE:
        raise DataError(f"{where}: {name} '{text}' is beyond {LARGEST_SCORE:.1e}, the largest number of 32 bits")
    return number
