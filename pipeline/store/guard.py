"""Whether rows are those that were written: each utterance is compared with its checksum before its first use.

Once a run: what was looked at is written down in memory that processes share which are forked later.
"""

import hashlib
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import StoreError
from pipeline.settings import Threads, count_cores
from pipeline.store.seal import remake

ABSURD = 1e15  # no encoder gives larger values; a row of their squares still has a sum in float32
TOGETHER = 4 << 20  # bytes; more are looked at by several threads, as hashing lets go of the interpreter lock
NAMED = 5  # utterances in a message
DAMAGED, INSANE = "do not match their checksum", f"hold values that are not finite or beyond {ABSURD:.0e}"
FAULTS = {  # what is wrong with an utterance: what to do
    DAMAGED: "the file was damaged after it was written; {remake}",
    INSANE: "no model learns from these; encode or import them again",
}
BITS = {2: ("i2", "u2", 0x7BFF), 4: ("i4", "u4", int(np.float32(ABSURD).view(np.uint32)))}  # itemsize -> largest


def checksum(rows: np.ndarray) -> int:
    """The first 64 bits of the SHA-1 of an utterance's bytes, never 0 (which marks a slot as not written).

    It guards against accidents; processors hash SHA-1 faster than anything else in the standard library of this size.
    """
    content = np.ascontiguousarray(rows).data.cast("B") if rows.size else b""
    digest = hashlib.sha1(content, usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "little") or 1


NOTHING = checksum(np.empty(0, np.uint8))  # of an utterance without rows


def is_sane(rows: np.ndarray) -> bool:
    """Whether no value of `rows`, float16 or float32, is NaN, infinite or beyond `ABSURD`; numbers order as bits do."""
    signed, unsigned, largest = BITS[rows.itemsize]
    bits = rows.view(unsigned)
    return not rows.size or max(rows.view(signed).max(), bits.max() & np.iinfo(signed).max) <= largest


@dataclass(frozen=True, eq=False)
class Guard:
    """The rows of a file in its order, and which utterances were looked at.

    Shape:
        values: (rows, dim) or (rows, layers, dim), a memory map
        offsets: (utterances + 1,) int64
        checksums: (utterances,) uint64
        seen: (utterances,) bool
    """

    path: Path
    values: np.ndarray
    offsets: np.ndarray
    checksums: np.ndarray
    seen: np.ndarray
    names: Sequence[str]  # of utterances, for messages
    slots: np.ndarray | None = None  # (names,) int64: the place of each of `names`; None: the order of the file

    @classmethod
    def of(
        cls, path: Path, values: np.ndarray, offsets: np.ndarray, checksums: np.ndarray, names: Sequence[str]
    ) -> "Guard":
        """Nothing is looked at yet, and without rows there is nothing to look at."""
        seen = np.frombuffer(mmap.mmap(-1, max(len(names), 1)), bool, len(names))
        seen |= np.diff(offsets) == 0
        return cls(path, values, offsets, checksums, seen, names)

    def places(self, starts: np.ndarray) -> np.ndarray:
        """Utterances (n,) that own the rows `starts` (n,) int64."""
        return np.searchsorted(self.offsets, starts, side="right") - 1

    def check(self, places: np.ndarray) -> None:
        """Look at those of the utterances `places` (n,) int64 that were not looked at.

        Raises:
            StoreError: some do not match their checksums, or hold values that no encoder gives: they are named.
        """
        due = np.unique(places[~self.seen[places]])
        if not len(due):
            return
        piece = np.cumsum(self.offsets[due + 1] - self.offsets[due]) * self.values[:1].nbytes // TOGETHER
        pieces = np.split(due, np.flatnonzero(np.diff(piece)) + 1)
        if len(pieces) == 1:
            found = self._look(due)
        else:
            with Threads(count_cores()) as threads:
                found = [one for faults in threads.map(self._look, pieces) for one in faults]
        for what, fix in FAULTS.items():
            if faulty := [place for place, fault in found if fault == what]:
                advice = fix.format(remake=remake(self.path))
                named = ", ".join(f"'{self._name(place)}'" for place in faulty[:NAMED])
                more = ", ..." if len(faulty) > NAMED else ""
                raise StoreError(
                    f"{self.path}: {len(faulty)} of {len(self.names)} utterances {what}: {named}{more}; {advice}"
                )

    def _look(self, places: np.ndarray) -> list[tuple[int, str]]:
        """Mark what is as it must be; returns the others, and what is wrong with each."""
        found = []
        for place in places.tolist():
            rows = self.values[self.offsets[place] : self.offsets[place + 1]]
            if checksum(rows) != self.checksums[place]:
                found.append((place, DAMAGED))
            elif not is_sane(rows):
                found.append((place, INSANE))
            else:
                self.seen[place] = True
        return found

    def _name(self, place: int) -> str:
        return self.names[place if self.slots is None else int(np.flatnonzero(self.slots == place)[0])]
