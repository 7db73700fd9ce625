"""Repeated measurements, and how they spread."""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Of a few repeats."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.lowest:.3g}-{self.highest:.3g})"


def spread(values: Sequence[float]) -> Spread:
    """Median and ends.

    >>> str(spread([3.0, 1.0, 2.0]))
    '2 (1-3)'
    """
    return Spread(statistics.median(values), min(values), max(values))


def say(line: str) -> None:
    """Progress, beside the results."""
    print(line, file=sys.stderr, flush=True)
