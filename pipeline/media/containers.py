"""What FFmpeg overlooks in a file: recordings joined end to end, samples with more bytes than bits, an end that is
missing, blocks of two sizes.
"""

import mmap
import os
import re
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

import numpy as np

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # format tags of WAV
WAVE = re.compile(rb"RIFF(.{4})WAVE", re.DOTALL)
LINKS = {b"OggS": b"OggS\0\2", b"fLaC": b"fLaC\0\0\0\x22"}  # what recordings begin with that are joined end to end
UNKNOWN_SIZE = 0x7FFFF000  # programs that write WAV to a pipe state this many bytes, or more
OGG_PAGE = 65_536  # bytes, at most
HEAD = 4_096  # bytes of a file in which its header states its size
W64 = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0"  # names of chunks: Sony's Wave64
ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")  # Advanced Systems Format, 3.1
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # 3.2


class Part:
    """Bytes `start` .. `end` of a file as FFmpeg reads them, with some of them set right."""

    def __init__(
        self, path: Path, start: int, end: int, fixes: dict[int, bytes] | None = None, gain: float = 1.0
    ) -> None:
        self.name, self.gain = str(path), gain
        self._file = path.open("rb")
        self._start, self._end, self._fixes = start, end, fixes or {}
        self._file.seek(start)

    def read(self, size: int) -> bytes:
        first = self._file.tell()
        content = bytearray(self._file.read(max(0, min(size, self._end - first))))
        for place, fix in self._fixes.items():
            for offset, byte in enumerate(fix, start=place - first):
                if 0 <= offset < len(content):
                    content[offset] = byte
        return bytes(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: self._start, os.SEEK_CUR: self._file.tell(), os.SEEK_END: self._end}[whence]
        return self._file.seek(base + offset) - self._start

    def close(self) -> None:
        self._file.close()

    def tell(self) -> int:
        return self._file.tell() - self._start


def read_parts(path: Path) -> Iterator[str | Part]:
    """The recordings in a file, one after the other: several where Ogg or FLAC files are joined, which FFmpeg cannot
    follow when rates change, or WAV files, of which it reads the first.
    """
    with path.open("rb") as file:
        head = file.read(4)
        size = os.fstat(file.fileno()).st_size
        starts = _links(file, LINKS[head]) if head in LINKS else _waves(file, size) if head == b"RIFF" else [0]
        spans = list(zip(starts, [*starts[1:], size], strict=True))
        fixed = [_fixes(file, *span) if head in (b"RIFF", b"RF64") else ({}, 1.0) for span in spans]
    for span, (fixes, gain) in zip(spans, fixed, strict=True):
        yield Part(path, *span, fixes, gain) if fixes or len(spans) > 1 else str(path.absolute())


def _links(file: IO[bytes], mark: bytes) -> list[int]:
    """Where recordings begin: pages that begin streams follow each other where several streams play at once."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        starts, page = [], content.find(mark)
        behind = -1  # of the last such page
        while page >= 0:
            if page != behind:
                starts.append(page)
            behind = page + 27 + (content[page + 26] if page + 27 <= len(content) else 0)
            behind += sum(content[page + 27 : behind])
            page = content.find(mark, page + len(mark))
    return [0, *starts[1:]]


def _waves(file: IO[bytes], size: int) -> list[int]:
    """Where WAV files begin, by the sizes that they state; by their first bytes behind one that was cut short."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        starts, found = [0], WAVE.match(content)
        while found:
            length = int.from_bytes(found[1], "little")
            behind = found.start() + 8 + length + length % 2
            if 0 <= behind - size <= 1:  # programs leave out the last even byte
                break
            found = WAVE.match(content, behind) or WAVE.search(content, found.end())
            starts += [found.start()] if found else []
    return starts


def _fixes(file: IO[bytes], start: int, end: int) -> tuple[dict[int, bytes], float]:
    """What sets a WAV file (at `start`) right, and by what its samples are to be multiplied."""
    fixes, gain = _padded_samples(file, start, end) or ({}, 1.0)
    return fixes | _stated_too_little(file, start, end), gain


def _stated_too_little(file: IO[bytes], start: int, end: int) -> dict[int, bytes]:
    """What has FFmpeg read a WAV file (at `start`) to its end whose sizes are too small, as those of more than 4 GB.

    It is one where the samples reach to the stated end, and behind that is neither a chunk, nor a tag, nor filling.
    """
    place, length = _chunks(file, start, end).get(b"data", (end, 0))
    file.seek(start)
    _, stated = struct.unpack("<4sI", file.read(8).ljust(8, b"\0"))
    behind = place + length
    file.seek(behind)
    rest = file.read(HEAD)
    named = re.match(rb"\0{0,8}([ -~]{3})", rest)
    if not length or abs(start + 8 + stated - behind) > 1 or len(rest) < HEAD or named or len(set(rest)) == 1:
        return {}
    return {place - 4: b"\xff\xff\xff\xff"}  # which is read as "to the end"


def _chunks(file: IO[bytes], start: int, end: int) -> dict[bytes, tuple[int, int]]:
    """The chunks of a WAV file up to its samples: where each begins, behind its name and length, and its length."""
    chunks, place = {}, start + 12
    while place + 8 <= end and b"data" not in chunks:
        file.seek(place)
        name, length = struct.unpack("<4sI", file.read(8))
        chunks[name] = (place + 8, length)
        place += 8 + length + length % 2
    return chunks


def _padded_samples(file: IO[bytes], start: int, end: int) -> tuple[dict[int, bytes], float] | None:
    """What sets a WAV header (at `start`) right whose samples have more bytes than bits, such as 24 bits in 32, and by
    what these are to be multiplied; None for any other. FFmpeg takes these for floats, or for narrower samples.

    The standard has such samples at the upper end of their bytes; many programs have them at the lower end.
    """
    chunks = _chunks(file, start, end)
    if not {b"fmt ", b"data"} <= set(chunks):
        return None
    (header, _), (samples, length) = chunks[b"fmt "], chunks[b"data"]
    file.seek(header)
    form = file.read(26).ljust(26, b"\0")
    tag, channels, _, _, frame_bytes, bits, _, valid_bits, _, subformat = struct.unpack("<HHIIHHHHIH", form)
    width = frame_bytes // max(channels, 1)
    fixes = {header + 14: struct.pack("<H", 8 * width)}
    if tag == EXTENSIBLE:
        tag, bits = subformat, valid_bits or bits
        fixes[header + 18] = fixes[header + 14]
    if tag != PCM or not 2 <= width <= 4 or not 0 < bits <= 8 * (width - 1):
        return None
    place = file.seek(samples)
    last = min(place + length, end) if length else end
    while piece := file.read(min(width << 16, last - file.tell())):
        whole = np.zeros((len(piece) // width, 4), np.uint8)
        whole[:, 4 - width :] = np.frombuffer(piece, np.uint8, len(whole) * width).reshape(-1, width)
        values = whole.view("<i4")[:, 0] >> (32 - 8 * width)
        if (values & 0xFF).any():  # the lower end is in use
            if (np.abs(values) <= 1 << (bits - 1)).all():
                return fixes, 2.0 ** (8 * width - bits)
            return fixes | {header: struct.pack("<H", FLOAT)}, 2.0**-23  # Cool Edit's floats of 24 bits
    return fixes, 1.0


def lacks_its_end(part: str | Part, slack: int) -> bool:
    """Whether a recording is shorter than its header says (by more than `slack` bytes), or lacks its last Ogg page.
    FFmpeg overlooks both.
    """
    if isinstance(part, str):
        path = Path(part)
        if not path.is_file():  # it vanished behind its decoder, which had it open
            return False
        with closing(Part(path, 0, path.stat().st_size)) as whole:
            return lacks_its_end(whole, slack)
    part.seek(0)
    head = part.read(HEAD)
    size = part.seek(0, os.SEEK_END)
    if not head.startswith(b"OggS"):
        return size + slack < _stated_size(head)
    part.seek(max(0, size - OGG_PAGE))
    page = part.read(OGG_PAGE).rpartition(b"OggS")[2]
    lacing = page[23 : 23 + page[22]] if len(page) > 22 else b""
    return len(page) < 23 + len(lacing) + sum(lacing) or not page[1] & 4  # flag 4: end of stream


def is_one_page(part: str | Part) -> bool:
    """Whether the sound of an Ogg recording is a single page, which ends it."""
    if isinstance(part, str):
        path = Path(part)
        with closing(Part(path, 0, path.stat().st_size)) as whole:
            return is_one_page(whole)
    before, place, ends = part.tell(), part.seek(0), False
    while len(page := part.read(27)) == 27 and page.startswith(b"OggS"):
        lacing = part.read(page[26])
        if int.from_bytes(page[6:14], "little", signed=True) > 0:  # samples to its end; 0 of headers
            ends = bool(page[5] & 4)
            break
        place = part.seek(place + len(page) + len(lacing) + sum(lacing))
    part.seek(before)
    return ends


def late_samples(samples: int) -> int:
    """By how many samples FFmpeg may stamp a Vorbis frame late; 0 where it stamps it right.

    A frame is a quarter of its block and a quarter of the one before, which are of two sizes, powers of two. Of a short
    block behind a long one FFmpeg counts back from the end as if both were short. The difference is an odd multiple of
    a quarter of a short block, and less than such a frame, so no packets that are lost make it up.

    >>> [late_samples(size) for size in (576, 384, 128, 1024)]  # blocks of 256 and 2,048; of 512 and 1,024; alike
    [448, 128, 0, 0]
    """
    half_of_short = 2 * samples & -2 * samples
    half_of_long = 2 * samples - half_of_short
    return samples - half_of_short if half_of_long and half_of_long & (half_of_long - 1) == 0 else 0


def _stated_size(head: bytes) -> int:
    """The bytes that the header of a WAV, AVI, Wave64 or ASF (WMA, WMV) file states; 0 where it states none."""
    if head.startswith(b"RIFF"):
        stated = int.from_bytes(head[4:8], "little") + 8
        return stated if stated < UNKNOWN_SIZE + 8 else 0
    if head.startswith(W64):
        return int.from_bytes(head[16:24], "little", signed=True)
    place = head.find(ASF_PROPERTIES) if head.startswith(ASF) else -1
    return int.from_bytes(head[place + 40 : place + 48], "little") if place >= 0 else 0
