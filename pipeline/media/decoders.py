"""Decoding in processes of its own: in parallel, bounded in time, and where no recording can end the run.

A decoder of damaged media may hang or crash, and in Python threads it hardly decodes two recordings at once. So each
recording is decoded in one of a few processes (`pipeline.media.decoder_process`) that are started when there is work
for them. What goes wrong there comes back as an issue, whose names `pipeline.manifest` explains:

    timed-out         the process said nothing for `limit_seconds`, neither of a stretch nor of progress: it is ended
    decoder-crashed   the process died, and so did a second, fresh one

Processes are started with a command, not by a fork: callers may hold threads and GPUs, and need no __main__ guard.
They end with this process, also when it is killed.

Why no pool of a library: pebble's (5.2) limits the time of a whole task, so that a long film would be given up amid
progress; a task has one result, so that the stretches before a crash would be lost, and it is pickled through a pipe
that all processes share; a process that hangs in native code outlives its killed parent; and processes are forks of the
caller or import its __main__ again.
"""

import contextlib
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.media.decoder_process import Delivered, Job, Unable, Word
from pipeline.media.decoding import Channels, Recording, Stretch, nothing
from pipeline.settings import count_cores

MODULE = "pipeline.media.decoder_process"
START_SECONDS = 120.0  # for the imports of a process, on a slow disk
END_SECONDS = 5.0  # for the kernel to end a process
ATTEMPTS = 2


class Decoders:
    """At most `workers` processes (by default one a core that this process may use); a context manager.

    Threads may share it; each job takes one process.
    """

    def __init__(self, limit_seconds: float = 60.0, workers: int | None = None) -> None:
        self.workers = workers or count_cores()
        self._limit_seconds = limit_seconds
        self._free = BoundedSemaphore(self.workers)
        self._lock = Lock()  # of what follows
        self.processes: set[_Process] = set()
        self._idle: list[_Process] = []
        self._closed = False

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes; what other threads still decode ends with an error."""
        with self._lock:
            self._closed = True
            for process in self.processes - set(self._idle):
                process.kill()  # the thread that waits for it lets go of the rest
            for process in self._idle:
                process.end()
            self.processes, self._idle = set(), []

    def decode_stretches(
        self, path: Path, channels: Channels, stretches: Sequence[Stretch]
    ) -> Iterator[tuple[Stretch, Recording]]:
        """As `pipeline.media.decoding.decode_stretches`, each stretch once; what is not delivered in time, or ever,
        comes last.

        Raises:
            DataError: no process can be started, PyAV is not installed, or there is no memory for samples.
        """
        waiting, issue = dict.fromkeys(stretches), "decoder-crashed"
        with self._free:
            for attempt in range(ATTEMPTS):
                try:
                    with self._process(fresh=attempt > 0) as process:
                        for stretch, recording in process.decode(path, channels, list(waiting), self._limit_seconds):
                            del waiting[stretch]
                            yield stretch, recording
                    return
                except _DiedError:
                    continue
                except _SilentError:
                    issue = "timed-out"
                    break
            yield from ((stretch, nothing(issue)) for stretch in waiting)

    @contextmanager
    def _process(self, fresh: bool) -> "Iterator[_Process]":
        """A process that waits for a job; one that does not come to the end of it is ended."""
        process = self._take(fresh)
        finished = False
        try:
            yield process
            finished = True
        finally:
            with self._lock:
                kept = finished and not self._closed
                if kept:
                    self._idle.append(process)
            if not kept:
                self._drop(process)

    def _take(self, fresh: bool) -> "_Process":
        while not fresh and (idle := self._pop_idle()):
            if idle.is_alive():
                return idle
            self._drop(idle)
        for _ in range(ATTEMPTS):
            process = self._start()
            ready = False
            try:
                process.wait_until_ready()
                ready = True
                return process
            except (_DiedError, _SilentError):
                continue
            finally:
                if not ready:
                    self._drop(process)
        raise DataError(
            f"no decoder process comes to life ({MODULE} in {sys.executable}, exit status {process.exit_status}); see "
            "what it says above, and whether memory is left"
        )

    def _start(self) -> "_Process":
        with self._lock:
            if self._closed:
                raise RuntimeError("these decoders are closed")
            process = _Process()
            self.processes.add(process)
            return process

    def _pop_idle(self) -> "_Process | None":
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _drop(self, process: "_Process") -> None:
        with self._lock:
            self.processes.discard(process)
        process.end()


class _DiedError(Exception):
    """The process is gone."""


class _SilentError(Exception):
    """The process says nothing."""


class _Process:
    """One decoder process, as its parent sees it."""

    def __init__(self) -> None:
        self.memory = os.memfd_create("decoded")  # not /dev/shm, of which containers have 64 MB
        self._connection, theirs = Pipe()
        handed = (theirs.fileno(), self.memory)
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        try:
            self.popen = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from {MODULE} import main; main()", *map(str, handed)],
                stdin=subprocess.PIPE,  # ends with this process, and so ends that one
                stdout=subprocess.DEVNULL,
                pass_fds=handed,
                process_group=0,  # Ctrl-C in the terminal is for this process alone
                # without the threads, one a core, that numpy would start and nothing would use
                env=os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError as error:
            self._connection.close()
            os.close(self.memory)
            raise DataError(f"no decoder process can be started: {sys.executable}: {error.strerror}") from None
        finally:
            theirs.close()

    def wait_until_ready(self) -> None:
        """Raises DataError where it can never decode."""
        message = self._receive(START_SECONDS)
        if isinstance(message, Unable):
            raise DataError(f"decoding recordings needs PyAV ({message.reason}); run pip install av")

    def decode(
        self, path: Path, channels: Channels, stretches: Sequence[Stretch], limit_seconds: float
    ) -> Iterator[tuple[Stretch, Recording]]:
        self._send(Job(path, channels, tuple(stretches)))
        while (message := self._receive(limit_seconds)) is not Word.FINISHED:
            if isinstance(message, Unable):
                raise DataError(
                    f"{path}: decoded, it cannot be taken over ({message.reason}); raise the limit on the size of "
                    "files (ulimit -f), or see whether memory is left"
                )
            if isinstance(message, Delivered):
                samples = self._take(message.samples)
                self._send(Word.TAKEN)  # it goes on while the caller works
                yield message.stretch, Recording(samples, message.sample_rate, message.channels, message.issues)

    def is_alive(self) -> bool:
        return self.popen.poll() is None

    @property
    def exit_status(self) -> int | None:
        return self.popen.returncode

    def kill(self) -> None:
        self.popen.kill()

    def end(self) -> None:
        """End it and let go of all that it holds."""
        self.popen.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in the kernel, and ends when that lets it
            self.popen.wait(END_SECONDS)
        if self.popen.stdin:
            self.popen.stdin.close()
        self._connection.close()
        os.close(self.memory)

    def _send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:
            raise _DiedError from None

    def _receive(self, seconds: float) -> Any:
        try:
            if not self._connection.poll(seconds):
                raise _SilentError
            return self._connection.recv()
        except (EOFError, OSError):
            raise _DiedError from None

    def _take(self, count: int) -> np.ndarray:
        """(count,) float32 out of the shared memory, which is then given back."""
        if not count:
            return np.empty(0, np.float32)
        with mmap.mmap(self.memory, 4 * count, access=mmap.ACCESS_READ) as shared:
            samples = np.frombuffer(shared, np.float32).copy()
        os.ftruncate(self.memory, 0)
        return samples
