"""Bytes and characters that an earlier conversion left broken, repaired; every repair is counted under its sentence.

And names that the disk spells in another way than a table or a release does.
"""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

from pipeline.errors import DataError, refuse_pipe
from pipeline.manifest import same_spelling

BYTES = "lines that were not UTF-8, read as cp1252"
CONTROLS = "texts with cp1252 punctuation that an earlier conversion had left as control characters"
HIDDEN_FILES = "files of another system (._*), left out"
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aiff", ".mp4", ".mkv", ".avi", ".mov", ".webm")
SURROGATES = "cells with half a character (a lone surrogate), now '?'"


class Repairs(Counter[str]):
    """How often each repair was made, by its sentence; and the encoding of text files that the user states, if any."""

    def __init__(self, encoding: str | None = None) -> None:
        super().__init__()
        self.encoding = encoding


def decode(path: Path, content: bytes, repaired: Repairs) -> str:
    """The text of the file at `path`.

    Raises:
        DataError: it holds NUL bytes, or is not of the encoding that is stated.
    """
    if repaired.encoding is not None:
        return decode_all(path, content, repaired.encoding)
    if b"\0" in content:
        raise DataError(
            f"{path}: holds NUL bytes; save it as UTF-8 text (UTF-16 is read with dataset.encoding: utf-16)"
        )
    return decode_lines(content, repaired)


def decode_all(path: Path, content: bytes, encoding: str) -> str:
    """The content of the file at `path` in the `encoding` that its user states.

    Raises:
        DataError: naming the first line that is not.
    """
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        line = content[: getattr(error, "start", 0)].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not {encoding} ({error}); fix dataset.encoding in params.yaml") from None


def decode_lines(content: bytes, repaired: Counter[str]) -> str:
    """UTF-8; lines that are not, or some of their bytes, are taken for cp1252, which copies of tables often mix in."""
    lines, others = [], []
    for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            lines.append(_decode_mixed(line))
            others.append(line)
    if others:
        guess = guess_encoding(others)
        all_of_them = len(others) > 1 and len(others) == sum(not line.isascii() for line in lines)
        shown = _decode_mixed(others[0]).strip()[:SHOWN] if all_of_them else ""
        doubt = f" ({shown!r}); if that is wrong, set dataset.encoding" if shown else ""
        said = BYTES + (f", but look like {guess}" if guess else doubt)
        alike = (known for known in repaired if known.startswith(f"{BYTES} (") and said.startswith(f"{BYTES} ("))
        repaired[next(alike, said)] += len(others)  # of many files one excerpt is enough
    return "\n".join(lines)


def _decode_mixed(line: bytes) -> str:
    """All of it as cp1252, or where most of it is UTF-8, the other bytes alone."""
    text = line.decode("utf-8", errors="surrogateescape")  # such a byte is U+DC00 and its value
    strange = {character for character in text if "\udc80" <= character <= "\udcff"}
    count = sum(text.count(character) for character in strange)
    if sum(not character.isascii() for character in text) <= 2 * count:
        return line.decode("cp1252", errors="replace")
    return text.translate({ord(one): bytes([ord(one) & 0xFF]).decode("cp1252", errors="replace") for one in strange})


# Encodings of tables besides UTF-8 and cp1252; of several that fit as well, the first one. Where a character has two
# bytes: the first bytes of the everyday ones, and the least second byte.
EVERYDAY = {
    "shift_jis": (range(0x88, 0x99), 0x40),
    "euc_jp": (range(0xB0, 0xD0), 0xA1),
    "euc_kr": (range(0xB0, 0xC9), 0xA1),
    "gbk": (range(0xB0, 0xD8), 0xA1),
    "big5": (range(0xA4, 0xC7), 0x40),
}
JAPANESE = ("shift_jis", "euc_jp")  # hardly a line is without kana
SINGLE = ("mac_roman", "cp850", "cp1250", "cp1251", "koi8_r", "cp866", "iso8859_5", "cp1253")
SAMPLE = 1 << 16  # bytes that are looked at
SHOWN = 60  # characters of a line
COMMON = set("оеаинтсрвлкαοιετσνηυρπκ")  # of Cyrillic and Greek text, more than half
WORD_ENDS = set("“”„‘’‚«»‹›…–—")
SIGNS = WORD_ENDS | set("€£°§©®•¿¡½¼²³µ×±\xa0")


def guess_encoding(lines: list[bytes]) -> str | None:
    """The encoding that suits `lines` far better than cp1252, with what they say in it; None where there is none."""
    content = b"\n".join(lines)[:SAMPLE]
    fits = {name: _fit(content, name) for name in ("cp1252", *EVERYDAY, *SINGLE)}
    best = max(fits, key=lambda name: fits[name])
    if fits["cp1252"] > 0.8 or fits[best] < max(0.6, fits["cp1252"] + 0.2):
        return None
    shown = content.decode(best, errors="replace").split("\n")[0].strip()[:SHOWN]
    return f"{best} ({shown!r}); if so, set dataset.encoding: {best}"


def _fit(content: bytes, encoding: str) -> float:
    """The share of characters outside ASCII that stand as people write them; 0 where bytes have no meaning."""
    text = content.decode(encoding, errors="replace" if encoding == "cp1252" else "ignore")
    lost = len(content) - len(text.encode(encoding, errors="replace"))
    places = [match.start() for match in re.finditer(r"[^\x00-\x7f]", text)]
    if not places or lost > len(content) // 1000:
        return 0.0
    share = sum(_is_plausible(text, place, encoding) for place in places) / len(places)
    return (
        share if encoding not in JAPANESE or any("\u3040" <= text[place] <= "\u30ff" for place in places) else share / 2
    )


def _is_plausible(text: str, place: int, encoding: str) -> float:
    character = text[place]
    before, after = text[place - 1 : place], text[place + 1 : place + 2]
    if encoding in EVERYDAY:
        return _is_everyday(character, encoding)
    if not character.isalpha():
        inside = before.isalpha() and after.isalpha()
        return float(character == "’" if inside else character in SIGNS)
    script = unicodedata.name(character, "").split(" ")[0]
    if (character.isupper() and before.islower()) or unicodedata.category(character) in ("Lm", "Lo"):
        return 0.0
    if script in ("CYRILLIC", "GREEK"):
        return 1.0 if character.lower() in COMMON and character.islower() else 0.6
    accents = [neighbour for neighbour in (before, after) if neighbour.isalpha() and not neighbour.isascii()]
    return 0.0 if len(accents) == 2 or character in "ƒ" else 1.0  # three accents in a row are of no language


def _is_everyday(character: str, encoding: str) -> float:
    """Of Chinese, Japanese and Korean text."""
    name = unicodedata.name(character, "")
    if name.startswith(("HIRAGANA", "KATAKANA")):
        return float(encoding in JAPANESE)
    if "\u3000" <= character <= "\u303f" or "\uff00" <= character <= "\uff5f":  # punctuation, wide letters
        return 1.0
    first, least = EVERYDAY[encoding]
    pair = character.encode(encoding, errors="replace")
    if name.startswith("HANGUL") != (encoding == "euc_kr") or len(pair) != 2:
        return 0.0
    return float(pair[0] in first and pair[1] >= least)


def read_lines(path: Path, repaired: Repairs) -> list[str]:
    """The lines of a text file of a release, without their ends.

    Raises:
        DataError: it cannot be read; also as `decode`.
    """
    try:
        refuse_pipe(path)
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); fix dataset.root, or the file") from None
    return [line.removesuffix("\r") for line in decode(path, content, repaired).split("\n")]


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


def as_on_disk(root: Path, path: PurePosixPath) -> str:
    """`path` as the disk spells it: case, kinds of blanks and composed or decomposed accents make no other name for
    people, and do for most disks.
    """
    found = root
    for part in path.parts:
        inside = found / part
        if not os.path.lexists(inside) and found.is_dir():
            spelled = _names_in(found, found.stat().st_mtime_ns)
            for spelling in (partial(unicodedata.normalize, "NFC"), _words):
                alike = spelled.get(spelling(part), ())
                inside = found / alike[0] if len(alike) == 1 else inside
                if alike:
                    break
        found = inside
    return found.relative_to(root).as_posix()


def folder_notes(root: Path, folders: Iterable[str]) -> list[str]:
    """That `folders` of a release, relative to the `root`, lie there under a name which is spelled in another way."""
    found = {folder: as_on_disk(root, PurePosixPath(folder)) for folder in folders}
    others = [f"'{there}' for '{folder}'" for folder, there in found.items() if there != folder]
    return [f"folders that the disk spells in another way than the release: {', '.join(others)}"] if others else []


def text_alone(root: Path, said: str) -> tuple[list[str], list[str]]:
    """The notes, and the warnings, on a release at `root` in which no recording was found where it should lie.

    It may be meant; hardly so where there are recordings in another place below the root.
    """
    said += ": every turn is its text alone"
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        sounds = [name for name in names if Path(name).suffix.lower() in SOUNDS and not name.startswith(".")]
        if sounds:
            place = (Path(folder) / min(sounds)).relative_to(root)
            fix = "lay them out as the release does (docs/data-sets.md)"
            return [], [f"{said}, but there are recordings in another place, such as {place}; {fix}"]
    return [said], []


@lru_cache(maxsize=8)
def _names_in(folder: Path, changed: int) -> Mapping[str, Sequence[str]]:
    """The names in a folder that was `changed` then, by their composed form and by what looks the same."""
    names: dict[str, list[str]] = defaultdict(list)
    for name in (path.name for path in folder.iterdir()) if os.access(folder, os.R_OK) else ():
        for spelling in {unicodedata.normalize("NFC", name), _words(name)}:
            names[spelling].append(name)
    return names


def _words(name: str) -> str:
    """What names of files share that look the same, with a blank between words: "1 11.wav" is not "11 1.wav"."""
    return " ".join(map(same_spelling, name.split()))
