"""Checks in processes of their own, so that a crash, a hang or a broken GPU context costs one check and no more.

They are forked from a process that has loaded the libraries and never touched the GPU: nothing is imported twice. Where
a forked process cannot use the GPU after all, they are started afresh.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Literal

Method = Literal["fork", "spawn"]
LAST_LINES = 12  # of a traceback


class EndedEarlyError(Exception):
    """A process that raised, died or ran out of time; the message is for the report."""


def in_process(method: Method, seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns in a process of its own.

    Raises:
        EndedEarlyError: it raised, died, or took longer than `seconds`.
    """
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, function, arguments))  # type: ignore[attr-defined]
    process.start()
    sender.close()
    patience = 0.0
    try:
        if not receiver.poll(max(0.0, seconds)):
            raise EndedEarlyError(f"stopped after {seconds:.0f} s")
        raised, found = receiver.recv()
        patience = 5.0  # seconds to leave by itself
    except EOFError:
        process.join()
        raise EndedEarlyError(f"its process died (exit status {process.exitcode})") from None
    finally:
        _end(process, patience)
    if raised:
        raise EndedEarlyError(found)
    return found


def last_lines() -> str:
    """Of the exception that is being handled."""
    return "\n".join(traceback.format_exc().strip().splitlines()[-LAST_LINES:])


def _work(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.setpgid(0, 0)  # its own processes end with it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        sent = False, function(*arguments)
    except BaseException:
        sent = True, last_lines()
    sender.send(sent)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)


def _end(process: Any, patience: float) -> None:
    """With its whole group."""
    process.join(patience)
    if process.is_alive():
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()
        process.join()
