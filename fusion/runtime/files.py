"""Files appear whole or not at all: written beside their place, brought to disk, renamed into it; and where models lie,
without loading them, so that a wrong name is told at once.
"""

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from fusion.errors import ModelError, OutputError
from pipeline.store import sync

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux: paths are of the working directory; both names keep existing


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says against writing `path` into an `OutputError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{path}: cannot be written ({reason}); make room, check who may write there, or go elsewhere (--output)"
        ) from error


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` with its folder; whoever reads meanwhile finds the old file or the new one.

    Raises:
        OutputError: disk full, no permission, or a folder in the way.
    """
    partial = path.with_name(path.name + ".tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)  # what did not fit should not go on filling the disk
            raise


def publish(made: Path, target: Path) -> None:
    """Give the folder `made` the name `target`; an older folder of that name goes, at no moment is there neither.

    The two names are exchanged at once where the system can; elsewhere (NFS) the older folder is set aside as
    `<target>.old` first, which `restore` brings back after a crash in between.

    Raises:
        OSError: it cannot be renamed.
    """
    sync_folder(made)
    aside = target.with_name(target.name + ".old")
    restore(target)
    if not target.exists():
        made.rename(target)
    elif exchange(made, target):
        shutil.rmtree(made)  # by now the older one
    else:
        target.rename(aside)
        made.rename(target)
        shutil.rmtree(aside)
    with suppress(OSError):  # not on every file system
        sync(target.parent)


def restore(target: Path) -> None:
    """Finish what a crash within `publish` left: put the older folder back where the new one had not come yet."""
    aside = target.with_name(target.name + ".old")
    if aside.is_dir():
        if target.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(target)


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


def sync_folder(folder: Path) -> None:
    """Bring every file in `folder`, and its table, to the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            sync(path)
    with suppress(OSError):
        sync(folder)


def write_files(folder: Path, contents: Mapping[str, str | bytes]) -> bool:
    """Write `contents`, by name, into `folder`, each as `write_file` does; false where all were there already."""
    encoded = {name: content.encode() if isinstance(content, str) else content for name, content in contents.items()}
    missing = {name: content for name, content in encoded.items() if not holds(folder / name, content)}
    for name, content in missing.items():
        write_file(folder / name, content)
    return bool(missing)


def holds(path: Path, content: bytes) -> bool:
    """Whether the file at `path` is there and has this very content."""
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


def try_place(path: Path) -> None:
    """See that `path` can be written, before it takes long to make its content; its folder is made.

    Raises:
        OutputError: as `write_file`.
    """
    partial = path.with_name(path.name + ".tmp")
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.open("wb").close()
        partial.unlink()


def partial_folder(folder: Path) -> Path:
    """Where training works until all seeds are done: beside `folder`, which DVC deletes before a stage runs."""
    return folder.with_name(folder.name + ".partial")


def check_model_folder(folder: Path) -> None:
    """Raise ModelError where there is no such folder."""
    if not folder.is_dir():
        interrupted = partial_folder(folder).is_dir() or folder.with_name(folder.name + ".old").is_dir()
        fix = "training was interrupted, run fusion-train again" if interrupted else "train it with fusion-train"
        raise ModelError(f"{folder}: no such model folder; {fix}, or name the folder that fusion-train wrote")
