"""Files appear whole or not at all: written beside their place, brought to disk, renamed into it; and where models lie,
without loading them, so that a wrong name is told at once.
"""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fusion.errors import ModelError, OutputError


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


def write_files(folder: Path, contents: Mapping[str, str | bytes]) -> None:
    """Write `contents`, by name, into `folder`, each as `write_file` does."""
    for name, content in contents.items():
        write_file(folder / name, content.encode() if isinstance(content, str) else content)


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
        interrupted = partial_folder(folder).is_dir()
        fix = "training was interrupted, run fusion-train again" if interrupted else "train it with fusion-train"
        raise ModelError(f"{folder}: no such model folder; {fix}, or name the folder that fusion-train wrote")
