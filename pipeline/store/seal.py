"""The seal of a feature file: whether it is whole and undamaged, told before the HDF5 library sees it.

That library can crash the process on damaged structures, which no `except` catches. So the first 512 bytes, an HDF5
user block, hold one JSON line with the format, its version, the file's size, where its values lie, and a hash of all
other bytes (values have a checksum for each utterance). A file that is being written has such a line, too, of another
format, with a note for a run that goes on: its checksums are not hashed yet, either.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any

from pipeline.errors import StoreError, refuse_pipe

FORMAT = "erc-features"
BEGUN = "erc-features, unfinished"
VERSION = 3  # 1: checksums were BLAKE2b; 2: every part had the order of the joint file
READABLE = (2, VERSION)
USER_BLOCK = 512  # bytes, the smallest that HDF5 allows
FIELDS = {"format", "version", "size", "values", "structure"}
HDF5 = b"\x89HDF\r\n\x1a\n"  # its signature
OPENED = 20  # behind the user block: HDF5 sets this byte to 1 while a program has the file open for writing,
CACHED = slice(72, 96)  # and here makes or clears a copy of what the root group's header holds: 1, and two addresses
SUPERBLOCK = slice(8, 9)  # their version; in those above 0 other things lie there
BLOCK = 1 << 20  # bytes that are hashed at once
MAKE = "make it with dvc repro or its own command"  # what to do, in messages


def remake(path: Path) -> str:
    """What to do about a damaged file. DVC would bring it back as it is from a cache that is linked with it."""
    if path.is_symlink():
        return f"delete it and what it links to, {path.resolve()}, as in DVC's cache; then {MAKE}"
    with suppress(OSError):  # it is gone by now
        if path.stat().st_nlink > 1:
            command = f'find . "$(dvc cache dir)" -samefile {quote(str(path))} -delete'
            return f"it has other names, as in DVC's cache: delete them all ({command}), then {MAKE}"
    return f"delete it and {MAKE}"


def seal(path: Path, values: Sequence[tuple[int, int]], note: Mapping[str, int] | None = None) -> None:
    """Seal a finished file, or one that is begun, with its note.

    `values` are the (offset, bytes) of the regions that have checksums of their own, or are yet to be written.
    """
    values = [(offset, length) for offset, length in values if length]
    _clear_stale_copy(path)
    line: dict[str, Any] = {"format": FORMAT, "version": VERSION, "size": path.stat().st_size, "values": sorted(values)}
    if note is not None:
        line |= {"format": BEGUN, "note": dict(note)}
    line["structure"] = _hash_outside(path, values, note)
    block = _rendered(line)
    if len(block) > USER_BLOCK:
        raise AssertionError("a seal must fit into the user block")
    with path.open("r+b") as file:
        file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _clear_stale_copy(path: Path) -> None:
    """As HDF5 does where the root group, which has external links now, lies in another way than it did."""
    with path.open("r+b") as file:
        file.seek(USER_BLOCK)
        block = file.read(BLOCK)
        if block[SUPERBLOCK] == b"\0" and not _has_copy(block):
            file.seek(USER_BLOCK + CACHED.start)
            file.write(bytes(CACHED.stop - CACHED.start))


def check_seal(path: Path) -> None:
    """Raise StoreError unless `path` is a whole, undamaged file of this version (its values aside)."""
    if "\0" in str(path):
        raise StoreError(f"{str(path)!r}: no path holds a null character; fix the path")
    try:
        _check_seal(path)
    except FileNotFoundError:
        if path.is_symlink():
            raise StoreError(f"{path}: a link to {path.resolve()}, which is gone; fix the link, or {MAKE}") from None
        raise StoreError(f"{path}: no such feature file; fix the path, or {MAKE}") from None
    except OSError as error:  # its content is not known, so nothing is said against it
        raise StoreError(
            f"{path}: cannot be read ({error.strerror}); see who may read it and whether the disk answers"
        ) from None


def _check_seal(path: Path) -> None:
    refuse_pipe(path)
    with path.open("rb") as file:
        block = file.read(USER_BLOCK + len(HDF5))  # and the signature of HDF5 behind it
    line = _parse(block)
    version = line.get("version")
    damaged = StoreError(f"{path}: damaged, or changed by another program; {remake(path)}")
    if line.get("format") != FORMAT:
        if block[USER_BLOCK:] == HDF5:  # what lies behind a seal
            raise StoreError(
                f"{path}: not a finished feature file, since its seal is missing or damaged; name another, or {MAKE}"
            )
        raise StoreError(f"{path}: not a feature file of this project; name another, or {MAKE}")
    block = block[:USER_BLOCK]
    if version not in READABLE:
        raise StoreError(
            f"{path}: written in version {version} of the format, this program reads versions "
            f"{', '.join(map(str, READABLE))}; "
            f"{MAKE}, or install the matching erc-fusion"
        )
    if block != _rendered(line) or not _is_sound(line):
        raise damaged
    size, expected = path.stat().st_size, line["size"]
    if size != expected:
        raise StoreError(f"{path}: truncated: {size} bytes, expected {expected}; {remake(path)}")
    if not _is_intact(path, line, None):
        raise damaged


def read_begun(path: Path) -> dict[str, int] | None:
    """The note of a file that is begun; None where it is damaged, or no such file."""
    refuse_pipe(path)
    with path.open("rb") as file:
        block = file.read(USER_BLOCK)
    line = _parse(block)
    whole = (
        line.get("format") == BEGUN
        and line.get("version") == VERSION
        and block == _rendered(line)
        and _is_sound({name: value for name, value in line.items() if name != "note"})
        and isinstance(line.get("note"), dict)
        and path.stat().st_size == line["size"]
        and _is_intact(path, line, line["note"])
    )
    return line["note"] if whole else None


def _rendered(line: Mapping[str, Any]) -> bytes:
    """The user block that holds this line; all of it is compared, so that no byte of it is without meaning."""
    return (json.dumps(line).encode() + b"\n").ljust(USER_BLOCK, b"\0")


def _is_sound(line: Mapping[str, Any]) -> bool:
    """Whether it holds what a seal holds: all that is read next is inside the file."""
    try:
        numbers = [line["size"], *(number for offset, length in line["values"] for number in (offset, length))]
    except (KeyError, TypeError, ValueError):
        return False
    return set(line) == FIELDS and all(type(number) is int and 0 <= number <= line["size"] for number in numbers)


def _parse(block: bytes) -> dict[str, Any]:
    """The seal's content; empty where there is none."""
    try:
        line = json.loads(block.split(b"\n")[0])
    except ValueError:
        return {}
    return line if isinstance(line, dict) else {}


def _is_intact(path: Path, line: Mapping[str, Any], note: Mapping[str, int] | None) -> bool:
    closings = (_as_closed, _as_closed_before)
    return any(_hash_outside(path, line["values"], note, closed) == line["structure"] for closed in closings)


def _hash_outside(
    path: Path,
    values: Sequence[tuple[int, int]],
    note: Mapping[str, int] | None = None,
    closed: Callable[[bytes], bytes] | None = None,
) -> str:
    """Hash (hex) of all bytes behind the user block that lie in none of the `values` regions, as of a closed file."""
    digest = hashlib.sha256(b"" if note is None else json.dumps(note).encode())
    with path.open("rb") as file:
        position = USER_BLOCK
        for offset, length in [*sorted(values), (path.stat().st_size, 0)]:
            file.seek(position)
            while position < offset and (block := file.read(min(BLOCK, offset - position))):
                digest.update((closed or _as_closed)(block) if position == USER_BLOCK else block)
                position += len(block)
            position = offset + length
    return digest.hexdigest()


def _as_closed(block: bytes) -> bytes:
    """Without the copy, where it is a true one: HDF5 believes it."""
    without = block[: CACHED.start] + bytes(CACHED.stop - CACHED.start) + block[CACHED.stop :]
    return _as_closed_before(without if _has_copy(block) else block)


def _has_copy(block: bytes) -> bool:
    copy = block[CACHED]
    return copy[:8] == b"\1".ljust(8, b"\0") and copy[8:] in block[CACHED.stop :]


def _as_closed_before(block: bytes) -> bytes:
    """As files were sealed that hold the copy."""
    return block[:OPENED] + b"\0" + block[OPENED + 1 :] if block[OPENED : OPENED + 1] == b"\1" else block
