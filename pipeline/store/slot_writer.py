"""Writing a part slot by slot, so that a killed process loses nothing but its current batch.

The file is laid out in full as `<name>.partial` beside the target before anything is encoded. Utterances are then
written into their slots, which are their rows, in any order. A slot's mark is their checksum, 0 as long as they are not
written; it is written only after its bytes are on disk. When all are done the file is verified, synced, sealed and
renamed to the target.

A later run finds the partial file, and goes on with it if it was made from the same plan by the same encoder.

Utterances that could not be encoded are left out of what becomes the target, and named there: it is copied to
`<name>.partial.marked`, since the layout of a file is never changed in place.
"""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import MappingProxyType

import h5py
import numpy as np

from pipeline.errors import DataError, StoreError, reason_and_fix
from pipeline.settings import Threads, count_cores, in_bytes, sync
from pipeline.store.guard import NOTHING, checksum, is_sane
from pipeline.store.identity import Identity
from pipeline.store.reader import open_hdf5
from pipeline.store.seal import USER_BLOCK, read_begun, seal
from pipeline.store.writer import PartLayout, lay_out_part, part_size, try_size, writing

BLOCK = 64 << 20  # bytes that are copied at once
HASHERS = 4  # threads, at most; hashing lets go of the interpreter lock
TOGETHER = 64  # slots that a thread checks in one go

log = logging.getLogger(__name__)


def write_at(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """All of `content`, however many writes the system makes of it."""
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """`size` bytes, fewer only where the file ends."""
    chunks = []
    while size:
        chunk = os.pread(descriptor, size, offset)
        if not chunk:
            break
        chunks.append(chunk)
        size, offset = size - len(chunk), offset + len(chunk)
    return b"".join(chunks)


class SlotFile:
    """A laid-out part file by its open descriptor, which stays the caller's.

    Plain positioned writes never touch the structure of the file, so a killed process cannot make it unreadable.
    """

    def __init__(self, descriptor: int, path: Path, layout: PartLayout) -> None:
        self.descriptor, self.path, self.layout = descriptor, path, layout
        with open_hdf5(path) as file:
            self._values_at = file["values"].id.get_offset() or 0
            self._marks_at = file["checksums"].id.get_offset() or 0
        rows = np.concatenate([[0], np.cumsum(layout.rows)]).astype(np.int64)
        self.edges = self._values_at + rows * layout.row_bytes  # (utterances + 1,) where slots begin and end
        self._values = self._values_at, int(self.edges[-1]) - self._values_at

    def write(self, index: int, array: np.ndarray) -> None:
        """The rows of one utterance, as they are stored."""
        content = array.data.cast("B") if array.size else memoryview(b"")
        write_at(self.descriptor, content, int(self.edges[index]))

    def mark(self, index: int, mark: int) -> None:
        """The checksum of an utterance whose rows are on disk."""
        write_at(self.descriptor, np.uint64(mark).astype("<u8").tobytes(), self._marks_at + 8 * index)

    def marks(self) -> np.ndarray:
        """(utterances,) checksums; 0 where there is none yet."""
        return np.frombuffer(read_at(self.descriptor, 8 * len(self.layout.ids), self._marks_at), "<u8")

    def intact(self) -> np.ndarray:
        """(utterances,) true where a slot has a mark and its bytes match it; reads every one of these once."""
        marks = self.marks()
        found = np.zeros(len(marks), bool)

        def check(indices: np.ndarray) -> None:
            for index in indices:
                start, end = map(int, self.edges[index : index + 2])
                content = np.frombuffer(read_at(self.descriptor, end - start, start), np.uint8)
                found[index] = checksum(content) == marks[index]

        marked = np.flatnonzero(marks)
        with Threads(min(HASHERS, count_cores())) as pool:
            list(pool.map(check, (marked[first : first + TOGETHER] for first in range(0, len(marked), TOGETHER))))
        return found

    def take_note(self, numbers: Mapping[str, int]) -> None:
        """Keep `numbers` where the seal will be, with a hash of all that does not change any more."""
        seal(self.path, [self._values, (self._marks_at, 8 * len(self.layout.ids))], numbers)

    def seal(self) -> None:
        """Have all bytes on disk, then the seal.

        Raises:
            StoreError: what was laid out is not what it was.
        """
        os.fsync(self.descriptor)
        if read_begun(self.path) is None:
            raise StoreError(f"{self.path}: damaged while it was written; check the disk, then run the command again")
        seal(self.path, [self._values])

    def copy_slots(self, source: "SlotFile", first: int, last: int) -> None:
        """Slots `first` .. `last` (exclusive) of `source`, which are of the same lengths here, with their marks."""
        position, end, shift = source.edges[first], source.edges[last], self.edges[first] - source.edges[first]
        while position < end:
            content = read_at(source.descriptor, int(min(BLOCK, end - position)), int(position))
            write_at(self.descriptor, content, int(position + shift))
            position += len(content)
        write_at(self.descriptor, source.marks()[first:last].tobytes(), self._marks_at + 8 * first)


def lay_out(path: Path, layout: PartLayout, go_on: str = "or name another file (--output)") -> None:
    """Make an empty part file at its final size, on disk when this returns.

    Raises:
        StoreError: the disk is too full for it, or the folder cannot be written; nothing is left.
    """
    needed = sum(layout.rows) * layout.row_bytes
    try:
        try_size(path, part_size(layout.ids, needed))
        with h5py.File(path, "w", userblock_size=USER_BLOCK) as file:
            lay_out_part(file, layout)
        with path.open("r+b") as opened:
            size = opened.seek(0, os.SEEK_END)
            os.posix_fallocate(opened.fileno(), 0, size)  # a full disk shows now, not after hours of encoding
            SlotFile(opened.fileno(), path, layout).take_note({})
    except (OSError, RuntimeError) as error:  # HDF5 raises either where the file cannot grow
        path.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free
        reason, fix = reason_and_fix(error, "see to the disk and its permissions")
        raise StoreError(
            f"{path.with_name(path.name.removesuffix('.new'))}: no room for it ({reason}: it needs "
            f"{in_bytes(needed)}, {in_bytes(free)} are free); {fix}, {go_on}"
        ) from None


class SlotWriter:
    """Fills the slots of `<target>.partial`; a context manager, inside one of `pipeline.settings.sole_writer`.

    `done` (utterances,) is true where a slot holds its final bytes, also those of an earlier run. `note` holds numbers
    that an interrupted run left for its successor; they lie where the seal will be, and are gone in the finished file.

    Raises:
        StoreError: the disk is too full for it (found out before anything is encoded), or the folder cannot be written.
    """

    def __init__(self, target: Path, layout: PartLayout) -> None:
        self.target = target
        self.partial = target.with_name(target.name + ".partial")
        self.layout = layout
        if target.is_dir():
            raise StoreError(f"{target}: is a folder; name a file (--output)")
        with writing(self.partial):
            target.parent.mkdir(parents=True, exist_ok=True)
            if not _same_work(self.partial, layout):
                fresh = self.partial.with_name(self.partial.name + ".new")  # under this name until it is whole
                fresh.touch()
                lay_out(fresh, layout)
                fresh.replace(self.partial)
                sync(target.parent)
            self._marked.unlink(missing_ok=True)  # of a run that was killed while it finished
            self._file = os.open(self.partial, os.O_RDWR)
        self._slots = SlotFile(self._file, self.partial, layout)
        self.done = self._slots.intact()
        self.note = read_begun(self.partial) or {}
        self._syncing = Threads(1)

    def __enter__(self) -> "SlotWriter":
        return self

    def __exit__(self, *raised: object) -> None:
        self._syncing.shutdown()
        os.close(self._file)

    def write(self, indices: Sequence[int], rows: Sequence[np.ndarray]) -> None:
        """Write each utterance's (rows, dim) array into its slot, then mark the slots as done.

        Raises:
            DataError: an array has another number of rows than was laid out, or a value that `dtype` cannot hold.
            StoreError: the disk does not take it; what was written before is kept.
        """
        arrays = [self._as_stored(index, array) for index, array in zip(indices, rows, strict=True)]
        with writing(self.partial):
            for index, array in zip(indices, arrays, strict=True):
                self._slots.write(index, array)
            synced = self._syncing.submit(os.fdatasync, self._file)
            marks = [checksum(array) for array in arrays]
            synced.result()  # the bytes are on disk before their marks
            for index, mark in zip(indices, marks, strict=True):
                self._slots.mark(index, mark)
                self.done[index] = True

    def take_note(self, **numbers: int) -> None:
        """Leave `numbers` for a run that goes on after this one was interrupted."""
        if numbers != self.note:
            with writing(self.partial):
                self._slots.take_note(numbers)
            self.note = numbers

    def finish(self, failures: Mapping[int, str] = MappingProxyType({})) -> None:
        """Verify every slot, sync, seal, and rename the partial file to the target.

        `failures` (index -> status) are utterances that could not be encoded: the target has no rows for them, and
        names them (`pipeline.store.Part.failed`).

        Raises:
            StoreError: slots are not written or damaged, or the disk does not take it; the partial file is kept.
        """
        with writing(self.partial):
            intact = self._slots.intact()
            intact[list(failures)] = True
            _refuse_broken(self.partial, self.layout, intact)
            if failures:
                self._finish_marked(failures)
                return
            self._slots.seal()
            self.partial.replace(self.target)
            sync(self.target.parent)

    def _finish_marked(self, failures: Mapping[int, str]) -> None:
        layout = replace(
            self.layout,
            rows=[0 if index in failures else rows for index, rows in enumerate(self.layout.rows)],
            failed={self.layout.ids[index]: status for index, status in failures.items()},
        )
        lay_out(self._marked, layout, "then run the command again: finished work is kept")
        descriptor = os.open(self._marked, os.O_RDWR)
        try:
            marked = SlotFile(descriptor, self._marked, layout)
            for first, last in _runs(len(layout.ids), failures):
                marked.copy_slots(self._slots, first, last)
            for index in failures:
                marked.mark(index, NOTHING)
            _refuse_broken(self._marked, layout, marked.intact())
            marked.seal()
        except BaseException:
            self._marked.unlink()
            raise
        finally:
            os.close(descriptor)
        self._marked.replace(self.target)
        sync(self.target.parent)  # the finished file has its name before the work goes
        self.partial.unlink()

    @property
    def _marked(self) -> Path:
        return self.partial.with_name(self.partial.name + ".marked")

    def _as_stored(self, index: int, array: np.ndarray) -> np.ndarray:
        utterance, expected = self.layout.name(index), (self.layout.rows[index], *self.layout.row_shape)
        if array.shape != expected:
            raise DataError(f"'{utterance}': encoded to shape {array.shape}, but {expected} was laid out for it")
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(array, dtype=np.dtype(self.layout.dtype).newbyteorder("<"))
        if not is_sane(stored):
            raise DataError(
                f"'{utterance}': its features hold values that {self.layout.dtype} cannot, or that are absurdly large; "
                "set dtype: float32 (and precision: float32) for this modality in params.yaml, or take another encoder"
            )
        return stored


def _runs(count: int, failures: Mapping[int, str]) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) of each run of utterances without a failure."""
    for failed, run in groupby(range(count), failures.__contains__):
        if not failed:
            indices = list(run)
            yield indices[0], indices[-1] + 1


def _refuse_broken(path: Path, layout: PartLayout, intact: np.ndarray) -> None:
    broken = np.flatnonzero(~intact)
    if broken.size:
        raise StoreError(
            f"{path}: {broken.size} utterances did not reach the disk intact, the first '{layout.name(broken[0])}'; "
            "check the disk, then run the command again to write them anew"
        )


def _same_work(partial: Path, layout: PartLayout) -> bool:
    """Whether `partial` is an interrupted run of the very same work."""
    if not partial.exists():
        return False
    if read_begun(partial) is None:
        log.warning("%s: an interrupted run left a damaged file; starting afresh", partial)
        return False
    with open_hdf5(partial) as file:
        same = (
            Identity.from_json(file.attrs["identity"]) == layout.identity
            and file.attrs["plan"] == layout.plan
            and file["values"].shape == (sum(layout.rows), *layout.row_shape)
            and file["values"].dtype == np.dtype(layout.dtype)
            and file["checksums"].shape == (len(layout.ids),)
        )
    if not same:
        log.warning("%s: an interrupted run with other input or another encoder; starting afresh", partial)
    return same
