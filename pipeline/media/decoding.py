"""Any container -> mono float32 samples at the encoder's rate.

PyAV decodes (its wheels carry FFmpeg), torchaudio resamples. Nothing here raises on a bad recording: what is wrong
with it comes back as issues, whose names `pipeline.manifest` explains.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from math import gcd, inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import torch


Channels = Literal["downmix", "center", "first"]

SHORT_SECONDS = 0.025  # one frame of wav2vec2: 400 samples at 16 kHz
CLIPPED_LEVEL = 0.999
CLIPPED_SHARE = 0.01
TRUNCATED_SECONDS = 0.1  # a gap to the header's length that codec delay does not explain
SAMPLE_RATES = range(1_000, 768_001)  # Hz; any other is a damaged header
FINEST_RATIO = 1_000  # steps of the resampler
HASH_DIGITS = 32  # hexadecimal
UNKNOWN_SIZE = 0x7FFFF000  # programs that write WAV to a pipe state this many bytes, or more
OGG_PAGE = 65_536  # bytes, at most


@dataclass(frozen=True)
class Recording:
    """A decoded recording, or the stretch of it that was asked for."""

    samples: np.ndarray  # (samples,) float32 mono
    sample_rate: int
    channels: int  # before mixing
    issues: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Stretch:
    """Seconds of a recording; None is its beginning, or its end."""

    start: float | None = None
    end: float | None = None

    @property
    def seconds(self) -> tuple[float, float]:
        """Sorts stretches by where they begin."""
        return self.start or 0.0, inf if self.end is None else self.end

    def first(self, rate: int) -> int:
        """Its first sample."""
        return round((self.start or 0.0) * rate)


def hash_file(path: Path) -> str:
    """Hash (hex) of the bytes of a recording, which says that it is another one; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:HASH_DIGITS]


def nothing(issue: str) -> Recording:
    """No samples, and why."""
    return Recording(np.empty(0, np.float32), 0, 0, [issue])


def decode(
    path: Path, channels: Channels = "downmix", start: float | None = None, end: float | None = None
) -> Recording:
    """Decode seconds `start` .. `end` of the first audio stream of `path`.

    An issue that leaves no usable sound comes with no samples.
    """
    ((_, recording),) = decode_stretches(path, channels, [Stretch(start, end)])
    return recording


def decode_stretches(
    path: Path, channels: Channels, stretches: Sequence[Stretch], progress: Callable[[], None] = lambda: None
) -> Iterator[tuple[Stretch, Recording]]:
    """Every stretch as `decode` gives it, from one pass over the file, in the order in which they end.

    `progress` is called at every decoded frame: a long recording may have no stretch to give for a while.

    Seeking would spare the pass, but what a decoder of AAC or Opus gives depends on the packets before.
    """
    import av  # not installed on machines that only encode cached audio or train

    if issue := _closed(path):
        yield from ((stretch, nothing(issue)) for stretch in stretches)
        return
    try:
        # a crafted playlist must not make the decoder open other places
        container = av.open(str(path.absolute()), options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, ValueError, UnicodeError):
        yield from ((stretch, nothing("undecodable")) for stretch in stretches)
        return
    with container:
        if not container.streams.audio:
            yield from ((stretch, nothing("no-sound-stream")) for stretch in stretches)
        elif container.streams.audio[0].codec_context is None:  # a codec that FFmpeg does not know
            yield from ((stretch, nothing("undecodable")) for stretch in stretches)
        else:
            yield from _decode_open(container, path, channels, stretches, progress)


def _closed(path: Path) -> str | None:
    """Why the system does not open `path` as a file; None where it does."""
    try:
        if not path.is_file():  # a pipe would have to be waited for
            return "missing-file"
        path.open("rb").close()
    except OSError as error:
        absent = error.errno in (errno.ENOENT, errno.ENAMETOOLONG)
        return "missing-file" if absent else f"unreadable ({error.strerror})"
    return None


def _decode_open(
    container: Any, path: Path, channels: Channels, stretches: Sequence[Stretch], progress: Callable[[], None]
) -> Iterator[tuple[Stretch, Recording]]:
    import av

    stream = container.streams.audio[0]
    waiting = [_Cut(stretch) for stretch in sorted(stretches, key=lambda s: s.seconds, reverse=True)]  # next one last
    running: list[_Cut] = []
    rate = count = position = 0
    broken = False
    try:
        for frame in container.decode(stream):
            progress()
            if frame.sample_rate not in SAMPLE_RATES or (rate and frame.sample_rate != rate):
                broken = True  # where the rate changes midway, what follows cannot be joined to what was read
                break
            rate, count = frame.sample_rate, max(count, frame.layout.nb_channels)
            position += frame.samples
            while waiting and waiting[-1].begins(position, rate):
                running.append(waiting.pop())
            if running:
                block = _mono(frame, channels)
                for cut in running:
                    cut.blocks.append(block)
                ended = [cut for cut in running if cut.ends(position, rate)]
                running = [cut for cut in running if not cut.ends(position, rate)]
                for cut in ended:
                    yield cut.stretch, cut.recording(position, rate, count, [])
                if not running and not waiting:
                    return
    except (av.error.FFmpegError, ValueError):
        broken = True
    declared = _declared_seconds(container, stream)
    lacks_its_end = _lacks_its_end(path, slack=int(TRUNCATED_SECONDS * (stream.bit_rate or 0) / 8))
    for cut in [*running, *waiting]:
        if not cut.blocks:
            yield cut.stretch, nothing("undecodable" if broken else "empty-audio")
            continue
        expected = declared if cut.stretch.end is None else cut.stretch.end
        missing = expected is not None and expected - position / rate > TRUNCATED_SECONDS
        issues = ["truncated"] if broken or missing or lacks_its_end else []
        yield cut.stretch, cut.recording(position, rate, count, issues)


@dataclass
class _Cut:
    """A stretch while it is being decoded."""

    stretch: Stretch
    blocks: list[np.ndarray] = field(default_factory=list)  # from the first one that reaches into it

    def begins(self, position: int, rate: int) -> bool:
        """Whether the samples up to `position` reach into it, or beyond it."""
        return position > self.stretch.first(rate) or self.ends(position, rate)

    def ends(self, position: int, rate: int) -> bool:
        return self.stretch.end is not None and position >= round(self.stretch.end * rate)

    def recording(self, position: int, rate: int, channels: int, issues: list[str]) -> Recording:
        samples = np.concatenate(self.blocks)
        self.blocks.clear()  # of an hour: gigabytes
        skipped = position - len(samples)
        last = position if self.stretch.end is None else round(self.stretch.end * rate)
        return judge(samples[self.stretch.first(rate) - skipped : last - skipped], rate, channels, issues)


def resampled_length(samples: int, rate: int, target_rate: int) -> int:
    """How many samples `resample` returns.

    >>> resampled_length(1024, 48000, 16000)
    342
    """
    divisor = gcd(rate, target_rate)
    return -(-samples * (target_rate // divisor) // (rate // divisor))


def resample(samples: np.ndarray, rate: int, target_rate: int) -> "torch.Tensor":
    """(samples,) at `rate` -> (samples,) float32 at `target_rate`, band-limited (windowed sinc).

    The filter grows with the ratio's denominator: rates without a common divisor, which no usual pair is, would need
    gigabytes. They are resampled by the nearest ratio of small numbers, off by less than 0.1 %.
    """
    import torch

    waveform = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    if rate == target_rate:
        return waveform
    ratio = Fraction(rate, target_rate).limit_denominator(FINEST_RATIO)
    resampled = _resampler(ratio.numerator, ratio.denominator)(waveform)
    missing = resampled_length(len(samples), rate, target_rate) - len(resampled)
    return torch.nn.functional.pad(resampled, (0, missing)) if missing else resampled


@lru_cache(maxsize=8)
def _resampler(rate: int, target_rate: int) -> "torch.nn.Module":
    from torchaudio.transforms import Resample

    return Resample(rate, target_rate)


def _mono(frame: Any, channels: Channels) -> np.ndarray:
    """One decoded frame as (samples,) float32 in [-1, 1]."""
    array = frame.to_ndarray()
    if not frame.format.is_planar:
        array = array.reshape(-1, frame.layout.nb_channels).T
    if array.dtype == np.uint8:
        array = array.astype(np.float32) - 128.0
        array /= 128.0
    elif array.dtype.kind == "i":
        array = array.astype(np.float32) / float(-np.iinfo(array.dtype).min)
    with np.errstate(over="ignore"):  # a float64 too large becomes infinite, which is an issue by itself
        array = array.astype(np.float32, copy=False)
    if channels == "downmix" or len(array) == 1:
        return array.mean(axis=0)
    return array[_channel_index(frame, channels)]


def _channel_index(frame: Any, channels: Channels) -> int:
    """The centre channel where there is one (dialogue in films), else the first."""
    names = [channel.name for channel in frame.layout.channels]
    return names.index("FC") if channels == "center" and "FC" in names else 0


def _declared_seconds(container: Any, stream: Any) -> float | None:
    """The length that the header states; None where there is none, or where FFmpeg guesses it from the bit rate."""
    if container.format.name == "aac":
        return None
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration and not container.streams.video:  # Matroska states only that of the whole
        return container.duration / 1_000_000
    return None


def _lacks_its_end(path: Path, slack: int) -> bool:
    """Whether a WAV file is shorter than its header says (by more than `slack` bytes), or an Ogg file lacks its last
    page. FFmpeg overlooks both.
    """
    try:
        opened = path.open("rb")
    except OSError:  # it vanished behind its decoder, which had it open
        return False
    with opened as file:
        head = file.read(12)
        size = file.seek(0, os.SEEK_END)
        if head[:4] == b"RIFF" and head[8:] == b"WAVE":
            stated = int.from_bytes(head[4:8], "little")
            return size + slack < stated + 8 and stated < UNKNOWN_SIZE
        if head[:4] != b"OggS":
            return False
        file.seek(max(0, size - OGG_PAGE))
        page = file.read().rpartition(b"OggS")[2]
    lacing = page[23 : 23 + page[22]] if len(page) > 22 else b""
    return len(page) < 23 + len(lacing) + sum(lacing) or not page[1] & 4  # flag 4: end of stream


def judge(samples: np.ndarray, rate: int, channels: int, issues: list[str]) -> Recording:
    """The samples with what is odd about them, or none where they cannot be used."""
    if not len(samples):
        return nothing("empty-audio")
    if not np.isfinite(samples).all():
        return nothing("not-finite")
    return Recording(samples, rate, channels, [*issues, *_oddities(samples, rate)])


def _oddities(samples: np.ndarray, rate: int) -> Iterator[str]:
    if len(samples) < SHORT_SECONDS * rate:
        yield "short"
    level = np.abs(samples)
    if not level.any():
        yield "silent"
    elif (level >= CLIPPED_LEVEL).mean() > CLIPPED_SHARE:
        yield "clipped"
