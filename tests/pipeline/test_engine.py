"""The local engine: order, memory that runs out, utterances that cannot be loaded, work that stays bounded."""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.engine import AHEAD, LOADERS, LocalEngine
from pipeline.errors import ClipError, EncoderError

Rows = Callable[[], list[np.ndarray]]


def identity(inputs: list[int]) -> Rows:
    return lambda: [np.full((1, 1), value) for value in inputs]


def engine(start: Callable[[list[int]], Rows] = identity, load: Callable[[int], Any] = int, **options: Any) -> Any:
    return LocalEngine(load, start, "film/{}".format, **options)


def values(results: Any) -> list[int]:
    return [int(rows[0, 0]) for encoded in results for rows in encoded.rows]


def test_every_batch_comes_back_in_order() -> None:
    batches = [[5, 3], [1], [9, 8, 7]]
    results = list(engine().run(batches))
    assert [list(encoded.batch) for encoded in results] == batches == [list(encoded.indices) for encoded in results]
    assert values(results) == [5, 3, 1, 9, 8, 7]


def test_no_batches_are_no_work() -> None:
    assert list(engine().run([])) == []


def test_out_of_memory_halves_the_batch_and_all_that_follow() -> None:
    sizes = []

    def start(inputs: list[int]) -> Rows:
        sizes.append(len(inputs))
        if len(inputs) > 2:
            raise torch.OutOfMemoryError("no room")
        return identity(inputs)

    tight = engine(start)
    assert values(tight.run([list(range(8)), list(range(8, 16))])) == list(range(16))
    assert sizes == [8, 4, 2, 2, 4, 2, 2, 2, 2, 2, 2]  # the second batch is cut from its beginning
    assert tight.pieces == 4


def test_pieces_of_an_earlier_run_are_taken_over() -> None:
    sizes = []

    def start(inputs: list[int]) -> Rows:
        sizes.append(len(inputs))
        return identity(inputs)

    resumed = engine(start)
    resumed.pieces = 4
    assert values(resumed.run([list(range(6))])) == list(range(6))
    assert sizes == [2, 2, 1, 1]


def test_one_utterance_that_exceeds_the_memory_is_named() -> None:
    def start(inputs: list[int]) -> Rows:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")

    with pytest.raises(EncoderError, match=r"'film/3' alone exceeds the memory; lower audio\.window_seconds"):
        list(engine(start).run([[3, 4]]))


def test_other_errors_are_not_taken_for_memory() -> None:
    def start(inputs: list[int]) -> Rows:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        list(engine(start).run([[1, 2]]))


def vanished(index: int) -> int:
    if index == 2:
        raise ClipError("'film/2': gone", "film/2", "missing-file")
    return index


def test_an_utterance_that_cannot_be_loaded_ends_the_run() -> None:
    with pytest.raises(ClipError, match="film/2"):
        list(engine(load=vanished).run([[1, 2, 3]]))


def test_the_error_counts_its_like_and_says_how_to_go_on() -> None:
    def gone(index: int) -> int:
        raise ClipError(f"'film/{index}': gone", f"film/{index}", "missing-file")

    with pytest.raises(ClipError) as told:
        list(engine(load=gone).run([[1, 2], [3]]))
    assert str(told.value) == (
        "'film/1': gone (and 2 more); to go on without such utterances, set audio.on_error: mark"
    )
    assert (told.value.utterance_id, told.value.status) == ("film/1", "missing-file")


def test_a_recording_that_hangs_does_not_hold_an_error_back() -> None:
    end = threading.Event()

    def load(index: int) -> int:
        if index:
            end.wait(60)
        raise ClipError("gone", "film/0", "missing-file")

    begin = time.monotonic()
    with pytest.raises(ClipError, match="gone; to go on"):
        list(engine(load=load).run([[0, 1]]))
    assert time.monotonic() - begin < 30
    end.set()


def test_what_was_encoded_before_an_error_is_handed_over() -> None:
    results = engine(load=vanished).run([[0], [1], [2]])
    assert [values([next(results)]), values([next(results)])] == [[0], [1]]
    with pytest.raises(ClipError):
        next(results)


def test_marked_it_is_a_failure_and_the_others_are_encoded() -> None:
    (encoded,) = engine(load=vanished, mark=True).run([[1, 2, 3]])
    assert (encoded.indices, encoded.failures) == ([1, 3], {2: "missing-file"})
    assert values([encoded]) == [1, 3]


def test_a_batch_of_failures_alone_is_not_encoded() -> None:
    def start(inputs: list[int]) -> Rows:
        raise AssertionError("nothing to encode")

    (encoded,) = engine(start, load=vanished, mark=True).run([[2]])
    assert (list(encoded.batch), encoded.indices, encoded.rows) == ([2], [], [])


def test_loading_runs_ahead_by_a_few_batches_only() -> None:
    """Memory must not grow with the corpus when the encoder is slower than the decoders."""
    loaded: list[int] = []
    lock = threading.Lock()

    def load(index: int) -> int:
        with lock:
            loaded.append(index)
        return index

    results = engine(load=load).run([[index] for index in range(1000)])
    next(results)
    assert len(loaded) <= 3 + max(AHEAD + 1, 2 * LOADERS)
    results.close()
    assert len(loaded) < 100
