"""Threads that work is handed to, also while Ctrl-C comes."""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Found = TypeVar("Found")


class Threads(ThreadPoolExecutor):
    """A pool that Ctrl-C cannot catch half way through `submit`.

    KeyboardInterrupt comes anywhere in the main thread. Inside `submit` it can leave a lock of the pool taken, for
    which its threads, and whoever waits for them, then wait for ever.
    """

    def submit(
        self, function: Callable[Arguments, Found], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Found]:
        """As the base class does, which `map` calls, too."""
        with ctrl_c_waits():
            return super().submit(function, *args, **kwargs)


@contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Ctrl-C does what it does when the context is left; other threads than the main one it never meets."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[FrameType | None] = []

    def remember(_: int, frame: FrameType | None) -> Any:
        came.append(frame)

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(signal.SIGINT, came[0])
