"""Forks of the test's own process, which has its libraries loaded: for what is killed, or limited as a process; and a
limit for what may wait for ever.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def fork(run: Callable[[], Any]) -> int:
    """The id of a process that does `run` and no more; its exit status is 1 where that raises."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        run()
        status = 0
    except SystemExit as done:
        status = int(done.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def exit_status(child: int) -> int:
    """Waits for `child`; negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Ends the process where what is inside takes longer."""
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
