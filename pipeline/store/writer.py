"""Writing feature files: joint files as a whole, and the layout of a part, whose slots are filled afterwards."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from pipeline.errors import ErcError, StoreError, reason_and_fix
from pipeline.settings import sync
from pipeline.store.identity import CorpusNote, Identity
from pipeline.store.reader import (
    MODALITIES,
    Dtype,
    Part,
    Utterances,
    _digest,
    _fingerprint,
    _open,
    kind_of,
    read_features,
)
from pipeline.store.seal import FORMAT, USER_BLOCK, VERSION, seal

log = logging.getLogger(__name__)

PIECE = 64 << 20  # bytes of a part that are copied at once
STRUCTURE = 1 << 14  # bytes that HDF5 needs beside the arrays, more than enough


@dataclass(frozen=True)
class PartLayout:
    """What a part will hold, known before anything is encoded."""

    ids: Sequence[str]
    rows: Sequence[int]  # of each utterance
    row_shape: tuple[int, ...]  # (dim,) or (layers, dim)
    dtype: Dtype
    identity: Identity
    plan: str  # hash of the inputs
    failed: Mapping[str, str] = field(default_factory=dict)  # id -> status of the utterances that could not be encoded
    names: Sequence[str] = ()  # of the utterances, for messages; without: their ids
    learned: Sequence[bool] = ()  # whether the encoder was fine-tuned on the label of each; without: on none

    def name(self, index: int) -> str:
        """How messages call an utterance."""
        return (self.names or self.ids)[index]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.row_shape)) * np.dtype(self.dtype).itemsize


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever goes wrong with the disk while `path` is written becomes one clear error."""
    try:
        yield
    except ErcError:
        raise
    except (OSError, RuntimeError) as error:  # HDF5 raises either where a file cannot grow
        reason, fix = reason_and_fix(error, "see to the disk, its room and its permissions, or name another place")
        raise StoreError(
            f"{path}: cannot be written ({reason}); {fix}, then run the command again: finished work is kept"
        ) from error


def try_size(path: Path, size: int) -> None:
    """Let `path`, which is made anew, grow to `size` bytes; where it cannot, HDF5 would tell so at length.

    Raises:
        OSError: the disk is too full, a limit is lower, or the folder cannot be written.
    """
    path.unlink(missing_ok=True)  # of a killed run, or a link or pipe of somebody else
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def write_joint(
    path: Path,
    utterances: Utterances,
    label_names: Sequence[str],
    parts: Mapping[str, Part],
    copy: bool,
    corpus: CorpusNote | None = None,
    overwrite: bool = True,
) -> bool:
    """Write the joint file: `parts` linked by their relative names, or copied in when `copy`.

    Returns:
        Whether it was written: not where the very same is there.

    Raises:
        StoreError: a part is of other utterances than the table, or lies where no relative link can name it; the disk
            does not take it; something else is there and `overwrite` is not given.
    """
    for name, part in parts.items():
        if not copy and path.exists() and part.path.exists() and path.samefile(part.path):
            raise StoreError(
                f"{path}: is the file that holds the {name}, which would be lost; name another one (--output)"
            )
        if part.ids != utterances.ids:
            raise StoreError(
                f"{part.path}: holds other utterances than the table ({len(part.ids)} against {len(utterances)}, or "
                f"another order); run pipeline-{name} again"
            )
    digest = _digest(utterances, label_names, {name: _fingerprint(part) for name, part in parts.items()})
    if path.exists() and _is_there(path, digest, copy, corpus, overwrite):
        return False
    partial = path.with_name(path.name + ".partial")
    try:
        with writing(path):
            try_size(partial, _joint_size(utterances, parts, copy))
            with h5py.File(partial, "w", userblock_size=USER_BLOCK) as file:
                file.attrs["digest"] = digest
                _write_table(file, utterances, label_names, corpus)
                values = _put_parts(file, parts, path, copy)
            seal(partial, values)
            partial.replace(path)
            sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return True


def _is_there(path: Path, digest: str, copy: bool, corpus: CorpusNote | None, overwrite: bool) -> bool:
    """Whether `path` is this joint file; a damaged copy is not told from other features.

    Raises:
        StoreError: something else is there, and `overwrite` is not given; but of links to parts that are no longer what
            they were nothing is left to lose.
    """
    try:
        found = read_features(path)
        parts = [part for part in (found.audio, found.text) if part]
        if found.digest == digest and all((part.path == path) == copy for part in parts) and found.corpus == corpus:
            return not (copy and any(map(is_damaged, parts)))
        same = found.digest == digest and found.corpus != corpus
        what = "these features with another corpus name or licence" if same else "other features or labels"
    except StoreError as error:
        what = f"something that cannot be used ({error})"
        overwrite |= _links(path)
    if overwrite:
        return False
    raise StoreError(
        f"{path}: holds {what}; name another file (--output) to keep it, or replace it with --overwrite "
        "(from Python: overwrite=True)"
    )


def is_damaged(part: Part) -> bool:
    """Whether rows are not what they were when they were written; all are read."""
    try:
        part.check()
    except StoreError as error:
        log.warning("%s", error)
        return True
    return False


def _links(path: Path) -> bool:
    """Whether a joint file is there that has no features of its own."""
    try:
        with _open(path) as file:
            links = [file.get(name, getlink=True) for name in MODALITIES if name in file.keys()]  # noqa: SIM118
            return bool(links) and all(isinstance(link, h5py.ExternalLink) for link in links)
    except StoreError:
        return False


def _write_table(
    file: h5py.File, utterances: Utterances, label_names: Sequence[str], corpus: CorpusNote | None
) -> None:
    """All of a joint file but its digest and parts."""
    _write_header(file, "joint")
    file.attrs["label_names"] = json.dumps(list(label_names), ensure_ascii=False)
    if corpus:
        file.attrs["corpus"] = json.dumps(corpus.to_json(), ensure_ascii=False)
    _write_utterances(file.create_group("utterances"), utterances)


def _put_parts(file: h5py.File, parts: Mapping[str, Part], path: Path, copy: bool) -> list[tuple[int, int]]:
    """Link the parts of the joint file at `path`, or copy them; returns (offset, bytes) of each copy's values."""
    values = []
    for name, part in parts.items():
        file.attrs[f"{name}_fingerprint"] = _fingerprint(part)
        if copy:
            values.append(_copy_part(file.create_group(name), part))
        else:
            if part.slots is not None:
                file.create_dataset(f"{name}_slots", data=part.slots.astype("<i8"), track_times=False)
            place = f"/{name}" if kind_of(part.path) == "joint" else "/"
            file[name] = h5py.ExternalLink(_relative_name(part.path, path), place)
    return values


def _joint_size(utterances: Utterances, parts: Mapping[str, Part], copy: bool) -> int:
    """Bytes of a joint file, rounded up."""
    columns = (utterances.ids, utterances.conversations, utterances.speakers, utterances.splits)
    table = sum(map(strings_size, columns)) + 36 * len(utterances)  # turn, label, score, two slots
    return STRUCTURE + table + sum(part_size(part.ids, part.size) for part in parts.values() if copy)


def part_size(ids: Sequence[str], values: int) -> int:
    """Bytes of a part with so many bytes of values, rounded up."""
    return STRUCTURE + strings_size(ids) + 17 * len(ids) + values  # offsets, checksums, learned


def strings_size(strings: Sequence[str]) -> int:
    """Bytes of strings that all take the room of the longest."""
    return len(strings) * max((len(string.encode()) for string in strings), default=0)


def lay_out_part(group: h5py.Group, layout: PartLayout) -> h5py.Dataset:
    """Create every data set of a part at its final size and return `values`, still to be filled.

    The structure of the file never changes afterwards, so writing into the slots cannot make it unreadable.
    """
    _write_header(group, "part")
    group.attrs["identity"] = layout.identity.to_json()
    group.attrs["plan"] = layout.plan
    offsets = np.concatenate([[0], np.cumsum(layout.rows)]).astype("<i8")
    group.create_dataset("offsets", data=offsets, track_times=False)
    group.create_dataset("checksums", data=np.zeros(len(layout.ids), "<u8"), track_times=False)
    _write_strings(group, "ids", layout.ids)
    if layout.failed:  # no attribute: HDF5 gives those 64 KB
        _write_strings(group, "failed", [json.dumps(dict(layout.failed), sort_keys=True, ensure_ascii=False)])
    if any(layout.learned):
        group.create_dataset("learned", data=np.array(layout.learned, "u1"), track_times=False)
    return _reserve(group, "values", (int(offsets[-1]), *layout.row_shape), layout.dtype)


def _reserve(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
    """A contiguous data set whose place in the file is fixed now and whose bytes are left alone."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)
    kind = h5py.h5t.py_create(np.dtype(dtype).newbyteorder("<"))
    h5py.h5d.create(group.id, name.encode(), kind, h5py.h5s.create_simple(shape), dcpl=creation)
    return group[name]


def _copy_part(group: h5py.Group, part: Part) -> tuple[int, int]:
    """Copy a part into `group`, in the order of its ids; returns (offset, bytes) of its values."""
    dtype: Dtype = "float16" if part.values.dtype.itemsize == 2 else "float32"
    rows, shape = np.diff(part.offsets), part.values.shape[1:]
    learned = [] if part.learned is None else part.learned.tolist()
    layout = PartLayout(part.ids, rows.tolist(), shape, dtype, part.identity, part.plan, part.failed, learned=learned)
    values = lay_out_part(group, layout)
    group["checksums"][...] = part.checksums
    pieces = (part.offsets[1:] * part.row_bytes - 1) // PIECE
    for piece in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(pieces)) + 1):
        if len(piece):
            part.check(piece)
            first, last = part.offsets[piece[0]], part.offsets[piece[-1] + 1]
            values[first:last] = np.concatenate([part.values[:0], *(part.rows(index) for index in piece)])
    return values.id.get_offset() or 0, part.size


def _write_header(group: h5py.Group, kind: Literal["part", "joint"]) -> None:
    group.attrs["format"] = FORMAT
    group.attrs["version"] = VERSION
    group.attrs["kind"] = kind


def _write_utterances(table: h5py.Group, utterances: Utterances) -> None:
    _write_strings(table, "id", utterances.ids)
    _write_strings(table, "conversation", utterances.conversations)
    _write_strings(table, "speaker", utterances.speakers)
    _write_strings(table, "split", utterances.splits)
    table.create_dataset("turn", data=np.asarray(utterances.turns, "<i8"), track_times=False)
    table.create_dataset("label", data=np.asarray(utterances.labels, "<i8"), track_times=False)
    table.create_dataset("score", data=np.asarray(utterances.scores, "<f4"), track_times=False)


def _write_strings(group: h5py.Group, name: str, strings: Sequence[str]) -> None:
    encoded = [string.encode("utf-8") for string in strings]
    width = max(map(len, encoded), default=1) or 1
    dtype = h5py.string_dtype("utf-8", width)
    group.create_dataset(name, data=np.array(encoded, dtype=dtype), track_times=False)


def _relative_name(target: Path, path: Path) -> str:
    try:
        return target.absolute().relative_to(path.parent.absolute()).as_posix()
    except ValueError:
        raise StoreError(
            f"{target}: lies outside the folder of {path}, where a relative link cannot name it; "
            "move it there, or join into one file (--copy)"
        ) from None
