"""Files of arrays and vectors as trees: numpy's own (.npy, .npz), HDF5, and tables of utterance vectors (CSV, TSV).

Such tables hold one row an utterance, as openSMILE and spreadsheets write them.
Cells are separated by commas, semicolons or tabs, whichever the first line has most of, or by blanks if it has none.
Utterances are named by a column that is called like the table's ids or one of `NAMES`, by the table's own conversation
and turn together, or by a column of any name that holds the ids or recordings of the table. Otherwise rows are in the
order of the table, as those of an array, and there may be no header; columns that count the rows in another order are
refused. All other columns are features, unless they describe the utterance (`_describes`) or count the rows. An empty
cell is a missing value: NaN.
"""

import csv
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path, PurePosixPath
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
        *("id", "utterance", "utterance_id", "filename"),
    )
)
MAY_BE_FEATURES = frozenset(("text", "recognised", "audio", "name", "file"))  # words or modalities, if they are numbers
NAMELESS = re.compile(r"unnamed_\d+(_\d+)?|index_level_\d+")  # `_plain`: an index that pandas wrote or read
INDEX = ("index", "level_0", "sr_no", "#")  # `_plain`: an index, if it counts the rows
WITHOUT_NAME = "(a column without a name)"
FEW_ROWS = 10  # so many may be in any order by chance
BOOLEANS = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Known:
    """What the table of utterances says that a column of vectors may repeat."""

    columns: Mapping[str, str] = field(default_factory=dict)  # field -> the table's column
    names: Sequence[Sequence[str]] = ()  # ways to call the utterances, each in the order of the table

    @cached_property
    def called(self) -> frozenset[str]:
        """All of these names."""
        return frozenset(name for names in self.names for name in names)


@dataclass(frozen=True)
class Vectors:
    """Vectors by the name of their utterance, or in the order of the table, and what a user should know of columns."""

    rows: dict[str, np.ndarray] | np.ndarray  # (dim,) float32 each, or float64 where float32 cannot hold it
    notes: list[str]


@dataclass(frozen=True)
class _Sheet:
    """A file of cells, of which only those columns are held that may be something else than features."""

    path: Path
    header: list[str]
    columns: Mapping[int, list[str]]
    lines: Callable[[], Iterator[tuple[int, list[str]]]]  # the number and the cells of each line below the header

    def shown(self, index: int) -> str:
        return f"column '{self.header[index]}'" if self.header[index] else "the column without a name"


def read_vectors(path: Path, naming: str | None, known: Known) -> Vectors:
    """The vectors of the table at `path`; column `naming` names the utterances (None: one that does so, if any).

    The file is read twice: once to see what its columns are, once for the numbers.

    Raises:
        DataError: no such column, a row of another length, a cell that is no number, a name that is empty or repeated,
            or rows that were shuffled without a name.
    """
    try:
        sheet = _look_through(path, naming, known)
        naming_columns, counting, notes = _by_name(sheet, naming, known), list[int](), list[str]()
        if not naming_columns:
            naming_columns, counting = _by_content(sheet, known)
            notes += [f"{path}: utterances are named by {sheet.shown(index)}" for index in naming_columns]
            notes += _note_order(sheet) if not naming_columns else []
        kept, left_out = _features(sheet, naming_columns, counting, known)
        if left_out:
            notes.append(f"{path}: columns that are not features: {', '.join(left_out)} (rename those that are)")
        rows = _named_rows(sheet, naming_columns, kept, known) if naming_columns else _ordered_rows(sheet, kept)
        return Vectors(rows, notes)
    except csv.Error as error:
        raise DataError(f"{path}: {error}; look for a cell whose quote is not closed") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _lines(path: Path, naming: str | None) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of each line that is not empty.

    Raises:
        DataError: one has more or fewer cells than the first.
    """
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        first_line = file.readline()
        delimiter = max(",;\t", key=first_line.count)
        file.seek(0)
        if naming is None and not first_line.count(delimiter) and len(first_line.split()) > 1:  # numpy.savetxt
            reader = csv.reader((" ".join(line.split()) for line in file), delimiter=" ")
        else:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
        width = 0
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            width = width or len(cells)
            if len(cells) != width:
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, expected {width} as in the first line; fix "
                    "the row"
                )
            yield reader.line_num, cells


def _look_through(path: Path, naming: str | None, known: Known) -> _Sheet:
    """The header, and the columns that may name the utterances, count or describe them."""
    _, first = next(_lines(path, naming), (0, []))
    header = [_name_in(name) for name in first]
    counted = [str(place) for place in range(len(header))]  # as pandas calls columns without names
    below = 1 if naming is not None or header == counted or not all(map(_is_number, header)) else 0
    if not below:
        header = [f"column {place}" for place in range(len(header))]
    described = {*NAMES, *MAY_BE_FEATURES, *INDEX, *known.columns.values(), naming}
    watched = {at for at, name in enumerate(header) if _is_index(name) or {name, _plain(name)} & described}
    columns: dict[int, list[str]] = {index: [] for index in range(len(header))}
    seen: dict[int, set[str]] = {index: set() for index in columns}
    rows = 0
    for _, cells in islice(_lines(path, naming), below, None):
        rows += 1
        for index in [*columns]:
            cell = _name_in(cells[index])
            may_name = cell not in seen[index] and (cell in known.called or _whole(cell) is not None)
            if may_name or index in watched:
                columns[index].append(cell)
                seen[index].add(cell)
            else:
                del columns[index], seen[index]
    if not rows:
        raise DataError(f"{path}: holds no rows; expected one an utterance")
    return _Sheet(path, header, columns, lambda: islice(_lines(path, naming), below, None))


def _plain(name: str) -> str:
    """A column's name without capitals, blanks and signs; the name itself where it is nothing else."""
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_") or name


def _name_in(cell: str) -> str:
    return re.sub(r"""^(['"])(.*)\1$""", r"\2", cell.strip())


def _is_index(name: str) -> bool:
    """Whether a column has no name, but perhaps one that pandas gave it."""
    return not name or bool(NAMELESS.fullmatch(_plain(name)))


def _may_be_index(name: str) -> bool:
    return _is_index(name) or _plain(name) in INDEX


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # which Python takes between digits


def _whole(cell: str) -> int | None:
    """A whole number, perhaps as pandas writes it once a value is missing (3.0); None where it is none."""
    digits = re.fullmatch(r"(\d{1,19})(\.0+)?", cell, re.ASCII)
    return int(digits[1]) if digits else None


def _whole_numbers(cells: Sequence[str]) -> list[int]:
    """The cells as whole numbers; [] where one is none."""
    numbers = [number for cell in cells if (number := _whole(cell)) is not None]
    return numbers if len(numbers) == len(cells) else []


def _grows(numbers: Sequence[int]) -> bool:
    return all(one < other for one, other in pairwise(numbers))


def _counts(numbers: Sequence[int]) -> bool:
    """Whether these are the numbers of rows, from 0 or 1 without gaps, in any order."""
    return bool(numbers) and min(numbers) in (0, 1) and sorted(numbers) == [*range(min(numbers), max(numbers) + 1)]


def _counts_pieces(numbers: Sequence[int]) -> bool:
    """Whether these are the numbers of rows of which some were chosen, or of pieces that were put together."""
    restarts = all(other in (one + 1, numbers[0]) for one, other in pairwise(numbers))
    return bool(numbers) and (restarts or _grows(numbers) or _counts(numbers))


def _spelled(cells: Sequence[str], names: Sequence[str]) -> list[str]:
    """The cells as `names` spell them, where they are the same numbers: 7 or 7.0 for 007."""
    spellings: dict[int | None, str] = {_whole(name): name for name in names}
    if None in spellings or len(spellings) < len(names):
        return [*cells]
    own = {*names}
    return [cell if cell in own else spellings.get(_whole(cell), cell) for cell in cells]


def _by_name(sheet: _Sheet, naming: str | None, known: Known) -> list[int]:
    """The columns that name the utterances by what they are called: `naming`, one of `NAMES`, or the table's places.

    Raises:
        DataError: there is no column `naming`, or one is there twice.
    """
    header, path = sheet.header, sheet.path
    if naming is not None and naming not in header:
        raise DataError(
            f"{path}: no column '{naming}' names the utterances (it has {', '.join(header[:8])} ...); "
            f"name the column: {path}:COLUMN"
        )
    place = [header.index(known.columns[one]) for one in ("conversation", "turn") if known.columns.get(one) in header]
    ordered = [name for name in header if name == known.columns.get("id")]
    ordered += [name for name in header if _plain(name) == "id"] + [name for name in header if _plain(name) in NAMES]
    named = [index for index in map(header.index, ordered) if index not in place and _may_name(sheet, index, known)]
    if naming is not None:
        found = [header.index(naming)]
    elif named:
        found = [max(named, key=lambda index: _hits(sheet.columns[index], known))]  # the first of the best
    else:
        found = place if len(place) == 2 else []
    repeated = next((name for name, count in Counter(header).items() if count > 1 and name), None)
    if found and repeated is not None:
        raise DataError(f"{path}: column '{repeated}' is given twice in the header")
    return found


def _may_name(sheet: _Sheet, index: int, known: Known) -> bool:
    """Not where all rows have one name, such as openSMILE's 'unknown', or where the column seems to be a feature."""
    cells, name = sheet.columns[index], sheet.header[index]
    if _plain(name) == "id" or name == known.columns.get("id"):
        return True
    different = len({*cells})
    if _plain(name) in MAY_BE_FEATURES and all(map(_is_number, cells)):
        return different == len(cells) and bool(_whole_numbers(cells))
    return different > 1 or len(cells) == 1


def _hits(cells: Sequence[str], known: Known) -> int:
    """How many cells name an utterance of the table, perhaps with a folder and an ending."""
    return sum(cell in known.called or PurePosixPath(cell).stem in known.called for cell in cells)


KEY, ORDER, UNSURE = "names the utterances", "counts the rows", "may name the utterances, or count the rows"


def _by_content(sheet: _Sheet, known: Known) -> tuple[list[int], list[int]]:
    """The column that names the utterances by what it holds, or none; and columns that count the rows.

    Raises:
        DataError: a column may name them or not, or counts rows in another order.
    """
    roles = {
        index: _role(sheet, index, known)
        for index in sorted(sheet.columns, key=lambda at: _may_be_index(sheet.header[at]))
    }
    found = {role: [index for index in roles if roles[index] == role] for role in (KEY, ORDER, UNSURE)}
    if found[UNSURE] and not found[KEY]:
        index = found[UNSURE][0]
        name, such = sheet.header[index], ", ".join(sheet.columns[index][:3])
        called = ":" not in (name or ":") and name != f"column {index}"  # else PATH:COLUMN cannot say it
        raise DataError(
            f"{sheet.path}: {sheet.shown(index)} holds {such} .., a number for each row that is not its place, so it "
            f"is not certain which row belongs to which utterance; "
            + f"if these are the ids, name the column ({sheet.path}:{name}); if not, "
            * called
            + "give the file a column id with the ids of the table, or take this column out if rows are in the order "
            "of the table" + ", or put it behind another if it is a feature" * (called and index == 0)
        )
    return found[KEY][:1], found[ORDER]


def _role(sheet: _Sheet, index: int, known: Known) -> str:
    """What a column is for; "" where it neither names utterances nor counts rows."""
    cells, bare = sheet.columns[index], _may_be_index(sheet.header[index])
    if len({*cells}) < len(cells) or not all(cells):
        return ""
    numbers = _whole_numbers(cells)
    counts, grows, most = _counts(numbers), _grows(numbers), False
    for names in known.names:
        spelled = _spelled(cells, names)
        common = len({*spelled}.intersection(names))
        if common == len(cells) == len(names):  # a rank or an index may hold all ids, too
            sure = spelled == [*names] or not counts or (not grows if bare else index == 0)
            return KEY if sure else UNSURE
        most = most or 2 * common >= max(len(cells), len(names))
    if bare and not all(map(_is_number, cells)):
        return KEY
    if not numbers or not (bare or len(numbers) >= FEW_ROWS):
        return ""
    counts &= bare or all(map(str.isdecimal, cells))  # 3.0 is a rank rather than a row
    if counts and grows:
        return ORDER
    return UNSURE if (bare or index == 0) and (counts or (most and not (bare and grows))) else ""


def _note_order(sheet: _Sheet) -> list[str]:
    """What an index says against the order of the table, short of being certain."""
    numbers = {index: _whole_numbers(cells) for index, cells in sheet.columns.items()}
    return [
        f"{sheet.path}: {sheet.shown(index)} does not count the rows, so see that they are in the order of the table"
        for index in numbers
        if _is_index(sheet.header[index]) and any(sheet.columns[index]) and not _counts_pieces(numbers[index])
    ]


def _features(
    sheet: _Sheet, naming: Sequence[int], counting: Sequence[int], known: Known
) -> tuple[list[int], list[str]]:
    """The columns that are features, and what those are called that neither are nor name the utterances.

    Raises:
        DataError: there is no feature.
    """
    others = [index for index in range(len(sheet.header)) if index not in naming]
    none = [index for index in others if index in counting or _describes(sheet, index, known)]
    kept = [index for index in others if index not in none]
    if not kept:
        raise DataError(
            f"{sheet.path}: no column is left that is a feature: {', '.join(sheet.header)} "
            f"describe{'s' if len(sheet.header) == 1 else ''} the utterance; rename those that are features"
        )
    return kept, [sheet.header[index] or WITHOUT_NAME for index in none]


def _describes(sheet: _Sheet, index: int, known: Known) -> bool:
    """Whether a column describes the utterance, or is an index."""
    name, cells = sheet.header[index], sheet.columns.get(index, [])
    fields = {one for one, column in known.columns.items() if column == name}
    if _is_index(name) or _plain(name) in NOT_FEATURES or fields - MAY_BE_FEATURES:
        return True
    if fields or _plain(name) in MAY_BE_FEATURES:
        may_be_names = len({*cells}) == len(cells) and bool(_whole_numbers(cells))
        return may_be_names or not all(map(_is_number, cells))
    return _may_be_index(name) and _counts_pieces(_whole_numbers(cells))


def _named_rows(sheet: _Sheet, naming: Sequence[int], kept: Sequence[int], known: Known) -> dict[str, np.ndarray]:
    """Rows by their name: the cells of the columns `naming`, with / between them."""
    called = "/".join(sheet.header[index] for index in naming)
    columns = [sheet.columns[index] for index in naming]
    if len(columns) == 1:
        for names in known.names:
            columns = [_spelled(columns[0], names)]
    else:  # conversation and turn
        columns[1] = [cell if (turn := _whole(cell)) is None else str(turn) for cell in columns[1]]
    rows: dict[str, np.ndarray] = {}
    for (number, cells), parts in zip(sheet.lines(), zip(*columns, strict=True), strict=True):
        where, name = f"{sheet.path}, line {number}", "/".join(parts)
        if not all(parts) or name in rows:
            what = f"'{name}' is given twice" if name in rows else f"column '{called}' is empty"
            raise DataError(f"{where}: {what}; expected one row an utterance, by its name")
        rows[name] = _numbers(cells, kept, sheet.header, where)
    return rows


def _ordered_rows(sheet: _Sheet, kept: Sequence[int]) -> np.ndarray:
    """Rows in the order of the table, (rows, dim)."""
    unnamed = f"name the column that names the utterances ({sheet.path}:COLUMN), or take"
    lines = ((f"{sheet.path}, line {number}", cells) for number, cells in sheet.lines())
    return np.stack([_numbers(cells, kept, sheet.header, where, unnamed) for where, cells in lines])


def _numbers(
    cells: Sequence[str], kept: Sequence[int], header: Sequence[str], where: str, fix: str = "take"
) -> np.ndarray:
    numbers = np.empty(len(kept))
    for place, index in enumerate(kept):
        cell = cells[index].strip()
        try:
            numbers[place] = BOOLEANS.get(cell.lower(), cell) if cell else np.nan
        except ValueError:
            if re.fullmatch(r"[-+]?\d+[,;]\d+", cell):
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
