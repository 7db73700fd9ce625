"""The errors of the project: their root, and those of the pipeline."""

import difflib
import errno
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path


class ErcError(Exception):
    """Root of the errors that a user can fix; the message says what, where and how."""


class BusyError(ErcError):
    """Another process writes the same output."""


FIXES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
}


def reason_and_fix(error: Exception, otherwise: str) -> tuple[str, str]:
    """What the system says of a file that cannot be written, without what libraries add, and what to do about it."""
    found = re.search(r"(?:errno = |os error )(\d+)", str(error))
    number = getattr(error, "errno", None) or (int(found[1]) if found else None)
    reason = os.strerror(number) if number else " ".join(str(error).split())
    return reason, FIXES.get(number or 0, otherwise)


class StoreError(ErcError):
    """A feature file is missing, damaged, from another version, or not what it claims to be."""


class DataError(ErcError):
    """A table, a manifest or a recording is not what it must be."""


class ClipError(DataError):
    """The recording of one utterance is not what the manifest says, or gives no samples; `status` is the reason.

    The names are those of `pipeline.manifest`, and `changed`: another recording than the manifest was made from.
    """

    def __init__(self, message: str, utterance_id: str, status: str) -> None:
        super().__init__(message)
        self.utterance_id = utterance_id
        self.status = status

    def __reduce__(self) -> tuple[type["ClipError"], tuple[str, str, str]]:
        return ClipError, (str(self), self.utterance_id, self.status)  # from an actor to the command


class EncoderError(ErcError):
    """A model cannot be found, loaded or run as asked."""


def suggest(word: str, known: Iterable[str], group: str = "") -> str:
    """The end of a message: the one of `known` that is most like `word`, with the dotted `group` that they are in."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{'.'.join([*filter(None, [group]), close[0]])}'?" if close else ""


def refuse_pipe(path: Path) -> None:
    """Raise DataError where opening `path` may wait for ever, reading it never end, or writing it replace a device."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # whoever opens it says why
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(f"{path}: a pipe, socket or device; name a file that holds its content")
