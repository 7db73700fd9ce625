"""Writing a part slot by slot, so that a killed process loses nothing but its current batch.

The file is laid out in full as `<name>.partial` beside the target before anything is encoded. Utterances are then
written into their slots in any order (`pipeline.store.slot_file`). A slot's mark is written only after its bytes are on
disk. When all are done the file is verified, synced, sealed and renamed to the target.

A later run finds the partial file, and goes on with it if it was made from the same plan by the same encoder.

Utterances that could not be encoded are left out of what becomes the target, and named there: it is copied to
`<name>.partial.marked`, since the layout of a file is never changed in place.
"""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import MappingProxyType

import numpy as np

from pipeline.errors import DataError, StoreError
from pipeline.settings import Threads, sync
from pipeline.store.guard import NOTHING, checksum, is_sane
from pipeline.store.identity import Identity
from pipeline.store.reader import open_hdf5
from pipeline.store.seal import read_begun
from pipeline.store.slot_file import SlotFile, lay_out
from pipeline.store.writer import PartLayout, writing

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


log = logging.getLogger(__name__)


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
        if target.is_dir():
            raise StoreError(f"{target}: is a folder; name a file (--output)")
        with writing(self.partial):
            target.parent.mkdir(parents=True, exist_ok=True)
            self._file = _hold(self.partial)
        try:
            if not _same_work(self.partial, layout):
                self._file = _begin(self._file, self.partial, layout)
            self._marked.unlink(missing_ok=True)  # of a run that was killed while it finished
            self._slots = SlotFile(self._file, self.partial, layout)
            self.done = self._slots.intact()
            self.note = read_begun(self.partial) or {}
            self._syncing = Threads(1)
        except BaseException:
            held = os.fstat(self._file)
            ours = self.partial.exists() and os.path.samestat(held, self.partial.stat())
            if ours and not held.st_size:  # nothing was there before, either
                self.partial.unlink()
            os.close(self._file)
            raise

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
    if not partial.stat().st_size:
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


def _hold(partial: Path) -> int:
    """Open `partial`, made empty where it is not there, for this process alone."""
    while True:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock(descriptor, partial)
            if partial.exists() and os.path.samestat(partial.stat(), os.fstat(descriptor)):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another process has finished it in between


def _begin(held: int, partial: Path, layout: PartLayout) -> int:
    """Lay the work out afresh in place of `partial`, which is held as `held`; returns what holds it now."""
    fresh = partial.with_name(partial.name + ".new")  # under this name until it is whole
    lay_out(fresh, layout)
    with writing(partial):
        descriptor = os.open(fresh, os.O_RDWR)
        try:
            lock(descriptor, partial)
            fresh.replace(partial)
            sync(partial.parent)
        except BaseException:
            os.close(descriptor)
            raise
    os.close(held)
    return descriptor


def lock(descriptor: int, partial: Path) -> None:
    """Hold a file or folder for this process; raises StoreError where another one does."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreError(f"{partial}: another process is writing it; wait for it, or end it") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning("%s: this disk knows no locks; let no other process write it meanwhile", partial)
