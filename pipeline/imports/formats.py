"""Files of arrays and vectors as trees: numpy's own (.npy, .npz), HDF5, and tables of utterance vectors (CSV, TSV).

Such tables hold one row an utterance, as openSMILE and spreadsheets write them.
Cells are separated by commas, semicolons or tabs, whichever the first line has most of, or by blanks if it has none.
A column names the utterance: one of `NAMES`, one that holds the ids of the table or its recordings, a first one
without a name that holds texts, as pandas writes an index, or the table's own conversation and turn together. Every
other one must hold numbers in all rows, or is left out: columns without a name, and those that are called like a field
of the table or like one of `NOT_FEATURES`. Where no column names the utterance, rows are in the order of the table, as
those of an array; then there may be no header, and a column that counts the rows in another order is refused. An empty
cell is a missing value: NaN.
"""

import csv
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from pipeline.errors import DataError
from pipeline.imports.entries import Lazy, reading, refuse_bomb
from pipeline.imports.unpickle import load
from pipeline.store import lies_elsewhere


def map_npy(path: Path) -> Any:
    """The array of a .npy file, memory-mapped; objects (a list of arrays, a dict) come through the safe unpickler."""
    with reading(str(path)):
        try:
            return np.lib.format.open_memmap(path, mode="r")
        except ValueError:  # objects, or nothing to map
            return read_npy(path)


def read_npy(path: Path) -> Any:
    """The same, read into memory."""
    with reading(str(path)), path.open("rb") as file:
        return _read_array(file, str(path))


def read_npz(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    """Name -> array of an .npz file, which stays open.

    Raises:
        DataError: a name is given twice, or a member is no array.
    """
    refuse_packed(path, archive)
    members = archive.namelist()
    for member, count in Counter(members).items():
        if count > 1 or not member.endswith(".npy"):
            what = "is given twice" if count > 1 else "is no array (.npy)"
            raise DataError(f"{path}: its member '{member}' {what}; save it with numpy.savez")
    return {member.removesuffix(".npy"): Lazy(lambda m=member: _member(path, archive, m)) for member in members}  # type: ignore[misc]


def refuse_packed(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise DataError where the members of an archive would fill the memory with next to nothing."""
    members = archive.infolist()
    refuse_bomb(str(path), sum(one.file_size for one in members), sum(one.compress_size for one in members))


def _member(path: Path, archive: zipfile.ZipFile, member: str) -> Any:
    where = f"{path}: '{member}'"
    with reading(where), archive.open(member) as file:
        return _read_array(file, where)  # type: ignore[arg-type]


def _read_array(file: BinaryIO, where: str) -> Any:
    try:
        return np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
    content = load(file, where)  # the header has been read
    return content.item() if isinstance(content, np.ndarray) and content.shape == () else content


DEEPEST = 16  # groups in groups


def tree_of(file: h5py.File, path: Path) -> dict[str, Any]:
    """The groups and data sets of an open file.

    Raises:
        DataError: it holds links (to other places or files), which are not followed, or the library cannot read it.
    """
    with reading(str(path)):
        return _branch(file, path, 0)


def _branch(group: h5py.Group, path: Path, depth: int) -> dict[str, Any]:
    if depth > DEEPEST:
        raise DataError(f"{path}: '{group.name}': groups lie more than {DEEPEST} deep; make it flat")
    branch: dict[str, Any] = {}
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise DataError(
                f"{path}: '{group.name.rstrip('/')}/{name}' is a link, which is not followed; copy the data"
            )
        child = group[name]
        if isinstance(child, h5py.Dataset) and lies_elsewhere(child):
            raise DataError(
                f"{path}: '{child.name}' takes its bytes from other files (external storage or a virtual data set), "
                "which is refused; copy the data into one file"
            )
        if isinstance(child, h5py.Dataset):
            size = (child.size or 0) * child.dtype.itemsize
            refuse_bomb(f"{path}: '{child.name}'", size, child.id.get_storage_size())
        branch[name] = _branch(child, path, depth + 1) if isinstance(child, h5py.Group) else child
    return branch


NAMES = ("id", "utterance", "utterance_id", "name", "file", "filename")  # columns that may name the utterance
# Columns that describe an utterance, whatever numbers they hold; labels among them would be learned from.
NOT_FEATURES = frozenset(
    (
        *("start", "end", "frametime", "start_time", "end_time", "starttime", "endtime"),  # a piece of a recording
        *("class", "label", "labels", "label_id", "emotion", "emotions", "emotion_id", "emotion_label"),
        *("sentiment", "sentiment_label", "target", "score"),
        *("fold", "split", "partition", "session", "speaker", "speaker_id"),
        *("conversation", "conversation_id", "dialogue", "dialogue_id", "video_id", "turn", "season", "episode"),
        *("text", "recognised", "audio", *NAMES),
    )
)
NAMELESS = re.compile(r"(unnamed_\d+(_\d+)?)?|index_level_\d+|index|level_0|sr_no")  # `_plain`: they count rows
WITHOUT_NAME = "(a column without a name)"
FEW_ROWS = 10  # so many may be in any order by chance


@dataclass(frozen=True)
class Known:
    """What the table of utterances says that a column of vectors may repeat."""

    columns: Mapping[str, str] = field(default_factory=dict)  # field -> the table's column
    names: Sequence[Sequence[str]] = ()  # ways to call the utterances, each in the order of the table


@dataclass(frozen=True)
class Vectors:
    """Vectors by the name of their utterance, or in the order of the table, and the columns that were left out."""

    rows: dict[str, np.ndarray] | np.ndarray  # (dim,) float32 each, or float64 where float32 cannot hold it
    left_out: list[str]
    named_by: str = ""  # the column that names the utterances, where its own name does not say so


def read_vectors(path: Path, naming: str | None, known: Known) -> Vectors:
    """The vectors of the table at `path`; column `naming` names the utterances (None: one that does so, if any).

    Raises:
        DataError: no such column, a row of another length, a cell that is no number, a name that is empty or repeated,
            or rows that were shuffled without a name.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            first_line = file.readline()
            delimiter = max(",;\t", key=first_line.count)
            file.seek(0)
            if naming is None and not first_line.count(delimiter) and len(first_line.split()) > 1:  # numpy.savetxt
                blanks = csv.reader((" ".join(line.split()) for line in file), delimiter=" ")
                return _read_cells(blanks, path, naming, known)
            return _read_cells(csv.reader(file, delimiter=delimiter, strict=True), path, naming, known)
    except csv.Error as error:
        raise DataError(f"{path}: {error}; look for a cell whose quote is not closed") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _read_cells(reader: Any, path: Path, naming: str | None, known: Known) -> Vectors:
    header = [name.strip().strip("'\"") for name in next(reader, [])]
    lines = ((reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells))
    place = [header.index(known.columns[one]) for one in ("conversation", "turn") if known.columns.get(one) in header]
    named = [index for index, name in enumerate(header) if _plain(name) in NAMES or name == known.columns.get("id")]
    if naming is not None or any(index not in place for index in named):
        return _read_named(header, lines, [_naming_column(header, path, naming, named)], path, known)
    if len(place) == 2:
        return _read_named(header, lines, place, path, known)
    return _read_unnamed(header, list(lines), path, known)


def _plain(name: str) -> str:
    """A column's name without capitals, blanks and signs."""
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")


def _features(header: Sequence[str], beside: Iterable[int], path: Path, known: Known) -> tuple[list[int], list[str]]:
    """The columns that are features, and what those are called that are none; `beside` are neither.

    Raises:
        DataError: there is no feature.
    """
    none = {
        index
        for index, name in enumerate(header)
        if _plain(name) in NOT_FEATURES or NAMELESS.fullmatch(_plain(name)) or name in known.columns.values()
    }
    kept = [index for index in range(len(header)) if index not in none and index not in beside]
    if not kept:
        raise DataError(f"{path}: no column of numbers (it has {', '.join(header)}); expected one column a dimension")
    return kept, [header[index] or WITHOUT_NAME for index in sorted(none.difference(beside))]


def _read_named(
    header: Sequence[str], lines: Iterable[tuple[int, list[str]]], naming: Sequence[int], path: Path, known: Known
) -> Vectors:
    """Rows by their name: the cells of the columns `naming`, with / between them."""
    kept, left_out = _features(header, naming, path, known)
    called = "/".join(header[index] for index in naming)
    rows: dict[str, np.ndarray] = {}
    for number, cells in lines:
        where = f"{path}, line {number}"
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} cells, expected {len(header)} as in the header; fix the row")
        name = "/".join(_name_in(cells[index]) for index in naming)
        if not all(_name_in(cells[index]) for index in naming) or name in rows:
            what = f"'{name}' is given twice" if name in rows else f"column '{called}' is empty"
            raise DataError(f"{where}: {what}; expected one row an utterance, by its name")
        rows[name] = _numbers(cells, kept, header, where)
    return Vectors(rows, left_out)


def _name_in(cell: str) -> str:
    return cell.strip().strip("'\"")


def _read_unnamed(header: list[str], lines: list[tuple[int, list[str]]], path: Path, known: Known) -> Vectors:
    """Rows of which no column's name says that it names them; the first line may hold numbers, too."""
    if all(map(_is_number, header)) and header != [str(place) for place in range(len(header))]:
        lines.insert(0, (1, header))
        header = [f"column {place}" for place in range(len(header))]
    for number, cells in lines:
        if len(cells) != len(header):
            where = f"{path}, line {number}"
            raise DataError(f"{where}: {len(cells)} cells, expected {len(header)} as in the first line; fix the row")
    counted = _find_key(header, [cells for _, cells in lines], path, known)
    if isinstance(counted, int):
        vectors = _read_named(header, lines, [counted], path, known)
        return replace(
            vectors, named_by=f"column '{header[counted]}'" if header[counted] else "the column without a name"
        )
    kept, left_out = _features(header, counted, path, known)
    if not lines:
        raise DataError(f"{path}: no column of numbers (it has {', '.join(header)}); expected one column a dimension")
    unnamed = f"name the column that names the utterances ({path}:COLUMN), or take"
    rows = [_numbers(cells, kept, header, f"{path}, line {number}", unnamed) for number, cells in lines]
    return Vectors(np.stack(rows), [*(header[index] or WITHOUT_NAME for index in counted), *left_out])


KEY, ORDER, SHUFFLED, MOST = "names the utterances", "counts the rows", "counts them in another order", "names most"


def _find_key(header: Sequence[str], rows: Sequence[Sequence[str]], path: Path, known: Known) -> int | list[int]:
    """The column that names the utterances by what it holds; without one, the columns that count the rows.

    Raises:
        DataError: a column names most of the utterances, but not all, or counts rows in another order.
    """
    found: dict[str, list[int]] = {KEY: [], ORDER: [], SHUFFLED: [], MOST: []}
    called = {name for names in known.names for name in names}
    for nameless, index in sorted((bool(NAMELESS.fullmatch(_plain(name))), at) for at, name in enumerate(header)):
        first = _name_in(rows[0][index]) if rows else ""
        if first and (nameless or first.isdecimal() or first in called):
            found.setdefault(_role([_name_in(cells[index]) for cells in rows], nameless, known), []).append(index)
    if found[KEY]:
        return found[KEY][0]
    for index in (*found[MOST], *found[SHUFFLED]):
        column = f"column '{header[index]}'" if header[index] else "the column without a name"
        such = ", ".join(_name_in(cells[index]) for cells in rows[:3])
        raise DataError(
            f"{path}: {column} holds {such} .., a number for each row that is not its place, so it is not certain "
            "which row belongs to which utterance; give the file a column id with the ids of the table, or take this "
            "column out if rows are in the order of the table"
        )
    return found[ORDER]


def _role(cells: Sequence[str], nameless: bool, known: Known) -> str:
    """What a column may be for; "" where it is neither a name nor a number of the row."""
    numbers = [int(cell) for cell in cells] if all(cell.isdecimal() and len(cell) < 20 for cell in cells) else []
    if len(set(cells)) < len(cells):
        return ORDER if nameless and numbers else ""
    grows = bool(numbers) and all(one < other for one, other in pairwise(numbers))
    most = False
    for names in known.names:
        common = len(set(cells).intersection(names))
        if common == len(cells) == len(names) or (numbers and _same_numbers(numbers, names)):
            return SHUFFLED if nameless and grows and list(names) != list(cells) else KEY
        most = most or 2 * common >= max(len(cells), len(names))
    if nameless:
        texts = not all(map(_is_number, cells))
        return KEY if texts else SHUFFLED if numbers and not grows else ORDER
    if not numbers or len(numbers) < FEW_ROWS:
        return ""
    if min(numbers) in (0, 1) and max(numbers) - min(numbers) == len(numbers) - 1:
        return ORDER if grows else SHUFFLED
    return MOST if most else ""


def _same_numbers(numbers: Sequence[int], names: Sequence[str]) -> bool:
    """Whether names are these numbers, perhaps with zeros in front."""
    return all(name.isdecimal() and len(name) < 20 for name in names) and set(numbers) == set(map(int, names))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _naming_column(header: list[str], path: Path, naming: str | None, named: Sequence[int]) -> int:
    """The column `naming`, or the first of those that are `named` so."""
    repeated = (
        next((name for name in header if header.count(name) > 1), None) if len(set(header)) < len(header) else None
    )
    if repeated is not None:
        raise DataError(f"{path}: column '{repeated}' is given twice in the header")
    if naming is None:
        return named[0]
    if naming not in header:
        raise DataError(
            f"{path}: no column '{naming}' names the utterances (it has {', '.join(header[:8])} ...); "
            f"name the column: {path}:COLUMN"
        )
    return header.index(naming)


def _numbers(
    cells: Sequence[str], kept: Sequence[int], header: Sequence[str], where: str, fix: str = "take"
) -> np.ndarray:
    numbers = np.empty(len(kept))
    for place, index in enumerate(kept):
        try:
            numbers[place] = float(cells[index]) if cells[index].strip() else np.nan
        except ValueError:
            if re.fullmatch(r"[-+]?\d+[,;]\d+", cells[index].strip()):
                raise DataError(
                    f"{where}: '{header[index]}' is {cells[index]!r:.40}, it seems with a decimal comma; "
                    "write numbers with points"
                ) from None
            raise DataError(
                f"{where}: '{header[index]}' is {cells[index]!r:.40}, not a number; {fix} the column out of the table"
            ) from None
    with np.errstate(over="ignore"):
        short = numbers.astype(np.float32)
    return short if (np.isfinite(short) == np.isfinite(numbers)).all() else numbers
