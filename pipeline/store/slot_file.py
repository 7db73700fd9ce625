"""A part file of fixed layout, whose slots are read and written in place, beneath HDF5.

Plain positioned writes never touch the structure of the file, so a killed process cannot make it unreadable. A slot
is an utterance's rows; its mark is their checksum, 0 as long as they are not written.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from pipeline.errors import StoreError, reason_and_fix
from pipeline.settings import Threads, count_cores
from pipeline.store.guard import checksum
from pipeline.store.reader import open_hdf5
from pipeline.store.seal import USER_BLOCK, read_begun, seal
from pipeline.store.writer import PartLayout, lay_out_part, part_size, try_size

BLOCK = 64 << 20  # bytes that are copied at once
HASHERS = 4  # threads, at most; hashing lets go of the interpreter lock
TOGETHER = 64  # slots that a thread checks in one go


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
            f"{path.with_name(path.name.removesuffix('.new'))}: no room for it ({reason}: it needs {needed / 1e9:.3f} "
            f"GB, {free / 1e9:.3f} GB are free); {fix}, {go_on}"
        ) from None


class SlotFile:
    """A laid-out part file by its open descriptor, which stays the caller's."""

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
