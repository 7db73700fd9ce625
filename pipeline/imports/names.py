"""Names, labels and other texts as pickles hold them: str, Python 2's bytes, numbers, numpy's scalars, one-hot rows."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from pipeline.errors import DataError


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
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise DataError(f"{where}: {value!r:.60} is no name; expected a text or a whole number")
    if not np.isfinite(value) or value != int(value):
        raise DataError(f"{where}: {value!r:.60} is no name; expected a text or a whole number")
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
