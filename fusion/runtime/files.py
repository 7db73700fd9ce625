"""Files appear whole or not at all: written beside their place, brought to disk, renamed into it; and where models lie,
without loading them, so that a wrong name is told at once.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fusion.errors import ModelError, OutputError
from pipeline.settings import reason_and_fix, sole_writer, sync, sync_folder, write_whole

GONE = ".gone"  # ends the name of a file that is to go when its fellows are replaced


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says against writing `path` into an `OutputError`."""
    try:
        yield
    except OSError as error:
        reason, fix = reason_and_fix(error, "make room, check who may write there")
        raise OutputError(f"{path}: cannot be written ({reason}); {fix}, or go elsewhere (--output)") from error


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` with its folder; whoever reads meanwhile finds the old file or the new one.

    Raises:
        OutputError: disk full, no permission, or a folder in the way.
    """
    with writing(path):
        write_whole(path, content)


@contextmanager
def replacing(folder: Path, name: str) -> Iterator[None]:
    """Be the only process that gives `folder` the files of this `name`, which `replace_files` writes together.

    Raises:
        BusyError: another process does.
    """
    with sole_writer(folder / name):
        settle(folder, name)
        yield


def replace_files(folder: Path, contents: Mapping[str, str | bytes | None], name: str) -> bool:
    """Write `contents`, by relative name, into `folder`, together; false where all were there already.

    They are written into `<folder>/<name>.tmp`, brought to disk, and go to their places when that is called
    `<name>.new`: whoever dies before leaves the older files as they were, and what is left after it is done by
    `settle`, which `replacing` calls. None: there is to be no such file.

    Raises:
        OutputError: disk full, no permission, or a folder in the way; the older files are there.
    """
    staged = folder / f"{name}.tmp"
    encoded = {key: content.encode() if isinstance(content, str) else content for key, content in contents.items()}
    changed = {key: content for key, content in encoded.items() if not holds(folder / key, content)}
    try:
        for key, content in changed.items():
            with writing(folder / key):
                if (folder / key).is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                path = staged / (key if content is not None else key + GONE)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content or b"")
                sync(path)
        if changed:
            with writing(folder):
                sync_folder(staged)
                staged.rename(folder / f"{name}.new")
                settle(folder, name)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)  # what did not fit should not go on filling the disk
        raise
    return bool(changed)


def settle(folder: Path, name: str) -> None:
    """Bring to their places what a `replace_files` that died had ready, and take away what it had not."""
    shutil.rmtree(folder / f"{name}.tmp", ignore_errors=True)
    ready = folder / f"{name}.new"
    for path in [path for path in sorted(ready.rglob("*")) if path.is_file()]:
        target = folder / path.relative_to(ready)
        if path.suffix == GONE:
            target.with_suffix("").unlink(missing_ok=True)
            path.unlink()
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    shutil.rmtree(ready, ignore_errors=True)


def holds(path: Path, content: bytes | None) -> bool:
    """Whether the file at `path` is there and has this very content; None: whether it is not there."""
    if content is None:
        return not path.exists()
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


def try_place(path: Path) -> None:
    """See that `path` can be written, before it takes long to make its content; its folder is made.

    Raises:
        OutputError: as `write_file`.
    """
    tried = path.with_name(path.name + ".try")  # not `.tmp`, which another process may be writing
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        tried.open("wb").close()
        tried.unlink(missing_ok=True)


def partial_folder(folder: Path) -> Path:
    """Where training works until all seeds are done: beside `folder`, which DVC deletes before a stage runs."""
    return folder.with_name(folder.name + ".partial")


def check_model_folder(folder: Path) -> None:
    """Raise ModelError where there is no such folder."""
    if not folder.is_dir():
        interrupted = partial_folder(folder).is_dir() or folder.with_name(folder.name + ".replaced").is_dir()
        fix = "training was interrupted, run fusion-train again" if interrupted else "train it with fusion-train"
        raise ModelError(f"{folder}: no such model folder; {fix}, or name the folder that fusion-train wrote")
