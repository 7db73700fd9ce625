"""Training runs side by side on this machine, in processes that share the features without a copy.

They are forked after the splits were loaded, so that they share the rows however many there are; shared memory would
need as much of /dev/shm, which containers keep at 64 MB. No thread of torch may live when a process forks, so this one
computes with a single thread until then (`single_thread`). Numbers do not depend on how many processes there are: each
run has its own seed and as many threads as torch would have here.
"""

import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from fusion.errors import TrainingError
from pipeline.settings import count_cores, ctrl_c_waits

Item = TypeVar("Item")
Found = TypeVar("Found")


def count_jobs(asked: int | None, device: torch.device) -> int:
    """Processes that train side by side: as many as `asked`, else one for each core; always one on a GPU.

    Raises:
        TrainingError: several are asked for on a GPU, or none.
    """
    if asked is not None and asked < 1:
        raise TrainingError(f"{asked} jobs: expected at least 1; leave jobs out for one on each core")
    if device.type == "cpu":
        return asked or max(1, count_cores() // torch.get_num_threads())
    if asked not in (None, 1):
        raise TrainingError(
            f"{asked} jobs: on {device.type} one process trains; leave jobs out (--jobs), or choose device cpu"
        )
    return 1


@contextmanager
def single_thread(jobs: int) -> Iterator[int]:
    """While it is open, torch computes with one thread if there are several `jobs`; gives how many it had."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if jobs > 1 else threads)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


@contextmanager
def side_by_side(
    items: Sequence[Item], do: Callable[[Item], Found], jobs: int, threads: int
) -> Iterator[Iterator[Found]]:
    """What `do` makes of the `items`, as it is finished; the processes are gone when the context is left.

    With one job it is done here.

    Raises:
        TrainingError: a process was killed. Errors of `do` are raised as they are.
    """
    if items:
        importlib.import_module("torch._dynamo")  # every optimizer needs it: seconds, once and in no run's time
    jobs = min(jobs, len(items))
    if jobs <= 1:
        torch.set_num_threads(threads)
        yield map(do, items)
        return
    others = set(multiprocessing.active_children())
    worker = _Worker(do, threads)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), initializer=worker.start) as executor:
        try:
            with ctrl_c_waits():  # a process that is just being forked would report it at length
                futures: Iterable[Future[Any]] = [executor.submit(_Worker.work, item) for item in items]
            yield (future.result() for future in as_completed(futures))
        except BaseException as error:  # Ctrl-C, too: what is running is not waited for
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            executor.shutdown(cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise TrainingError(
                    "a training process was killed, perhaps because memory ran out; finished runs are kept: "
                    "run it again, with fewer jobs (--jobs)"
                ) from error
            raise


def place() -> int:
    """Which of the processes this one is, from 0: the line of a terminal for its progress."""
    return _Worker.number


class _Worker:
    """What a forked process does; it is handed over by the fork, without a copy."""

    current: "_Worker"
    number = 0

    def __init__(self, do: Callable[[Any], Any], threads: int) -> None:
        self.do, self.threads = do, threads
        self.started = multiprocessing.Value("i", 0)

    def start(self) -> None:
        _Worker.current = self
        with self.started.get_lock():
            _Worker.number = self.started.value
            self.started.value += 1
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it, without a word
        threading.Thread(target=_die_with_parent, daemon=True).start()
        torch.set_num_threads(self.threads)

    @staticmethod
    def work(item: Any) -> Any:
        return _Worker.current.do(item)


def _die_with_parent() -> None:
    """A killed parent cannot end its processes: they end themselves, and what was running goes on the next time."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
