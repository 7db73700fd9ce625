"""What the columns of a modality's features are like: mean, deviation and range over many rows, what puts them on one
scale, and which columns are odd.

Computed in float64, a block of rows at a time, by adding whole rows in their order, which gives the same bits on every
processor (Chan, Golub and LeVeque 1983, for joining blocks).

Axes: rows (frames or tokens), layers, dim.
"""

from dataclasses import dataclass
from functools import reduce

import numpy as np

RESOLUTION = 1e-6  # of float32, with some room: a column that varies by less around its mean is constant
TINY = 1e-30  # a deviation whose reciprocal float32 still holds
WIDE = 1000  # times that the largest deviation may be the smallest before it is reported
BLOCK = 128  # rows at a time: their float64 copies stay in the cache
FAR, HEAVY = 10, 0.1  # deviations of a value from the mean, and its share of `squares`, from which on it is an outlier
ROUNDING = 1e-10  # of sums in float64, relative, with some room
REACH = 5.0  # robust deviations from the median that values may have
NORMAL = 1.349  # the interquartile range of a normal distribution, in deviations
NAMED = 5  # columns that a report names


@dataclass(frozen=True, eq=False)
class Scale:
    """(value - centre) / spread is a column on the scale of all; before that, what lies beyond a limit is put on it.

    Shape:
        all: (dim,) or (layers, dim) float64
    """

    centre: np.ndarray
    spread: np.ndarray
    low: np.ndarray
    high: np.ndarray


def plain_scale(mean: np.ndarray, deviation: np.ndarray, least: np.ndarray, most: np.ndarray) -> Scale:
    """Mean and standard deviation; limits are the range of the values, widened by its own width on both sides."""
    with np.errstate(invalid="ignore", over="ignore"):  # of values that are not finite
        margin = most - least + RESOLUTION * np.abs(mean)
        return Scale(mean, deviation, least - margin, most + margin)


def robust_scale(rows: np.ndarray, deviation: np.ndarray) -> Scale:
    """Median and interquartile range of `rows`, as of a normal distribution; limits are `REACH` of these away.

    Where half of the values are one number, it is the standard `deviation`.
    """
    lower, median, upper = np.quantile(rows, (0.25, 0.5, 0.75), axis=0).astype(np.float64)
    spread = (upper - lower) / NORMAL
    spread = np.where(spread > np.maximum(RESOLUTION * np.abs(median), TINY), spread, deviation)
    return Scale(median, spread, median - REACH * spread, median + REACH * spread)


@dataclass(frozen=True, eq=False)
class Columns:
    """Of every column, over `rows` rows; not finite where a value of the column is not.

    Shape:
        mean, squares: (dim,) or (layers, dim) float64; squares is the sum of squared distances from the mean
        least, most: likewise, the smallest and the largest value
        robust: from `robust_scale`, if that is to be the scale
    """

    rows: int
    mean: np.ndarray
    squares: np.ndarray
    least: np.ndarray
    most: np.ndarray
    robust: Scale | None = None

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation of the rows (not the estimate for a population), zero without rows."""
        return np.sqrt(self.squares / max(self.rows, 1))

    @property
    def finite(self) -> np.ndarray:
        """Boolean, which columns hold numbers alone."""
        return np.isfinite(self.squares)

    @property
    def constant(self) -> np.ndarray:
        """Boolean, which columns hold one number in all rows, as far as float32 can see."""
        return self.finite & (self.deviation <= np.maximum(RESOLUTION * np.abs(self.mean), TINY))

    @property
    def scale(self) -> Scale:
        """What models put the columns on one scale with."""
        return self.robust or plain_scale(self.mean, self.deviation, self.least, self.most)

    @property
    def farthest(self) -> np.ndarray:
        """How many deviations lie between the mean and the value that is farthest from it; 0 where that is unknown."""
        with np.errstate(invalid="ignore", over="ignore"):  # of values that are not finite
            away = np.maximum(self.most - self.mean, self.mean - self.least)
        found: np.ndarray = np.divide(away, self.deviation, out=np.zeros_like(away), where=self.finite & ~self.constant)
        return found

    @property
    def _two_valued(self) -> np.ndarray:
        """Boolean, which columns hold two numbers alone, such as 0 and 1: only those have the largest `squares` that
        their range and mean allow (Bhatia and Davis 2000)."""
        with np.errstate(invalid="ignore", over="ignore"):  # of values that are not finite
            largest = self.rows * (self.most - self.mean) * (self.mean - self.least)
            found: np.ndarray = self.squares >= largest * (1 - ROUNDING)
        return found

    def oddities(self) -> str:
        """In a line how many columns are constant, not finite or of a wildly different scale, and which; "" if none."""
        if not self.rows:
            return ""
        said = []
        if self.constant.any():
            said.append(f"{self.constant.sum()} constant ({_name(self.constant)})")
        if not self.finite.all():
            said.append(f"{(~self.finite).sum()} not finite ({_name(~self.finite)})")
        scale = np.where(self.finite & ~self.constant, self.deviation, np.nan)
        if np.isfinite(scale).any() and np.nanmax(scale) > WIDE * np.nanmin(scale):
            ends = [(scale == end, end) for end in (np.nanmin(scale), np.nanmax(scale))]
            low, high = (f"{end:.2g} (column {_name(where)})" for where, end in ends)
            said.append(f"standard deviations from {low} to {high}")
        outlying = (self.farthest > FAR) & (self.farthest**2 > HEAVY * self.rows) & ~self._two_valued
        if outlying.any() and not self.robust:
            farthest = self.farthest[outlying].max()
            said.append(
                f"{outlying.sum()} with outliers ({_name(outlying)}), up to {farthest:.0f} standard deviations "
                "away, which may hide the rest: model.standardise: robust may help where half of the values are not "
                "the same"
            )
        return f"of {self.mean.size} columns: {', '.join(said)}" if said else ""


def measure_columns(rows: np.ndarray) -> Columns:
    """Columns of `rows` (rows, dim) or (rows, layers, dim), which may be a memory map."""
    blocks = range(0, max(len(rows), 1), BLOCK)
    return reduce(join_columns, (_measure_block(rows[first : first + BLOCK]) for first in blocks))


def _measure_block(rows: np.ndarray) -> Columns:
    count = len(rows)
    with np.errstate(invalid="ignore", over="ignore"):  # of values that are not finite
        exact = rows.astype(np.float64)
        mean = exact.sum(axis=0) / max(count, 1)
        least, most = exact.min(axis=0, initial=np.inf), exact.max(axis=0, initial=-np.inf)
        exact -= mean
        np.square(exact, out=exact)
        return Columns(count, mean, exact.sum(axis=0), least, most)


def join_columns(one: Columns, other: Columns) -> Columns:
    """Columns of the rows of both."""
    if not one.rows or not other.rows:
        return one if one.rows else other
    rows = one.rows + other.rows
    with np.errstate(invalid="ignore", over="ignore"):
        apart = other.mean - one.mean
        mean = one.mean + apart * (other.rows / rows)
        squares = one.squares + other.squares + apart**2 * (one.rows * other.rows / rows)
        return Columns(rows, mean, squares, np.minimum(one.least, other.least), np.maximum(one.most, other.most))


def _name(which: np.ndarray) -> str:
    """The first columns that are marked, from 0; those of several layers as layer/column."""
    marked = np.argwhere(which)
    names = ["/".join(map(str, place)) for place in marked[:NAMED]]
    return ", ".join([*names, *(["..."] if len(marked) > NAMED else [])])
