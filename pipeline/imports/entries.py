"""What was found in the user's files, before it is matched with utterances: an entry for each, its names and labels as
pickles hold them, and one array of all utterances cut into entries:

(rows, dim) with lengths                         flat: the utterances lie one behind the other
(utterances, positions, dim) with lengths        padded: the first positions are real
(utterances, positions, dim) with a mask         padded: positions that are true are real
(utterances, dim)                                a vector an utterance
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from pipeline.datasets import Turn
from pipeline.errors import DataError, ErcError

LARGEST_NAME = 2**64  # of numbers that are names
LARGE, PACKED = 1 << 28, 200  # bytes that nobody minds, and how many times their bytes in the file others may take


@dataclass(frozen=True)
class Lazy:
    """An array that is read each time it is asked for."""

    read: Callable[[], Any]


def value_of(leaf: Any) -> Any:
    """What a leaf of a tree holds, read if it was not yet."""
    return leaf.read() if isinstance(leaf, Lazy) else leaf


@dataclass(frozen=True)
class Source:
    """One modality as its files tell it: an entry (an array, a list of numbers, or `Lazy`) for each utterance."""

    where: str  # as the user named it, for messages
    entries: list[Any]
    names: list[str] | None  # None: one entry for each row of the table, in its order
    ids: list[str] | None = None  # of utterances, where a source tells them beside other names
    whole: bool = False  # names are <conversation>/<turn>, and each conversation has all its turns
    turns: Callable[[], list[Turn]] | None = None  # one an entry, where it names conversations, splits and labels
    hint: str = ""  # what the user may have left out, where the entries do not fit the utterances
    beyond: set[int] = field(default_factory=set)  # entries with values beyond their length; grows as they are read

    def name(self, index: int) -> str:
        """What an entry is called in messages."""
        return f"number {index + 1}" if self.names is None else self.names[index]


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Whatever a library raises on a file that is not what it says becomes one clear error.

    Raises:
        DataError: anything but our own errors was raised inside.
    """
    try:
        yield
    except ErcError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{where}: cannot be read ({reason}); copy it anew, or convert it") from None


def shown(value: Any) -> str:
    """`value` in a message; Python writes no integer of more than 4,300 digits, and nothing that is nested deeply."""
    try:
        return f"{value!r:.60}"
    except (ValueError, RecursionError):
        return f"{type(value).__name__}(..)"


def refuse_bomb(where: str, size: int, stored: int) -> None:
    """Raise DataError where `size` bytes of next to nothing, `stored` in far fewer, would fill the memory.

    Features shrink to a half at best, what is padded with zeros to a tenth.
    """
    if size > LARGE and size > PACKED * stored:
        raise DataError(
            f"{where}: {size / 1e9:.1f} GB that take {stored / 1e6:.1f} MB in the file, so it is almost empty; "
            "save only the rows that hold something"
        )


def text_of(value: Any, where: str) -> str:
    """A name as text.

    Raises:
        DataError: it is neither a text nor a whole number.
    """
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, str):
        return str(value).encode("utf-8", "replace").decode("utf-8")
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not is_number or not abs(value) <= LARGEST_NAME or value != int(value):
        raise DataError(f"{where}: {shown(value)} is no name; expected a text or a whole number")
    return str(int(value))


def is_list(value: Any) -> bool:
    """Whether it has a first axis."""
    return isinstance(value, list | tuple) or len(getattr(value, "shape", ())) > 0


def texts_of(values: Iterable[Any], where: str) -> list[str]:
    """Several of them."""
    return [text_of(value, where) for value in values]


def place_of(value: Any) -> str | None:
    """The place of the only 1 in a row of zeros, which is how some pickles write speakers; None where it is none."""
    try:
        row = np.asarray(value, np.float64).reshape(-1)
    except (ValueError, TypeError, OverflowError):
        return None
    if len(row) < 2 or (row != 0).sum() != 1 or row.max() != 1:
        return None
    return str(int(row.argmax()))


def number_of(value: Any) -> float | None:
    """A single finite number; None where it is none."""
    try:
        number = np.asarray(value, np.float64).reshape(-1)
    except (ValueError, TypeError, OverflowError):
        return None
    return float(number[0]) if len(number) == 1 and np.isfinite(number[0]) else None


def label_of(value: Any, names: tuple[str, ...], where: str) -> str | None:
    """A label as text; numbers are looked up in `names` where there are any; None and -1 are no label.

    Raises:
        DataError: it is no name and no number of one.
    """
    if value is None:
        return None
    label = text_of(value, f"{where}: label").strip()
    if isinstance(value, str | bytes) or not names:
        return None if label in ("", "-1") else label
    if label == "-1":
        return None
    if not 0 <= int(label) < len(names):
        raise DataError(f"{where}: label {label}, but import.label_names has {len(names)} names (0 is the first)")
    return names[int(label)]


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
        raise DataError(f"{where}: {flat[~good][0]} (number {int(np.argmin(good)) + 1}) is no length; fix it")
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
