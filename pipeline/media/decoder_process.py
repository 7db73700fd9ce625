"""What a decoder process does, and what it says: the other end of `pipeline.media.decoders`.

It reads jobs from a connection and answers each with a `Delivered` for every stretch, and with `Word.PROGRESS` while a
recording has none to give, then with `Word.FINISHED`. Samples lie in memory that both processes share: it is written
again only when the other end has said `Word.TAKEN`.

It imports numpy and PyAV and nothing else of weight, because there is one for each core.
"""

import contextlib
import fcntl
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from pipeline.media.decoding import Channels, Stretch, decode_stretches

PROGRESS_SECONDS = 0.1  # between two words that a recording is being decoded, at least
FIRST_TO_GO = "500"  # added to its badness (-1000 to 1000) where the machine runs out of memory


class Word(Enum):
    """A message without content."""

    READY = "ready"
    PROGRESS = "progress"
    FINISHED = "finished"
    TAKEN = "taken"


@dataclass(frozen=True)
class Job:
    """What is to be decoded."""

    path: Path
    channels: Channels
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True)
class Delivered:
    """A recording whose samples lie in the shared memory, from its beginning."""

    stretch: Stretch
    samples: int  # float32
    sample_rate: int
    channels: int
    issues: list[str]


@dataclass(frozen=True)
class Unable:
    """Why this process cannot decode at all, or not hand over what it decoded."""

    reason: str


def main() -> None:
    """Serve until the other end is gone; arguments are the descriptors of the connection and of the memory."""
    _end_with_parent()
    _volunteer()
    connection, memory = Connection(int(sys.argv[1])), int(sys.argv[2])
    try:
        import av  # noqa: F401
    except ImportError as error:
        connection.send(Unable(str(error)))
        return
    with contextlib.suppress(EOFError, ConnectionError):
        connection.send(Word.READY)
        while True:
            _serve(connection, memory, connection.recv())


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent is gone, even amid a call that does not come back.

    Standard input is a pipe into which the parent never writes: its end raises SIGIO.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    with contextlib.suppress(OSError):  # a system without it: the process then ends with its next message
        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)


def _volunteer() -> None:
    """Where memory runs out, have the kernel end this process rather than the run."""
    with contextlib.suppress(OSError):  # not everywhere may a process say so
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_GO)


def _serve(connection: Connection, memory: int, job: Job) -> None:
    for stretch, recording in decode_stretches(job.path, job.channels, job.stretches, _reporter(connection)):
        try:
            _lay_down(memory, recording.samples)
        except OSError as error:  # a limit on the size of files is one on this memory, too
            connection.send(Unable(f"{recording.samples.nbytes / 1e6:.3f} MB of samples: {error.strerror}"))
            return
        count, rate = len(recording.samples), recording.sample_rate
        connection.send(Delivered(stretch, count, rate, recording.channels, recording.issues))
        connection.recv()  # Word.TAKEN
    connection.send(Word.FINISHED)


def _reporter(connection: Connection) -> Callable[[], None]:
    """What reports progress, not more often than is useful."""
    told = time.monotonic()

    def report() -> None:
        nonlocal told
        if time.monotonic() - told > PROGRESS_SECONDS:
            connection.send(Word.PROGRESS)
            told = time.monotonic()

    return report


def _lay_down(memory: int, samples: np.ndarray) -> None:
    os.ftruncate(memory, samples.nbytes)
    if samples.nbytes:  # an empty file cannot be mapped
        with mmap.mmap(memory, samples.nbytes) as shared:
            np.copyto(np.frombuffer(shared, np.float32), samples)
