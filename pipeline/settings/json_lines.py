"""JSON lines of records, one a line, each with a check of itself: what damage leaves readable is not read in silence.

    {"id":"d0/0","conversation":"d0",...,"check":"1f0c9a3e"}

`check` is the last key, the first hexadecimal digits of the SHA-256 of the line without it; that of the last line says
how many lines there are, too, as `1f0c9a3e of 140`. A line that has none is read as it is: whoever edits a line on
purpose takes its `check` out, and that of the last line to add lines or take some out.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.errors import DataError, refuse_pipe
from pipeline.settings.output import write_whole

CHECKED = re.compile(r'({"id":.*), ?"check": ?"([0-9a-f]{8})(?: of (\d+))?"}')

Record = TypeVar("Record", bound=BaseModel)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write JSON objects, a line each; the file appears whole or not at all."""
    checks = [*map(_check, lines[:-1]), *(f"{_check(line)} of {len(lines)}" for line in lines[-1:])]
    content = "".join(f'{line[:-1]},"check":"{check}"}}\n' for line, check in zip(lines, checks, strict=True))
    try:
        write_whole(path, content.encode(), ".partial")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # a full disk tells no name


def read_lines(path: Path) -> list[str]:
    """The lines of the manifest `path`, each as it was written.

    Raises:
        DataError: it is missing or cannot be read.
    """
    try:
        refuse_pipe(path)
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such manifest; run pipeline-prepare, or dvc repro") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name another manifest (--manifest)") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); run pipeline-prepare to write it anew") from None
    return content.split("\n")  # a text may hold line ends of other kinds


def parse_lines(lines: Iterable[str], kind: type[Record], path: Path) -> list[Record]:
    """The records of `lines`, which were read from `path`; empty lines hold none.

    Raises:
        DataError: a line is no such record, or not the one that was written; or not as many as were written are there.
    """
    records, last = [], ""
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        last = line
        where = f"{path}, line {number}"
        try:
            records.append(kind.model_validate_json(take_check(line, where)))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"])) or "line"
            raise DataError(f"{where}: '{field}': {first['msg']}; run pipeline-prepare again") from None
    if (checked := CHECKED.fullmatch(last)) and checked[3] != str(len(records)):
        lost = f"{checked[3]} were written" if checked[3] else "its last one is missing"
        held = "1 line" if len(records) == 1 else f"{len(records)} lines"
        raise DataError(
            f"{path}: holds {held}, but {lost}; run pipeline-prepare again, or take 'check' out of the "
            "last line to keep an edit"
        )
    return records


def take_check(line: str, where: str) -> str:
    """`line` without its `check`; raises DataError, led by `where`, if that is of another line."""
    checked = CHECKED.fullmatch(line)
    if checked and _check(checked[1] + "}") != checked[2]:
        raise DataError(
            f"{where}: damaged or edited since pipeline-prepare wrote it; run that again, or take 'check' out of the "
            "line to keep an edit"
        )
    return checked[1] + "}" if checked else line


def _check(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()[:8]
