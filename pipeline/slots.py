"""Writing a part slot by slot, so that a killed process loses nothing but its current batch.

The file is laid out in full as `<name>.partial` beside the target before anything is encoded. Utterances are then
written into their slots in any order with plain positioned writes, which never touch the structure of the HDF5 file.
A slot's checksum is written only after its bytes are on disk; 0 means not done. When all are done the file is
verified, synced and renamed to the target.

A later run finds the partial file, and goes on with it if it was made from the same plan by the same encoder.
"""

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np

from pipeline.errors import DataError, StoreError
from pipeline.seal import USER_BLOCK, seal
from pipeline.store import Dtype, Identity, checksum, lay_out_part, sync

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartLayout:
    """What a part will hold, known before anything is encoded."""

    ids: Sequence[str]
    rows: Sequence[int]  # of each utterance
    row_shape: tuple[int, ...]  # (dim,) or (layers, dim)
    dtype: Dtype
    identity: Identity
    plan: str  # hash of the inputs


class SlotWriter:
    """Fills the slots of `<target>.partial`; a context manager.

    `done` (utterances,) is true where a slot holds its final bytes, also those of an earlier run. `note` holds numbers
    that an interrupted run left for its successor; they lie where the seal will be, and are gone in the finished file.

    Raises:
        StoreError: another process writes the same file, the disk is too full for it (found out before anything is
            encoded), or the folder cannot be written.
    """

    def __init__(self, target: Path, layout: PartLayout) -> None:
        self.target = target
        self.partial = target.with_name(target.name + ".partial")
        self.layout = layout
        target.parent.mkdir(parents=True, exist_ok=True)
        if not _same_work(self.partial, layout):
            _lay_out(self.partial, layout)
        self._file = os.open(self.partial, os.O_RDWR)
        try:
            lock(self._file, self.partial)
            with h5py.File(self.partial, "r", locking=False) as file:
                self._values_at = file["values"].id.get_offset() or 0
                self._checksums_at = file["checksums"].id.get_offset() or 0
            self._offsets = np.concatenate([[0], np.cumsum(layout.rows)]).astype(np.int64)
            self._row_bytes = int(np.prod(layout.row_shape)) * np.dtype(layout.dtype).itemsize
            self.done = self._intact_slots()
            self.note = _read_note(_read_at(self._file, USER_BLOCK, 0))
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> "SlotWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def write(self, indices: Sequence[int], rows: Sequence[np.ndarray]) -> None:
        """Write each utterance's (rows, dim) array into its slot, then mark the slots as done.

        Raises:
            DataError: an array has another number of rows than was laid out, or a value that `dtype` cannot hold.
        """
        arrays = [self._as_stored(index, array) for index, array in zip(indices, rows, strict=True)]
        for index, array in zip(indices, arrays, strict=True):
            _write_at(self._file, array.tobytes(), self._values_at + int(self._offsets[index]) * self._row_bytes)
        os.fdatasync(self._file)  # the bytes are on disk before their marks
        for index, array in zip(indices, arrays, strict=True):
            _write_at(self._file, np.uint64(checksum(array)).tobytes(), self._checksums_at + 8 * index)
            self.done[index] = True

    def take_note(self, **numbers: int) -> None:
        """Leave `numbers` for a run that goes on after this one was interrupted."""
        if numbers != self.note:
            _write_at(self._file, json.dumps(numbers).encode().ljust(USER_BLOCK, b"\0"), 0)
            self.note = numbers

    def finish(self) -> None:
        """Verify every slot, sync, and rename the partial file to the target."""
        broken = np.flatnonzero(~self._intact_slots())
        if broken.size:
            raise StoreError(
                f"{self.partial}: {broken.size} utterances did not reach the disk intact, the first "
                f"'{self.layout.ids[broken[0]]}'; check the disk, then run the command again to write them anew"
            )
        os.fsync(self._file)
        seal(self.partial, [(self._values_at, int(self._offsets[-1]) * self._row_bytes)])
        self.partial.replace(self.target)
        sync(self.target.parent)

    def _as_stored(self, index: int, array: np.ndarray) -> np.ndarray:
        utterance, expected = self.layout.ids[index], (self.layout.rows[index], *self.layout.row_shape)
        if array.shape != expected:
            raise DataError(f"'{utterance}': encoded to shape {array.shape}, but {expected} was laid out for it")
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(array, dtype=np.dtype(self.layout.dtype).newbyteorder("<"))
        if not np.isfinite(stored).all():
            raise DataError(
                f"'{utterance}': its features hold values that {self.layout.dtype} cannot; set dtype: float32 (and "
                "precision: float32) for this modality in params.yaml"
            )
        return stored

    def _intact_slots(self) -> np.ndarray:
        """(utterances,) true where a slot is marked done and its bytes match the mark."""
        marks = np.frombuffer(_read_at(self._file, 8 * len(self.layout.ids), self._checksums_at), "<u8")
        done = np.zeros(len(marks), bool)
        for index in np.flatnonzero(marks):
            start, end = self._offsets[index : index + 2] * self._row_bytes
            content = np.frombuffer(_read_at(self._file, int(end - start), self._values_at + int(start)), np.uint8)
            done[index] = checksum(content) == marks[index]
        return done


def _same_work(partial: Path, layout: PartLayout) -> bool:
    """Whether `partial` is an interrupted run of the very same work."""
    if not partial.exists():
        return False
    try:
        with h5py.File(partial, "r", locking=False) as file:
            identity = Identity.from_json(file.attrs["identity"])
            same = (
                identity == layout.identity
                and file.attrs["plan"] == layout.plan
                and file["values"].shape == (sum(layout.rows), *layout.row_shape)
                and file["values"].dtype == np.dtype(layout.dtype)
                and file["checksums"].shape == (len(layout.ids),)
            )
    except (OSError, KeyError, ValueError, TypeError, RuntimeError):
        log.warning("%s: an interrupted run left an unreadable file; starting afresh", partial)
        return False
    if not same:
        log.warning("%s: an interrupted run with other input or another encoder; starting afresh", partial)
    return same


def _lay_out(partial: Path, layout: PartLayout) -> None:
    """Make the partial file at its final size, under another name until it is whole."""
    fresh = partial.with_name(partial.name + ".new")
    try:
        with h5py.File(fresh, "w", userblock_size=USER_BLOCK) as file:
            lay_out_part(file, layout.ids, layout.rows, layout.row_shape, layout.dtype, layout.identity, layout.plan)
        with fresh.open("r+b") as opened:
            size = opened.seek(0, os.SEEK_END)
            os.posix_fallocate(opened.fileno(), 0, size)  # a full disk shows now, not after hours of encoding
            os.fsync(opened.fileno())
    except (OSError, RuntimeError) as error:  # HDF5 raises either where the file cannot grow
        fresh.unlink(missing_ok=True)
        needed = sum(layout.rows) * int(np.prod(layout.row_shape)) * np.dtype(layout.dtype).itemsize
        free = shutil.disk_usage(partial.parent).free
        raise StoreError(
            f"{partial.parent}: no room for {partial.name}, which needs {needed / 1e9:.3f} GB of the "
            f"{free / 1e9:.3f} GB that are free, or the folder cannot be written ({' '.join(str(error).split())}); "
            "make room, or name another file with --output"
        ) from None
    fresh.replace(partial)
    sync(partial.parent)


def lock(descriptor: int, partial: Path) -> None:
    """Hold a file or folder for this process; raises StoreError where another one does."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreError(f"{partial}: another process is writing it; wait for it, or end it") from None


def _read_note(block: bytes) -> dict[str, int]:
    """What `take_note` wrote; empty where nothing was."""
    try:
        note = json.loads(block.rstrip(b"\0"))
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def _write_at(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _read_at(descriptor: int, size: int, offset: int) -> bytes:
    chunks = []
    while size:
        chunk = os.pread(descriptor, size, offset)
        if not chunk:
            break
        chunks.append(chunk)
        size, offset = size - len(chunk), offset + len(chunk)
    return b"".join(chunks)
