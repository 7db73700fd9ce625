"""Bytes as people have them -> text: what copies of such files mix in is mended, and counted."""

from collections import Counter
from pathlib import Path

from pipeline.errors import DataError

MENDED_BYTES = "lines that were not UTF-8, read as cp1252"
MENDED_CONTROLS = "texts with cp1252 punctuation that an earlier conversion had left as control characters"


def decode_text(content: bytes, mended: Counter[str]) -> str:
    """UTF-8; a line that is not is taken for cp1252, which copies of such tables often mix in."""
    lines = []
    for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            lines.append(line.decode("cp1252", errors="replace"))
            mended[MENDED_BYTES] += 1
    return "\n".join(lines)


def mend_controls(text: str, mended: Counter[str]) -> str:
    """Characters U+0080 .. U+009F are cp1252 bytes that were decoded as Latin-1: give them their meaning back."""
    if not any("\x80" <= character <= "\x9f" for character in text):
        return text
    mended[MENDED_CONTROLS] += 1
    return "".join(
        character.encode("latin-1").decode("cp1252", errors="replace") if "\x80" <= character <= "\x9f" else character
        for character in text
    )


def read_lines(path: Path, mended: Counter[str]) -> list[str]:
    """The lines of a text file of a release, without their ends.

    Raises:
        DataError: it cannot be read, or holds NUL bytes.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); mend dataset.root, or the file") from None
    if b"\0" in content:
        raise DataError(f"{path}: holds NUL bytes; take the file from the release again (UTF-16 is not read)")
    return [line.removesuffix("\r") for line in decode_text(content, mended).split("\n")]
