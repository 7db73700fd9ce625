"""How numbers and tables are written in result files."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from fusion.objective import Interval

DIGITS = 6  # behind the point, wherever programs read a number


def rounded(value: float) -> float:
    """A number as JSON files give it."""
    return round(value, DIGITS)


def number(value: float | None) -> str:
    """A number as CSV files give it, empty where there is none.

    >>> number(0.5), number(None)
    ('0.500000', '')
    """
    return "" if value is None else f"{value:.{DIGITS}f}"


def mean_std(mean: float, std: float | None) -> str:
    """Mean ± standard deviation, which a single seed lacks.

    >>> mean_std(0.5, 0.25), mean_std(0.5, None)
    ('0.500 ± 0.250', '0.500')
    """
    return f"{mean:.3f}" if std is None else f"{mean:.3f} ± {std:.3f}"


def bounds(interval: Interval, signed: bool = False, separator: str = " to ") -> str:
    """Both ends of an interval, with their signs where `signed`."""
    style = "+.3f" if signed else ".3f"
    return f"{interval.low:{style}}{separator}{interval.high:{style}}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The content of a CSV file."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()
