"""Bytes and characters that an earlier conversion left broken, repaired; every repair is counted under its sentence."""

from collections import Counter
from pathlib import Path

from pipeline.errors import DataError

BYTES = "lines that were not UTF-8, read as cp1252"
CONTROLS = "texts with cp1252 punctuation that an earlier conversion had left as control characters"
SURROGATES = "cells with half a character (a lone surrogate), now '?'"


def decode_lines(content: bytes, repaired: Counter[str]) -> str:
    """UTF-8; a line that is not is taken for cp1252, which copies of tables often mix in."""
    lines = []
    for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            lines.append(line.decode("cp1252", errors="replace"))
            repaired[BYTES] += 1
    return "\n".join(lines)


def read_lines(path: Path, repaired: Counter[str]) -> list[str]:
    """The lines of a text file of a release, without their ends.

    Raises:
        DataError: it cannot be read, or holds NUL bytes.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); fix dataset.root, or the file") from None
    if b"\0" in content:
        raise DataError(f"{path}: holds NUL bytes; take the file from the release again (UTF-16 is not read)")
    return [line.removesuffix("\r") for line in decode_lines(content, repaired).split("\n")]


def repair_controls(text: str, repaired: Counter[str]) -> str:
    """Characters U+0080 .. U+009F are cp1252 bytes that were decoded as Latin-1: give them their meaning back."""
    if not any("\x80" <= character <= "\x9f" for character in text):
        return text
    repaired[CONTROLS] += 1
    return "".join(
        character.encode("latin-1").decode("cp1252", errors="replace") if "\x80" <= character <= "\x9f" else character
        for character in text
    )


def fix_surrogates(text: str, repaired: Counter[str]) -> str:
    """Half a character, which JSON may escape, has no form in UTF-8: it becomes '?'."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    if whole != text:
        repaired[SURROGATES] += 1
    return whole
