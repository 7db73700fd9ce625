"""The local engine: order, memory that runs out, utterances that cannot be loaded, work that stays bounded."""

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.encoders import batches_under_budget, cut
from pipeline.errors import ClipError, EncoderError
from pipeline.extraction import LOADERS
from pipeline.extraction.engine import AHEAD, Encoded, LocalEngine
from pipeline.settings import ran_out_of_memory, take_cores
from tests.pipeline.tight import SHORTAGES, Tight, told

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
    encoder = Tight(largest=2)
    tight = engine(encoder.start)
    assert values(tight.run([list(range(8)), list(range(8, 16))])) == list(range(16))
    assert encoder.sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]  # the second batch is cut from its beginning
    assert tight.pieces == 4


def test_pieces_of_an_earlier_run_are_taken_over() -> None:
    encoder = Tight()
    resumed = engine(encoder.start)
    resumed.cut_into(4)
    resumed.cut_into(2)
    (encoded,) = resumed.run([list(range(6))])
    assert (values([encoded]), encoded.pieces) == (list(range(6)), 4)
    assert encoder.sizes == [1, 2, 1, 2]


@given(count=st.integers(0, 200), pieces=st.integers(1, 64))
def test_halving_every_piece_is_cutting_into_twice_as_many(count: int, pieces: int) -> None:
    parts, finer = cut(count, pieces), cut(count, 2 * pieces)
    assert list(itertools.chain(*parts)) == list(range(count))
    assert max(map(len, parts), default=0) <= -(-count // pieces)
    assert {part.stop for part in parts} <= {part.stop for part in finer}


@pytest.mark.parametrize("at_fetching", [False, True])
@pytest.mark.parametrize("shortage", SHORTAGES)
@pytest.mark.sampled(5)
def test_however_a_library_says_that_memory_ran_out(shortage: Exception, at_fetching: bool) -> None:
    batches = [list(range(7)), list(range(7, 12)), [12]]
    tight = engine(Tight(largest=2, shortage=shortage, at_fetching=at_fetching).start)
    assert same_bits(list(tight.run(batches)), told(4, batches))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_COMPILATION_FAILED"),
        ValueError("out of memory"),
    ],
)
@pytest.mark.parametrize("at_fetching", [False, True])
def test_other_errors_are_not_taken_for_memory_and_keep_their_traceback(error: Exception, at_fetching: bool) -> None:
    encoder = Tight(largest=1, shortage=error, at_fetching=at_fetching)
    with pytest.raises(type(error)) as caught:
        list(engine(encoder.start).run([[1, 2]]))
    assert caught.value is error
    assert caught.traceback[-1].name == "allocate"
    assert encoder.sizes == [2]


def test_the_allocator_of_this_machine_says_that_memory_ran_out() -> None:
    with pytest.raises(RuntimeError, match="memory") as torchs:
        torch.empty(1 << 55, dtype=torch.uint8)
    with pytest.raises(MemoryError) as numpys:
        np.empty(1 << 55, np.uint8)
    assert ran_out_of_memory(torchs.value)
    assert ran_out_of_memory(numpys.value)


def same_bits(found: Sequence[Encoded], expected: Sequence[Encoded]) -> bool:
    return [(list(e.indices), [rows.tobytes() for rows in e.rows]) for e in found] == [
        (list(e.indices), [rows.tobytes() for rows in e.rows]) for e in expected
    ]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=40),
    budget=st.integers(9, 120),
    largest=st.integers(1, 12),
    from_call=st.integers(1, 12),
    shortage=st.sampled_from(SHORTAGES),
    at_fetching=st.booleans(),
    pieces=st.sampled_from([1, 2, 8]),
    side_by_side=st.sampled_from([1, 3]),
)
def test_whatever_failed_first_a_batch_gets_the_bits_of_a_run_that_knew_its_pieces(
    lengths: list[int],
    budget: int,
    largest: int,
    from_call: int,
    shortage: Exception,
    at_fetching: bool,
    pieces: int,
    side_by_side: int,
) -> None:
    batches = batches_under_budget(lengths, budget)
    tight = engine(Tight(largest, from_call, shortage, at_fetching).start, side_by_side=side_by_side)
    tight.cut_into(pieces)
    found = list(tight.run(batches))
    assert [encoded.batch for encoded in found] == batches
    for batch, encoded in zip(batches, found, strict=True):
        assert same_bits([encoded], told(encoded.pieces, [batch]))
    needed = [encoded.pieces for encoded in found]
    assert needed == sorted(needed)
    first = needed.index(tight.pieces)  # of those that were cut as finely as in the end
    assert same_bits(found[first:], told(tight.pieces, batches[first:]))
    if from_call == 1:
        assert max(len(part) for batch in batches[first:] for part in cut(len(batch), tight.pieces)) <= largest


def test_batches_side_by_side_are_encoded_at_the_same_time_by_one_core_each_and_come_back_in_order() -> None:
    meeting, cores = threading.Barrier(3, timeout=60), torch.get_num_threads()

    def start(inputs: list[int]) -> Rows:
        meeting.wait()  # nobody leaves before three are here
        seen.append(torch.get_num_threads())
        return identity(inputs)

    seen: list[int] = []
    batches = [[3 * n, 3 * n + 1, 3 * n + 2] for n in range(6)]
    assert values(engine(start, side_by_side=3).run(batches)) == list(range(18))
    assert seen == [1] * 6
    assert torch.get_num_threads() == cores


def test_whoever_runs_an_engine_at_the_same_time_shares_its_cores() -> None:
    """As the threads of an actor do."""
    lock, inside, most = threading.Lock(), [], []

    def start(inputs: list[int]) -> Rows:
        with lock:
            inside.append(inputs)
            most.append(len(inside))
        time.sleep(0.02)
        with lock:
            inside.remove(inputs)
        return identity(inputs)

    shared = engine(start, side_by_side=2)
    with ThreadPoolExecutor(5) as others:
        found = list(others.map(lambda n: values(shared.run([[n], [n + 10]])), range(5)))
    assert found == [[n, n + 10] for n in range(5)]
    assert max(most) == 2


def test_of_several_errors_the_first_comes_after_all_that_was_encoded() -> None:
    meeting, found = threading.Barrier(5, timeout=60), []

    def start(inputs: list[int]) -> Rows:
        meeting.wait()
        if inputs[0] in (1, 2):
            raise ValueError(f"batch {inputs[0]}")
        return identity(inputs)

    def run() -> None:
        for encoded in engine(start, side_by_side=5).run([[n] for n in range(5)]):
            found.extend(values([encoded]))

    with pytest.raises(ValueError, match="batch 1"):
        run()
    assert found == [0, 3, 4]


def test_a_batch_that_is_to_be_alone_is_encoded_by_all_cores() -> None:
    def start(inputs: list[int]) -> Rows:
        seen.append((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return identity(inputs)

    seen: list[tuple[bool, int]] = []
    assert values(engine(start, side_by_side=3).run([[1], [2]], alone=True)) == [1, 2]
    assert seen == [(True, torch.get_num_threads())] * 2


def test_an_utterance_that_fits_alone_is_tried_alone_before_the_others_go_on() -> None:
    """Batches side by side take each other's memory."""
    lock, inside = threading.Lock(), set[int]()

    def start(inputs: list[int]) -> Rows:
        with lock:
            inside.add(inputs[0])
            crowded = inputs[0] == 0 and len(inside) > 1
        time.sleep(0.05)  # for the others to come
        with lock:
            crowded = crowded or (inputs[0] == 0 and len(inside) > 1)
            inside.remove(inputs[0])
        if crowded:
            raise SHORTAGES[0]
        return identity(inputs)

    assert values(engine(start, side_by_side=4).run([[n] for n in range(8)])) == list(range(8))


def test_what_has_not_begun_never_begins_once_nobody_takes_the_rows() -> None:
    begun: list[int] = []

    def start(inputs: list[int]) -> Rows:
        begun.extend(inputs)
        time.sleep(0.02)
        return identity(inputs)

    results = engine(start, side_by_side=2).run([[n] for n in range(50)])
    next(results)
    results.close()
    there = len(begun)
    time.sleep(0.1)
    assert there == len(begun) < 10


@dataclass
class Watched:
    """An encoder that looks at each start whether a failed attempt is gone."""

    fail_at: Sequence[int]  # calls of `start`
    fetch_fails: bool = False
    calls: int = 0
    alive: list[Any] = field(default_factory=list)  # weak references to the tensors of this attempt
    failed: list[Any] = field(default_factory=list)  # and of those that failed
    looked: int = 0

    def start(self, inputs: list[int]) -> Rows:
        self.calls += 1
        assert [ref() for ref in self.failed] == [None] * len(self.failed)
        self.looked += len(self.failed)
        self.failed.clear()
        output = torch.tensor(inputs)
        self.alive.append(weakref.ref(output))
        if self.calls in self.fail_at:
            self.fail()

        def rows() -> list[np.ndarray]:
            if self.fetch_fails:
                self.fetch_fails = False
                self.fail()
            return list(output.numpy().reshape(-1, 1, 1).copy())

        return rows

    def fail(self) -> None:
        self.failed, self.alive = self.alive, []
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        except torch.OutOfMemoryError as error:
            kept = error  # a frame that refers to itself through its traceback
            raise kept from None


def test_nothing_of_a_failed_attempt_is_alive_when_the_batch_is_encoded_again() -> None:
    encoder = Watched(fail_at=(1, 3))
    assert values(engine(encoder.start).run([[4, 5, 6, 7]])) == [4, 5, 6, 7]
    assert encoder.calls == 3 + 4
    assert encoder.looked == 1 + 2  # at call 2 that of call 1, at call 4 those of calls 2 and 3


def test_nor_is_it_when_the_rows_could_not_be_fetched() -> None:
    encoder = Watched(fail_at=(), fetch_fails=True)
    assert values(engine(encoder.start).run([[4, 5], [6, 7]])) == [4, 5, 6, 7]
    assert encoder.calls == 2 + 4
    assert encoder.looked == 2  # of both batches: the second one had begun


@pytest.mark.parametrize("at_fetching", [False, True])
def test_one_utterance_that_exceeds_the_memory_is_named(at_fetching: bool) -> None:
    shortage = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB." + " GPU 0 has ..." * 30 + "\nmore"
    )
    tight = engine(Tight(largest=0, shortage=shortage, at_fetching=at_fetching).start, advice="use more")
    message = r"^'film/3' alone exceeds the memory \(CUDA out of memory. Tried .{0,180} \.\.\.\); use more$"
    with pytest.raises(EncoderError, match=message) as caught:
        list(tight.run([[3, 4]]))
    assert caught.value.__cause__ is caught.value.__context__ is None  # no traceback that holds on to the batch


def test_an_utterance_alone_is_tried_again_when_room_was_made() -> None:
    encoder = Watched(fail_at=(1,))
    tight = engine(encoder.start)
    assert values(tight.run([[4], [5, 6]])) == [4, 5, 6]
    assert (encoder.calls, tight.pieces) == (3, 1)


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


def test_the_error_counts_an_utterance_once_that_others_need() -> None:
    def gone(index: int) -> int:  # as where the clips of a speaker are normalised together
        raise ClipError(f"'film/{index % 2}': gone", f"film/{index % 2}", "missing-file")

    with pytest.raises(ClipError, match=r"^'film/0': gone; to go on"):
        list(engine(load=gone).run([[0, 2], [4]]))
    with pytest.raises(ClipError, match=r"^'film/1': gone \(and 1 more\); to go on"):
        list(engine(load=gone).run([[1, 2, 3, 4]]))


@pytest.mark.soak
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


@pytest.mark.parametrize("warm", [False, True])
def test_a_thread_takes_cores_for_itself_alone(warm: bool) -> None:
    """Whether torch has met the thread before or not; products of matrices ask for the number, as all else does."""

    def look() -> int:
        torch.randn(64, 64) @ torch.randn(64, 64)
        return torch.get_num_threads()

    def take() -> tuple[int, int]:
        if warm:
            look()
        take_cores(1)
        return look(), look()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with ThreadPoolExecutor(1) as one:
            assert one.submit(take).result() == (1, 1)
        with ThreadPoolExecutor(1) as another:
            assert another.submit(look).result() == look() == 3
    finally:
        torch.set_num_threads(before)
