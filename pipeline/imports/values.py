"""Found entries -> checked rows, and a part on disk; an utterance at a time.

Two passes: the first learns lengths, dimensions and dtypes, counts what is not finite, and hashes the values as they
came; the second narrows them to the dtype that is stored. Neither holds more than an utterance.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.errors import DataError
from pipeline.imports.entries import as_array, reading
from pipeline.params import ImportParams
from pipeline.store import (
    ABSURD,
    IMPORTED,
    Columns,
    Identity,
    Part,
    checksum,
    is_sane,
    join_columns,
    measure_columns,
    writing,
)

Read = Callable[[int], np.ndarray]  # utterance -> (rows, dim); (0, 0) where there is nothing


@dataclass
class Survey:
    """What the first pass learns of one modality."""

    rows: list[int] = field(default_factory=list)  # of each utterance
    dim: int = 0
    dtypes: set[str] = field(default_factory=set)
    nan: int = 0  # values
    infinite: int = 0
    not_zero: int = 0
    small: int = 0  # of those, which float16 cannot tell from zero or from each other
    not_finite: list[int] = field(default_factory=list)  # utterances
    values: str = ""  # hash (hex) of all values, their shapes and dtypes


def as_rows(value: Any, where: str) -> np.ndarray:
    """One utterance's features as (rows, dim) of a little-endian number type.

    A vector is one row; None and what holds nothing are no rows; a leading axis of 1 (a batch of one) is taken off.

    Raises:
        DataError: it is no array of numbers, or of another shape.
    """
    if value is None:
        return np.empty((0, 0), np.float32)
    with reading(where):
        array = as_array(value, where)
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise DataError(f"{where}: expected numbers of at most 64 bits, found {array.dtype}")
    if array.ndim == 3 and len(array) == 1:
        array = array[0]
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2:
        raise DataError(f"{where}: expected (rows, dim) or a vector, found an array of shape {array.shape}")
    if not array.size:
        if len(array) and array.shape != (1, 0):
            raise DataError(f"{where}: {len(array)} rows without a dimension; expected (rows, dim)")
        array = array[:0]
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def survey(read: Read, ids: Sequence[str], modality: str) -> Survey:
    """Read every utterance once.

    Raises:
        DataError: dimensions differ (both utterances are named), or there is nothing in any utterance.
    """
    found, first = Survey(), ""
    digests = []  # of each utterance with features, sorted below: how turns are split and sorted changes no value
    for index, utterance in enumerate(tqdm(ids, desc=f"checking {modality}", unit="utterance", disable=None)):
        rows = read(index)
        found.rows.append(len(rows))
        if not len(rows):
            continue
        if found.dim and rows.shape[1] != found.dim:
            raise DataError(
                f"{modality}: '{utterance}' has {rows.shape[1]} dimensions, but '{first}' has {found.dim}; all "
                "utterances must have the same"
            )
        found.dim, first = rows.shape[1], first or utterance
        found.dtypes.add(rows.dtype.name)
        digest = hashlib.sha256(f"{rows.shape}{rows.dtype.str};".encode())
        digest.update(rows.data.cast("B"))
        digests.append(digest.digest())
        _count_not_finite(rows, index, found)
        _count_small(rows, found)
    if not found.dim:
        raise DataError(f"{modality}: no utterance has any features; leave --{modality} out, or fix its source")
    found.values = hashlib.sha256(b"".join(sorted(digests))).hexdigest()
    return found


SMALL = 2.0**-21  # below it float16, whose numbers lie 2 ** -24 apart there, is off by more than 1 in 16
FEW_SMALL = 0.01  # of the values that are not zero; so many are no concern


def _count_small(rows: np.ndarray, found: Survey) -> None:
    if rows.dtype.kind == "f" and rows.dtype.itemsize > 2:
        found.not_zero += int(np.count_nonzero(rows))
        found.small += int(((rows != 0) & (np.abs(rows) < SMALL)).sum())


def small(found: Survey, modality: str, params: ImportParams) -> str:
    """What is lost of values that are too small for float16, in a sentence; "" where that is next to nothing.

    Raises:
        DataError: it is most of them.
    """
    if params.dtype != "float16" or found.small <= FEW_SMALL * found.not_zero:
        return ""
    lost = (
        f"{modality}: {found.small} of {found.not_zero} values that are not zero are smaller than {SMALL:.1g}, which "
        "float16 rounds to zero or nearly so"
    )
    if 2 * found.small > found.not_zero:
        raise DataError(f"{lost}; set import.dtype: float32")
    return lost


def _count_not_finite(rows: np.ndarray, index: int, found: Survey) -> None:
    if rows.dtype.kind != "f" or np.isfinite(rows).all():
        return
    found.nan += int(np.isnan(rows).sum())
    found.infinite += int(np.isinf(rows).sum())
    found.not_finite.append(index)


def by_speaker(read: Read, speakers: Sequence[str | None], where: str) -> tuple[Read, int]:
    """`read` with each column less its mean over all rows of the speaker, divided by their deviation, as float32; and
    how many utterances are the only row of their speaker, of whom nothing but zeros is left.

    Rows that are not finite have no part in mean and deviation.

    Raises:
        DataError: an utterance with features has no speaker.
    """
    found: dict[str, Columns] = {}
    for index, speaker in enumerate(speakers):
        rows = read(index)
        if len(rows) and not speaker:
            raise DataError(
                f"{where}: import.normalise is speaker, but turn {index + 1} of {len(speakers)}, in the order of the "
                "output, has no speaker; name all speakers in the table, or set import.normalise=none"
            )
        if len(rows) and speaker:
            own = measure_columns(rows[np.isfinite(rows).all(axis=1)])
            found[speaker] = join_columns(found[speaker], own) if speaker in found else own

    def normalised(index: int) -> np.ndarray:
        rows = read(index)
        if not len(rows):
            return rows
        columns = found[str(speakers[index])]
        changed: np.ndarray = (rows - columns.mean) / np.where(columns.constant, np.inf, columns.deviation)
        return changed.astype(np.float32)

    return normalised, sum(columns.rows == 1 for columns in found.values())


ENOUGH, OF_A_LABEL, SCORES = 20, 5, 3  # utterances in all, and of each label, and different scores


class LabelCheck:
    """Finds dimensions of vectors that are what a model is to learn.

    That is the score, or whole numbers which are the same for the same label and others for every other label: the
    label's number, or zeros and a one.

    Args:
        labels, scores: of the utterances; None where there is none.
    """

    def __init__(self, labels: Sequence[str | None], scores: Sequence[float | None]) -> None:
        self._labels, self._scores = labels, scores
        self._of_label, self._of_score = Counter[str](), Counter[float]()  # vectors
        self._first: dict[str, np.ndarray] = {}  # the vector (dim,) that was seen first of each label
        self._alike, self._equal = np.array(True), np.array(True)  # (dim,) boolean: as the label's first, as the score
        self._dim = 0

    def see(self, index: int, rows: np.ndarray) -> np.ndarray:
        """Take the rows of an utterance into account, and return them."""
        label, score = self._labels[index], self._scores[index]
        if len(rows) != 1 or rows.shape[1] != (self._dim or rows.shape[1]):  # other dimensions are refused
            return rows
        self._dim, vector = rows.shape[1], rows[0].astype(np.float64)
        if label is not None:
            first = self._first.setdefault(label, vector)
            self._alike = self._alike & (vector == first) & (vector == np.floor(vector))
            self._of_label[label] += 1
        if score is not None:
            self._equal = self._equal & np.isclose(vector, score, rtol=1e-6, atol=0)
            self._of_score[score] += 1
        return rows

    def check(self, where: str) -> None:
        """Raise DataError if there was such a dimension."""
        often = [self._first[label] for label, count in self._of_label.items() if count >= OF_A_LABEL]
        if len(often) > 1 and self._of_label.total() >= ENOUGH:
            values = np.stack(often)
            found: list[int] = np.flatnonzero(self._alike & (values.max(0) > values.min(0))).tolist()
            if len(np.unique(values[:, found], axis=0)) == len(often):
                alone = [index for index in found if len(np.unique(values[:, index])) == len(often)]
                told = "the same whole number for the same label, and another for every other"
                self._refuse(alone[:1] or found, "label", f"{told}, in all {self._of_label.total()} utterances", where)
        if len(self._of_score) >= SCORES and self._of_score.total() >= ENOUGH and self._equal.any():
            told = f"equal to it in all {self._of_score.total()} utterances"
            self._refuse([int(np.argmax(self._equal))], "score", told, where)

    def _refuse(self, found: Sequence[int], what: str, told: str, where: str) -> None:
        named = ", ".join(str(index + 1) for index in found[:10]) + ", .." * (len(found) > 10)
        one, several = "dimension {} of {} looks like the {}: it is", "dimensions {} of {} together look like the {}:"
        which = (one if len(found) == 1 else several).format(named, self._dim, what)
        them = "it" if len(found) == 1 else "them"
        raise DataError(f"{where}: {which} {told} that have one; take {them} out of the features")


def check_finite(found: Survey, ids: Sequence[str], modality: str, params: ImportParams) -> None:
    """Refuse values that are not finite, unless they are to be zeroed.

    Raises:
        DataError: there are any; they are counted, and some utterances named.
    """
    if found.not_finite and params.not_finite == "refuse":
        raise DataError(
            f"{modality}: {not_finite(found, ids)}; fix them where they were made, or have zeros in their place with "
            "--set import.not_finite=zero"
        )


def not_finite(found: Survey, ids: Sequence[str]) -> str:
    """How many values are not finite, and where."""
    named = ", ".join(f"'{ids[index]}'" for index in found.not_finite[:3])
    more = ", ..." if len(found.not_finite) > 3 else ""
    return f"{found.nan} NaN and {found.infinite} infinite values in {len(found.not_finite)} utterances ({named}{more})"


def stored_dtype(found: Survey, params: ImportParams) -> np.dtype:
    """float16 where all is float16, else float32; or what `import.dtype` says."""
    name = ("float16" if found.dtypes == {"float16"} else "float32") if params.dtype == "auto" else params.dtype
    return np.dtype(name).newbyteorder("<")


def write_values(
    read: Read, ids: Sequence[str], modality: str, found: Survey, params: ImportParams, target: Path
) -> Part:
    """The part of one modality, its values in a nameless file beside `target` that goes away with their memory map.

    Raises:
        DataError: a value is larger than the stored dtype can hold, or an integer that it cannot hold exactly.
        StoreError: the disk is full.
    """
    dtype = stored_dtype(found, params)
    checksums = np.zeros(len(ids), np.uint64)
    offsets = np.concatenate([[0], np.cumsum(found.rows)]).astype(np.int64)
    with writing(target), tempfile.TemporaryFile(dir=target.parent) as file:
        for index, utterance in enumerate(tqdm(ids, desc=f"writing {modality}", unit="utterance", disable=None)):
            rows = _narrow(read(index), dtype, f"{modality}: '{utterance}'")
            checksums[index] = checksum(rows)
            file.write(np.ascontiguousarray(rows).data.cast("B") if rows.size else b"")
        file.flush()
        values = np.memmap(file, dtype, mode="r", shape=(int(offsets[-1]), found.dim))
    identity = Identity(
        {
            "model": IMPORTED,
            "modality": modality,
            "values": found.values,
            "dtype": dtype.name,
            "not_finite": params.not_finite,
            **({"normalise": params.normalise} if modality == "audio" and params.normalise != "none" else {}),
        }
    )
    return Part(values, offsets, checksums, list(ids), identity, "", target)


def _narrow(rows: np.ndarray, dtype: np.dtype, where: str) -> np.ndarray:
    """`rows` as they are stored; zeros where they are not finite (which only then has not been refused)."""
    if rows.dtype.kind == "f":
        finite = np.isfinite(rows)
        rows = rows if finite.all() else np.where(finite, rows, rows.dtype.type(0))
    with np.errstate(over="ignore"):
        stored = rows.astype(dtype)
    if not is_sane(stored):
        largest = rows.flat[int(np.argmax(np.abs(rows.astype(np.float64))))]
        limit, fix = (
            (np.finfo(dtype).max, "set import.dtype: float32")
            if dtype.itemsize == 2
            else (ABSURD, "scale the features")
        )
        raise DataError(f"{where} holds {largest}, more than {dtype.name} can hold of a feature ({limit:.6g}); {fix}")
    exact = 2 ** (np.finfo(dtype).nmant + 1)  # up to here, every integer has a floating-point number of its own
    if rows.dtype.kind != "f" and rows.size and not -exact <= int(rows.min()) <= int(rows.max()) <= exact:
        raise DataError(
            f"{where} holds integers beyond {exact}, which {dtype.name} cannot hold exactly; scale them, or save floats"
        )
    return stored
