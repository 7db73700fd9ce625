"""How far a long work is and how fast it goes, in units that people know."""

import time
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {shown} [{elapsed}<{remaining}{per_minute}]"


@dataclass(frozen=True)
class Unit:
    """What lengths are measured in for people, such as hours of samples."""

    name: str  # of an amount, "h of audio"
    short: str  # of a rate, "h"
    size: float  # lengths in one unit
    digits: int  # behind the decimal point

    def show(self, length: float) -> str:
        """`length` in this unit, without its name.

        >>> Unit("h of audio", "h", 3600, digits=2).show(5400)
        '1.50'
        """
        return f"{length / self.size:,.{self.digits}f}"


class Progress:
    """A progress bar with units a minute and the time left, silent where there is no terminal; a context manager.

    Args:
        total: length of all the work.
        kept: of that, what an earlier run did; it has no part in the speed.
    """

    def __init__(self, name: str, unit: Unit, total: int, kept: int = 0) -> None:
        self._unit = unit
        self.bar = Bar(unit=unit, total=total, initial=kept, desc=name, disable=None, bar_format=FORMAT, smoothing=0)
        self._done, self.started = 0, time.perf_counter()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *raised: object) -> None:
        self._seconds = time.perf_counter() - self.started
        self.bar.close()

    def advance(self, length: int) -> None:
        """So much more is done."""
        self._done += length
        self.bar.update(length)

    def speed(self) -> str:
        """How much was done, in which time and how fast, to be put behind other words; "" for nothing."""
        if not self._done:
            return ""
        minutes = self._seconds / 60
        rate = self._unit.show(self._done / minutes)
        took = f"{minutes:.1f} min" if minutes >= 1 else f"{self._seconds:.1f} s"
        return f"; {self._unit.show(self._done)} {self._unit.name} in {took}, {rate} {self._unit.short} a minute"


class Bar(tqdm):
    """A bar whose format knows our unit."""

    def __init__(self, *, unit: Unit, **options: Any) -> None:
        self._unit = unit
        super().__init__(unit=unit.name, **options)

    @property
    def format_dict(self) -> dict[str, Any]:
        """What the bar's format may name: also `shown` and `per_minute`."""
        found = dict(super().format_dict)
        done, total = found["n"], found["total"] or 0
        rate = (done - found["initial"]) / found["elapsed"] if found["elapsed"] else 0.0
        unit = self._unit
        found["shown"] = f"{unit.show(done)}/{unit.show(total)} {unit.name}"
        found["per_minute"] = f", {unit.show(60 * rate)} {unit.short} a minute" if rate else ""
        return found
