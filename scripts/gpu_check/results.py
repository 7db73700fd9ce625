"""What the check found, a line of JSON as soon as it is known; and the report of all lines."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["passed", "failed", "measured", "not run"]
Value = float | int | str | bool | None
CHECK_ENDED = "(all)"  # the case of the line with which a check ends


@dataclass(frozen=True)
class Row:
    """One case of a check."""

    check: str
    case: str
    status: Status
    values: Mapping[str, Value] = field(default_factory=dict)  # by name, with its unit in it
    note: str = ""


@dataclass(frozen=True)
class Results:
    """A file of lines, which several processes may add to."""

    path: Path

    def add(self, row: Row) -> None:
        """Write a line; it is on disk when this returns."""
        line = json.dumps(asdict(row), ensure_ascii=False) + "\n"
        opened = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(opened, line.encode())
            os.fsync(opened)
        finally:
            os.close(opened)

    def rows(self) -> list[Row]:
        """All lines so far; one that was cut off by a kill is left out."""
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                rows.append(Row(**json.loads(line)))
            except (ValueError, TypeError):
                continue
        return rows


def write_report(results: Results, folder: Path, facts: Mapping[str, Any]) -> str:
    """Write results.json and results.md, and return the table."""
    rows = results.rows()
    content = {**facts, "counts": counts(rows), "rows": [asdict(row) for row in rows]}
    (folder / "results.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    table = markdown(rows)
    (folder / "results.md").write_text(table, encoding="utf-8")
    return table


def counts(rows: Sequence[Row]) -> dict[Status, int]:
    """Cases by status."""
    cases = [row for row in rows if row.case != CHECK_ENDED or row.status in ("failed", "not run")]
    names: tuple[Status, ...] = ("passed", "failed", "measured", "not run")
    return {name: sum(row.status == name for row in cases) for name in names}


def markdown(rows: Sequence[Row]) -> str:
    """The table for docs/measured.md: a row a case, with a check's own line where it says more than its time."""
    lines = ["| check | case | result | values | note |", "|---|---|---|---|---|"]
    for row in rows:
        values = ", ".join(f"{name.replace('_', ' ')} {_told(value)}" for name, value in row.values.items())
        cells = (row.check, row.case, row.status, values, row.note)
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _told(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
