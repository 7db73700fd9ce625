"""Batches -> encoded rows, on this machine: decoding runs ahead of the encoder, fetching rows behind it.

While a batch is encoded, threads load the inputs of the next ones, and the rows of the one before are on their way from
the device. Where that is a processor, each of its cores may have a batch. Whoever takes the results writes them
meanwhile, in a thread of its own (`pipeline.extraction.stage`). Memory holds a few batches, however long the corpus is.

Where memory runs out, the batch is encoded again in twice as many pieces, and later ones are cut as finely. The rows of
a batch depend on the batch and on the number of its pieces alone, not on what failed before (`pipeline.encoders.cut`).
"""

import gc
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from textwrap import shorten
from threading import Lock
from typing import Any, Protocol

import numpy as np

from pipeline.encoders import Rows, cut
from pipeline.errors import ClipError, EncoderError
from pipeline.settings import SingleCoreThreads, Threads, count_cores, ran_out_of_memory

LOADERS = count_cores()  # threads that load inputs: FFmpeg and torch let go of the interpreter lock
COUNT_SECONDS = 2.0  # that an error waits for the inputs of its batch and the next ones, to count its like
AHEAD = 2  # batches that are loaded while one is encoded
QUOTED = 200  # characters of an error's first line that a message quotes

Start = Callable[[list[Any]], Rows]  # begins to encode inputs


@dataclass(frozen=True)
class Encoded:
    """What became of a batch."""

    batch: Sequence[int]  # as it was asked for
    indices: Sequence[int]  # of its utterances that were encoded
    rows: Sequence[np.ndarray]  # one array for each of them
    failures: Mapping[int, str] = field(default_factory=dict)  # status of those that could not be loaded
    pieces: int = 1  # into how many it was cut


class Engine(Protocol):
    """Something that encodes."""

    side_by_side: int  # how many batches at the same time on a processor, each by one core; 0: each by all cores

    def run(self, batches: Sequence[Sequence[int]], alone: bool = False) -> Iterator[Encoded]:
        """Encode all batches, in any order; `alone`: batch after batch, each by all cores."""

    def cut_into(self, pieces: int) -> None:
        """From the next batch on, cut into at least so many pieces; into more where memory runs out."""


class LocalEngine:
    """Encodes in this process; threads that `run` side by side take turns at the encoder.

    Args:
        load: the encoder's input for an utterance; called in threads.
        start: begins to encode inputs.
        name: of an utterance, for messages.
        mark: an utterance that cannot be loaded becomes a failure; else it ends the run.
        advice: what the user can do about one utterance that exceeds the memory.
        side_by_side: how many batches are encoded at the same time on a processor, each by one core, so that cores need
            not wait for each other at every operation and the numbers do not depend on how many there are; 0: batch
            after batch, each by all cores.

    Raises (from `run`):
        ClipError: an utterance cannot be loaded, unless `mark`.
        EncoderError: one utterance alone exceeds the memory.
    """

    def __init__(
        self,
        load: Callable[[int], Any],
        start: Start,
        name: Callable[[int], str],
        mark: bool = False,
        advice: str = "encode on the cpu (--device)",
        side_by_side: int = 0,
    ) -> None:
        self._load, self._start, self._name, self._mark = load, start, name, mark
        self._advice, self.side_by_side = advice, side_by_side
        self.pieces = 1
        self._sharing, self._runs = Lock(), 0
        self._threads: Threads | None = None
        self._in_work: weakref.WeakSet[Future[Any]] = weakref.WeakSet()  # of all who run now
        self._turn = Lock()
        self._raising = Lock()

    def run(self, batches: Sequence[Sequence[int]], alone: bool = False) -> Iterator[Encoded]:
        """Encode all batches, in their order; an error comes after all that was encoded before it."""
        if alone or not self.side_by_side:
            yield from self._run(self._loaded(batches, Threads(LOADERS)), self._start, 1)
            return
        with self._single_cores() as threads:
            loaded = self._loaded(batches, SingleCoreThreads(LOADERS))
            yield from self._run(loaded, partial(self._start_in, threads), self.side_by_side + 1)

    @contextmanager
    def _single_cores(self) -> Iterator[Threads]:
        """The threads of all who `run` now, however many those are."""
        with self._sharing:
            self._runs += 1
            if self._threads is None:
                self._threads = SingleCoreThreads(self.side_by_side)
            threads = self._threads
        try:
            yield threads
        finally:
            with self._sharing:
                self._runs -= 1
                if not self._runs:
                    self._threads = None
                    threads.shutdown(cancel_futures=True)

    def _start_in(self, threads: Threads, inputs: list[Any]) -> "_InThread":
        begun = _InThread(threads.submit(lambda: self._start(inputs)()))
        self._in_work.add(begun.future)
        return begun

    def _run(self, batches: "Iterator[_Loaded]", start: Start, waiting: int) -> Iterator[Encoded]:
        """As `run`, with so many batches begun and `waiting` while another one begins."""
        behind: deque[_Begun] = deque()
        try:
            for loaded in batches:
                behind.append(self._begin(loaded, start))
                while behind and (len(behind) > waiting or behind[0].is_done):
                    yield self._fetch_first(behind, start)
            while behind:
                yield self._fetch_first(behind, start)
        except Exception:
            while behind:
                with suppress(Exception):  # the first error counts
                    yield self._fetch_first(behind, start)
            raise

    def cut_into(self, pieces: int) -> None:
        """From the next batch on, cut into at least so many pieces."""
        with self._raising:
            self.pieces = max(self.pieces, pieces)

    def _loaded(self, batches: Sequence[Sequence[int]], pool: Threads) -> "Iterator[_Loaded]":
        # the threads are not waited for: `Work.close` ends what a hanging recording holds
        ahead: deque[tuple[Sequence[int], list[Future[Any]]]] = deque()
        following = iter(batches)
        try:
            while True:
                # enough for the next batches, and for every thread
                while len(ahead) <= AHEAD or sum(len(futures) for _, futures in ahead) < 2 * LOADERS:
                    batch = next(following, None)
                    if batch is None:
                        break
                    ahead.append((batch, [pool.submit(self._load, index) for index in batch]))
                if not ahead:
                    return
                yield self._gathered(*ahead.popleft(), [future for _, futures in ahead for future in futures])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _gathered(
        self, batch: Sequence[int], futures: Sequence[Future[Any]], later: Sequence[Future[Any]]
    ) -> "_Loaded":
        """The inputs of a batch; `later` are those of the next ones, for the count in an error."""
        loaded = _Loaded(batch)
        for index, future in zip(batch, futures, strict=True):
            try:
                loaded.inputs.append(future.result())
                loaded.indices.append(index)
            except ClipError as error:
                if not self._mark:
                    raise _counting(error, [*futures, *later]) from None
                loaded.failures[index] = error.status
        return loaded

    def _begin(self, loaded: "_Loaded", start: Start) -> "_Begun":
        """Begin to encode a batch; where memory runs out, begin again in more pieces."""
        with self._turn:
            while True:
                pieces = self.pieces
                begun = self._try_to_begin(loaded, pieces, start)
                if isinstance(begun, _Begun):
                    if loaded.failed_alone:
                        begun.settle()  # before others want memory, too
                    return begun
                self._make_room(loaded, pieces, begun)

    def _try_to_begin(self, loaded: "_Loaded", pieces: int, start: Start) -> "_Begun | _Shortage":
        """When this returns, nothing refers to the tensors of an attempt that failed: its traceback is gone, too."""
        begun = _Begun(loaded, pieces)
        for part in cut(len(loaded.inputs), pieces):
            try:
                begun.parts.append((part, start(loaded.inputs[part.start : part.stop])))
            except Exception as error:
                if not ran_out_of_memory(error):
                    raise
                return _Shortage(part, _quoted(error))
        return begun

    def _fetch_first(self, behind: "deque[_Begun]", start: Start) -> Encoded:
        """The rows of the batch that was begun first; where memory runs out, all in `behind` are begun again."""
        while True:
            loaded, pieces = behind[0].loaded, behind[0].pieces
            rows = _try_to_fetch(behind.popleft())
            if not isinstance(rows, _Shortage):
                return Encoded(loaded.batch, loaded.indices, rows, loaded.failures, pieces)
            again = [loaded, *(begun.loaded for begun in behind)]
            while behind:  # later batches too: they hold memory, and must not be cut less finely than this one
                behind.popleft().settle(drop=True)
            with self._turn:
                self._make_room(loaded, pieces, rows)
            behind.extend(self._begin(one, start) for one in again)

    def _make_room(self, loaded: "_Loaded", pieces: int, shortage: "_Shortage") -> None:
        """After memory ran out at a batch in `pieces` pieces: free what can be freed, and cut into more.

        An utterance that was alone is tried once more, since torch's cache is empty then: for its own tensors torch
        empties it anyway, but not for what CUDA's libraries and pinned memory need.
        """
        import torch

        wait(list(self._in_work))  # of others who run: what is tried again must not meet them
        gc.collect()  # frames of the error that refer to themselves
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch._C._host_emptyCache()  # pinned memory
        if len(shortage.part) > 1:
            self.cut_into(2 * pieces)
        elif loaded.failed_alone:
            name = self._name(loaded.indices[shortage.part.start])
            raise EncoderError(f"'{name}' alone exceeds the memory ({shortage.reason}); {self._advice}")
        else:
            loaded.failed_alone = True


@dataclass
class _Loaded:
    """A batch whose inputs are there."""

    batch: Sequence[int]
    indices: list[int] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    failed_alone: bool = False  # memory ran out at one of its utterances


@dataclass(frozen=True)
class _Begun:
    """A batch that the encoder works on."""

    loaded: _Loaded
    pieces: int
    parts: list[tuple[range, Rows]] = field(default_factory=list)  # positions in `loaded`, and how to get their rows

    @property
    def is_done(self) -> bool:
        """Whether threads have encoded it; unknown of a device, which is asked as late as possible."""
        return all(isinstance(rows, _InThread) and rows.future.done() for _, rows in self.parts)

    def settle(self, drop: bool = False) -> None:
        """Wait until no thread is at it; `drop`: what has not begun need not begin."""
        for _, rows in self.parts:
            if isinstance(rows, _InThread):
                rows.settle(drop)


@dataclass(frozen=True)
class _InThread:
    """Rows that a thread encodes."""

    future: Future[list[np.ndarray]]

    def __call__(self) -> list[np.ndarray]:
        return self.future.result()

    def settle(self, drop: bool) -> None:
        if not (drop and self.future.cancel()):
            wait([self.future])


@dataclass(frozen=True)
class _Shortage:
    """Memory ran out."""

    part: range  # positions in the batch that were encoded then
    reason: str


def _try_to_fetch(begun: _Begun) -> list[np.ndarray] | _Shortage:
    """The rows of a batch, in its order; errors of the device may come only now."""
    fetched: list[np.ndarray] = []
    for part, rows in begun.parts:
        try:
            fetched += rows()
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            return _Shortage(part, _quoted(error))
    return fetched


def _quoted(error: BaseException) -> str:
    """The first line of an error, shortened."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return shorten(line, QUOTED, placeholder=" ...")


def _counting(error: ClipError, futures: Sequence[Future[Any]]) -> ClipError:
    """The error with how many more utterances cannot be loaded, as far as is known, and how to go on without them."""
    done, _ = wait(futures, COUNT_SECONDS)
    errors = (future.exception() for future in done)  # those of a speaker need one another, so several have the same
    more = {each.utterance_id for each in errors if isinstance(each, ClipError)} - {error.utterance_id}
    others = f" (and {len(more)} more)" if more else ""
    message = f"{error}{others}; to go on without such utterances, set audio.on_error: mark"
    return ClipError(message, error.utterance_id, error.status)
