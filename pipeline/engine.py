"""Batches -> encoded rows, on this machine: decoding runs ahead of the encoder, fetching rows behind it.

While a batch is encoded, threads load the inputs of the next ones, and the rows of the one before are on their way from
the device. Whoever takes the results writes them meanwhile, in a thread of its own (`pipeline.extract`). Memory holds a
few batches, however long the corpus is.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

import numpy as np

from pipeline.errors import ClipError, EncoderError
from pipeline.settings import Threads, count_cores

LOADERS = count_cores()  # threads that load inputs: FFmpeg and torch let go of the interpreter lock
COUNT_SECONDS = 2.0  # that an error waits for the inputs of its batch and the next ones, to count its like
AHEAD = 2  # batches that are loaded while one is encoded

Rows = Callable[[], list[np.ndarray]]  # waits for the device; one array an input


@dataclass(frozen=True)
class Encoded:
    """What became of a batch."""

    batch: Sequence[int]  # as it was asked for
    indices: Sequence[int]  # of its utterances that were encoded
    rows: Sequence[np.ndarray]  # one array for each of them
    failures: Mapping[int, str] = field(default_factory=dict)  # status of those that could not be loaded


class Engine(Protocol):
    """Something that encodes.

    Attributes:
        pieces: into how many pieces every batch is cut; more of them where memory ran out.
    """

    pieces: int

    def run(self, batches: Sequence[Sequence[int]]) -> Iterator[Encoded]:
        """Encode all batches, in any order."""

    def close(self) -> None:
        """Let go of processes, files and other machines."""


class LocalEngine:
    """Encodes in this process; threads that `run` side by side take turns at the encoder.

    Args:
        load: the encoder's input for an utterance; called in threads.
        start: begins to encode inputs.
        name: of an utterance, for messages.
        mark: an utterance that cannot be loaded becomes a failure; else it ends the run.
        close: lets go of what `load` holds.

    Raises (from `run`):
        ClipError: an utterance cannot be loaded, unless `mark`.
        EncoderError: one utterance alone exceeds the memory.
    """

    def __init__(
        self,
        load: Callable[[int], Any],
        start: Callable[[list[Any]], Rows],
        name: Callable[[int], str],
        mark: bool = False,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._load, self._start, self._name, self._mark = load, start, name, mark
        self.pieces = 1
        self.close = close
        self._turn = Lock()

    def run(self, batches: Sequence[Sequence[int]]) -> Iterator[Encoded]:
        """Encode all batches, in their order; an error comes after all that was encoded before it."""
        behind: deque[tuple[_Loaded, Rows]] = deque()
        try:
            for loaded in self._loaded(batches):
                with self._turn:
                    behind.append((loaded, self._encode(loaded)))
                if len(behind) > 1:
                    yield _encoded(*behind.popleft())
        except Exception:
            yield from (_encoded(*done) for done in behind)
            raise
        yield from (_encoded(*done) for done in behind)

    def _loaded(self, batches: Sequence[Sequence[int]]) -> "Iterator[_Loaded]":
        pool = Threads(LOADERS)  # not waited for: `close` ends what a hanging recording holds
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

    def _encode(self, loaded: "_Loaded") -> Rows:
        """Encode in `pieces` pieces; where memory runs out, in twice as many from then on."""
        parts = [part for part in np.array_split(range(len(loaded.inputs)), self.pieces) if len(part)]
        started = [self._encode_halving(loaded, part.tolist()) for part in parts]
        return lambda: [array for rows in started for array in rows()]

    def _encode_halving(self, loaded: "_Loaded", part: list[int]) -> Rows:
        import torch

        try:
            return self._start([loaded.inputs[position] for position in part])
        except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
            if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "not enough memory" not in str(error):
                raise
        if len(part) == 1:
            raise EncoderError(
                f"'{self._name(loaded.indices[part[0]])}' alone exceeds the memory; lower audio.window_seconds, or "
                "use --device cpu"
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.pieces = max(self.pieces, 2 * -(-len(loaded.inputs) // len(part)))
        halves = [self._encode_halving(loaded, half) for half in (part[: len(part) // 2], part[len(part) // 2 :])]
        return lambda: [array for rows in halves for array in rows()]


@dataclass(frozen=True)
class _Loaded:
    """A batch whose inputs are there."""

    batch: Sequence[int]
    indices: list[int] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)


def _counting(error: ClipError, futures: Sequence[Future[Any]]) -> ClipError:
    """The error with how many more utterances cannot be loaded, as far as is known, and how to go on without them."""
    done, _ = wait(futures, COUNT_SECONDS)
    more = sum(isinstance(future.exception(), ClipError) for future in done) - 1
    others = f" (and {more} more)" if more > 0 else ""
    message = f"{error}{others}; to go on without such utterances, set audio.on_error: mark"
    return ClipError(message, error.utterance_id, error.status)


def _encoded(loaded: _Loaded, rows: Rows) -> Encoded:
    return Encoded(loaded.batch, loaded.indices, rows(), loaded.failures)
