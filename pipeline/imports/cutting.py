"""One array of all utterances -> an entry for each.

(rows, dim) with lengths                         flat: the utterances lie one behind the other
(utterances, positions, dim) with lengths        padded: the first positions are real
(utterances, positions, dim) with a mask         padded: positions that are true are real
(utterances, dim)                                a vector an utterance
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pipeline.errors import DataError
from pipeline.imports.source import Lazy, value_of

Padding = Literal["refuse", "zeros", "keep"]
Holes = Literal["refuse", "close"]


def whole_numbers(value: Any, where: str) -> np.ndarray:
    """Lengths as (utterances,) int64.

    Raises:
        DataError: they are not a list of whole numbers that are not negative.
    """
    numbers = as_array(value, where)
    if numbers.dtype.kind in "US":
        try:
            numbers = numbers.astype(np.float64)
        except ValueError:
            raise DataError(f"{where}: expected lengths, found texts such as {str(numbers.flat[0])!r:.40}") from None
    flat = numbers.reshape(-1) if numbers.size == len(np.atleast_1d(numbers)) else numbers
    if flat.ndim != 1 or flat.dtype.kind not in "iuf":
        raise DataError(f"{where}: expected one length an utterance, found {numbers.dtype} of shape {numbers.shape}")
    good = (flat >= 0) & (flat < 2**40) & (flat == np.floor(flat)) if len(flat) else np.ones(0, bool)
    if not good.all():
        raise DataError(f"{where}: {flat[~good][0]} (number {int(np.argmin(good)) + 1}) is no length; mend it")
    return flat.astype(np.int64)


def as_array(value: Any, where: str) -> np.ndarray:
    """A leaf or a list as an array of numbers or texts.

    Raises:
        DataError: it is none: lists of several lengths, or other objects.
    """
    try:
        value = value_of(value)
        array = np.asarray(value[()] if hasattr(value, "id") and hasattr(value, "shape") else value)
        array = np.asarray(array.tolist()) if array.dtype == object else array
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"{where}: not an array of numbers ({' '.join(str(error).split())[:120]})") from None
    if array.dtype.kind not in "fiubUS":
        raise DataError(f"{where}: expected numbers, found {array.dtype}")
    return array


def flat(array: Any, lengths: np.ndarray, where: str) -> list[Lazy]:
    """Entries of an array (rows, dim) whose utterances lie one behind the other."""
    total = int(lengths.sum())
    if total != len(array):
        raise DataError(f"{where}: the lengths add up to {total} rows, but it has {len(array)}; they must be the same")
    ends = np.cumsum(lengths)
    return [
        Lazy(lambda start=start, end=end: array[start:end])  # type: ignore[misc]
        for start, end in zip((ends - lengths).tolist(), ends.tolist(), strict=True)
    ]


def vectors(array: Any) -> list[Lazy]:
    """Entries of an array (utterances, dim)."""
    return [Lazy(lambda index=index: array[index]) for index in range(len(array))]  # type: ignore[misc]


def by_lengths(array: Any, lengths: np.ndarray, where: str, beyond: set[int], first: int = 0) -> list[Lazy]:
    """Entries of a padded array; `beyond` collects those with values behind their length, counted from `first`."""
    _check_count(array, len(lengths), "lengths", where)
    positions = array.shape[1]
    if len(lengths) and lengths.max() > positions:
        index = int(np.argmax(lengths))
        raise DataError(f"{where}: number {index + 1} is {lengths[index]} long, but there are {positions} positions")

    def read(index: int) -> np.ndarray:
        padded, length = np.asarray(array[index]), int(lengths[index])
        if padded[length:].any():
            beyond.add(first + index)
        return padded[:length]

    return [Lazy(lambda index=index: read(index)) for index in range(len(array))]  # type: ignore[misc]


def by_mask(array: Any, mask: Any, where: str, holes: Holes) -> list[Lazy]:
    """Entries of a padded array; the mask (utterances, positions) is true, or 1, where a position is real.

    Raises:
        DataError: the mask is of another shape, holds other values, or has a hole between real positions.
    """
    real = as_array(mask, where)
    _check_count(array, len(np.atleast_1d(real)), "mask", where)
    if real.shape != tuple(array.shape[:2]):
        raise DataError(f"{where}: the mask is {real.shape}, expected {tuple(array.shape[:2])}")
    if real.dtype.kind not in "fiub" or not ((real == 0) | (real == 1)).all():
        raise DataError(f"{where}: the mask holds other values than 0 and 1 (1 is a real position)")
    real = real.astype(bool)
    gaps = np.diff(real, axis=1, prepend=False).sum(1) > 2  # true, false, true again
    if gaps.any() and holes == "refuse":
        raise DataError(
            f"{where}: {int(gaps.sum())} masks have holes, such as number {int(np.argmax(gaps)) + 1}; real positions "
            "must follow each other, or set import.holes: close to take the holes out"
        )
    return [Lazy(lambda index=index: np.asarray(array[index])[real[index]]) for index in range(len(array))]  # type: ignore[misc]


def by_zeros(array: Any) -> list[Lazy]:
    """Entries of a padded array whose positions of zeros, in front and behind, are padding."""

    def read(index: int) -> np.ndarray:
        padded = np.asarray(array[index])
        real = np.flatnonzero((padded != 0).reshape(len(padded), -1).any(1))
        return padded[real[0] : real[-1] + 1] if len(real) else padded[:0]

    return [Lazy(lambda index=index: read(index)) for index in range(len(array))]  # type: ignore[misc]


def padded(array: Any, padding: Padding, where: str, flags: Sequence[str]) -> list[Lazy]:
    """Entries of a padded array that nothing but `padding` describes.

    Raises:
        DataError: `padding` is "refuse".
    """
    if padding == "refuse":
        raise DataError(
            f"{where}: an array (utterances, positions, dim) of shape {tuple(array.shape)} is padded, and nothing says "
            f"where utterances end; give {' or '.join(flags)}, or set import.padding: zeros (positions of zeros at "
            "both ends are padding) or keep (all are real)"
        )
    return by_zeros(array) if padding == "zeros" else vectors(array)


def _check_count(array: Any, count: int, what: str, where: str) -> None:
    if count != len(array):
        raise DataError(f"{where}: {count} {what} for {len(array)} utterances; expected one for each")
