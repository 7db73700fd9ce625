"""The seal of a feature file: whether it is whole and undamaged, told before the HDF5 library sees it.

That library can crash the process on damaged structures, which no `except` catches. So the first 512 bytes, an HDF5
user block, hold one JSON line with the format, its version, the file's size, where its values lie, and a hash of all
other bytes (values have a checksum for each utterance). A file without a seal is unfinished.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import StoreError

FORMAT = "erc-features"
VERSION = 1
USER_BLOCK = 512  # bytes, the smallest that HDF5 allows


def seal(path: Path, values: Sequence[tuple[int, int]]) -> None:
    """Seal a finished file: `values` are the (offset, bytes) of the regions that have checksums of their own."""
    values = [(offset, length) for offset, length in values if length]
    line: dict[str, Any] = {"format": FORMAT, "version": VERSION, "size": path.stat().st_size, "values": sorted(values)}
    line["structure"] = _hash_outside(path, values)
    content = json.dumps(line).encode() + b"\n"
    if len(content) > USER_BLOCK:
        raise AssertionError("a seal must fit into the user block")
    with path.open("r+b") as file:
        file.write(content.ljust(USER_BLOCK, b"\0"))
        file.flush()
        os.fsync(file.fileno())


def check_seal(path: Path) -> None:
    """Raise StoreError unless `path` is a whole, undamaged file of this version (its values aside)."""
    line = _read_line(path)
    version = line.get("version")
    if line.get("format") != FORMAT:
        raise StoreError(f"{path}: not a feature file of this project, or unfinished or damaged; run dvc repro")
    if version != VERSION:
        raise StoreError(
            f"{path}: written in version {version} of the format, this program reads version {VERSION}; "
            "run dvc repro to make it anew, or install the matching erc-fusion"
        )
    mend = "delete it and run dvc repro"
    try:
        expected, values = int(line["size"]), [(int(offset), int(length)) for offset, length in line["values"]]
    except (ValueError, KeyError, TypeError):
        raise StoreError(f"{path}: damaged; {mend}") from None
    size = path.stat().st_size
    if size != expected:
        raise StoreError(f"{path}: truncated: {size} bytes, expected {expected}; {mend}")
    if _hash_outside(path, values) != line.get("structure"):
        raise StoreError(f"{path}: damaged; {mend}")


def _read_line(path: Path) -> dict[str, Any]:
    """The seal's content; empty where there is none."""
    try:
        with path.open("rb") as file:
            line = json.loads(file.read(USER_BLOCK).split(b"\n")[0])
    except FileNotFoundError:
        raise StoreError(f"{path}: no such feature file; mend the path, or run dvc repro") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        return {}
    return line if isinstance(line, dict) else {}


def _hash_outside(path: Path, values: Sequence[tuple[int, int]]) -> str:
    """Hash (hex) of all bytes behind the user block that lie in none of the `values` regions."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        position = USER_BLOCK
        for offset, length in [*sorted(values), (path.stat().st_size, 0)]:
            file.seek(position)
            digest.update(file.read(max(0, offset - position)))
            position = offset + length
    return digest.hexdigest()
