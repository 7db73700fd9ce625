"""Work is handed to threads whatever the moment of Ctrl-C."""

import signal
from collections.abc import Iterator
from threading import Event, Semaphore

import pytest

from pipeline.settings import Threads


class Interrupting(Semaphore):
    """Where Ctrl-C comes while a lock of the pool is taken."""

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        with self._cond:
            signal.raise_signal(signal.SIGINT)
            self.interrupted = True
        return super().acquire(blocking, timeout)


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    """Which background jobs of a shell lack: they ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_amid_submit_comes_after_it() -> None:
    done = Event()
    with Threads(1) as pool:
        pool._idle_semaphore = semaphore = Interrupting(0)
        with pytest.raises(KeyboardInterrupt):
            pool.submit(done.set)
        assert semaphore.interrupted
        assert done.wait(60)


def test_ctrl_c_does_what_it_did_before() -> None:
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(1))
    try:
        with Threads(1) as pool:
            pool._idle_semaphore = Interrupting(0)
            assert pool.submit(lambda: 3).result() == 3
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert came == [1, 1]


def test_threads_hand_out_work_themselves() -> None:
    with Threads(2) as pool:
        assert pool.submit(lambda: pool.submit(lambda: 5).result()).result() == 5
