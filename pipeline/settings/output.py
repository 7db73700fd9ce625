"""One writer an output, and folders that take the place of older ones: what every writing command stands on.

    with sole_writer(output) as place: ...    nobody else writes `output`; what an earlier crash left is repaired
    publish(made, place)                      the folder `made` gets that name; at no moment is there none of it

A lock is a file `<output>.lock` beside the output that the system holds for a process (flock, which NFS knows, too):
it ends with the process however that dies. The file says who holds it, and goes when the output is done.
"""

import ctypes
import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import BusyError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux: paths are of the working directory; both names keep existing
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
# where no lock can be made nobody can write; what the command itself says of such a place is clearer
NO_PLACE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOENT, errno.ELOOP,
    errno.ENAMETOOLONG,
)  # fmt: skip
PATIENCE = 5.0  # seconds: processes that a killed command started end themselves, and with them its lock
LONGEST = 200  # characters of a command line in a message

log = logging.getLogger(__name__)


@contextmanager
def sole_writer(output: Path) -> Iterator[Path]:
    """Be the only process that writes `output`, a file or folder; gives where it really lies.

    A folder that is a symbolic link stays one: what it points to is written. Folders above it are made; those that are
    still empty at the end go again.

    Raises:
        BusyError: another process holds it; the message names the process.
        OSError: it is a symbolic link that leads back to itself.
    """
    place = _real(output)
    if place.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(output))
    missing = [folder for folder in place.parents if not folder.exists()]
    descriptor = _take(place, output)
    if descriptor is None:
        yield place
        return
    try:
        restore(place)
        yield place
    finally:
        with suppress(OSError):
            _lock_file(place).unlink()  # while it is held: nobody can have taken it meanwhile
        os.close(descriptor)
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()


def _real(output: Path) -> Path:
    where = os.path.realpath  # which takes a loop of links for what it is, unlike Path.resolve
    return Path(where(output)) if output.is_dir() or output.is_symlink() else Path(where(output.parent), output.name)


def _lock_file(place: Path) -> Path:
    return place.with_name(place.name + ".lock")


def _take(place: Path, output: Path) -> int | None:
    """The descriptor of the locked file; None where there can be none."""
    path, until = _lock_file(place), time.monotonic() + PATIENCE
    try:
        while (descriptor := _try(path)) is None:
            holder = _read_note(path)
            if _is_alive(holder) or time.monotonic() > until:
                raise BusyError(f"{output}: another process is writing it{_describe(holder)}; wait for it, or end it")
            time.sleep(0.05)
    except OSError as error:
        if error.errno in NO_PLACE:
            return None
        raise OSError(error.errno, error.strerror, str(output)) from None
    _write_note(descriptor)
    return descriptor


def _try(path: Path) -> int | None:
    """Lock the file, made where it is missing; None where another process holds it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            continue  # the writer before has just removed the folder, which was empty
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
            log.warning("%s: this disk knows no locks; let no other process write there meanwhile", path)
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)  # its holder has just removed it


def _write_note(descriptor: int) -> None:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    note = {"pid": os.getpid(), "host": socket.gethostname(), "command": command[:LONGEST], "since": since}
    with suppress(OSError):  # a full disk: others learn that it is held, not by whom
        os.fchmod(descriptor, 0o666)  # whoever may write the folder may take it over
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(note).encode(), 0)


def _read_note(path: Path) -> dict[str, str]:
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        note = json.loads(path.read_bytes()[:4096])
        return {key: str(note.get(key, ""))[:LONGEST] for key in ("pid", "host", "command", "since")}
    return {}


def _is_alive(holder: dict[str, str]) -> bool:
    """Whether the process of a note is there; one on another machine is taken to be."""
    if not holder.get("pid", "").isdecimal():
        return False
    return holder["host"] != socket.gethostname() or Path(f"/proc/{holder['pid']}").exists()


def _describe(holder: dict[str, str]) -> str:
    if not holder:
        return ""
    where = f" on {holder['host']}" if holder["host"] != socket.gethostname() else ""
    return f" (process {holder['pid']}{where}, {holder['command']}, since {holder['since']})"


def publish(made: Path, target: Path) -> None:
    """Give the folder `made` the name `target`; an older folder of that name goes, at no moment is there neither.

    The two names are exchanged at once where the system can; elsewhere (NFS) the older folder is set aside as
    `<target>.replaced` first, which `restore` brings back after a crash in between.

    Raises:
        OSError: it cannot be renamed.
    """
    sync_folder(made)
    target = _real(target)
    restore(target)
    if target.exists():
        aside = _aside(target)
        if exchange(made, target):
            made.rename(aside)  # by now the older one
        else:
            target.rename(aside)
            made.rename(target)
        shutil.rmtree(aside)
    else:
        made.rename(target)
    with suppress(OSError):  # not on every file system
        sync(target.parent)


def restore(target: Path) -> None:
    """Finish what a crash within `publish` left: put the older folder back where the new one had not come yet."""
    aside = _aside(target)
    if aside.is_dir():
        if target.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(target)


def _aside(target: Path) -> Path:
    return target.with_name(target.name + ".replaced")


def exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # neither Linux nor a C library with it
        return False
    done: int = rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    if done != 0 and (number := ctypes.get_errno()) not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        raise OSError(number, os.strerror(number), str(other))
    return done == 0


def write_whole(path: Path, content: bytes, ending: str = ".tmp") -> None:
    """Write `content` to `path` with its folder, by way of a file whose name has this `ending` more: whoever reads
    meanwhile finds the old file or the new one.
    """
    partial = path.with_name(path.name + ending)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.unlink(missing_ok=True)  # of a killed run, or a link or pipe of somebody else
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()  # what did not fit should not go on filling the disk
        raise


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Bring every file in `folder`, and its table, to the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            sync(path)
    with suppress(OSError):
        sync(folder)
