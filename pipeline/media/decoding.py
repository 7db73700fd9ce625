"""Any container -> mono float32 samples at the encoder's rate.

PyAV decodes (its wheels carry FFmpeg), torchaudio resamples. Nothing here raises on a bad recording: what is wrong
with it comes back as issues, whose names `pipeline.manifest` explains.
"""

import errno
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from math import gcd, inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.media.timeline import (
    JITTER_SECONDS,
    SAMPLE_RATES,
    TRUNCATED_SECONDS,
    Block,
    Channels,
    Kind,
    Timeline,
    UnheardError,
)

if TYPE_CHECKING:
    import torch


__all__ = [
    "SAMPLE_RATES",
    "Channels",
    "Recording",
    "Stretch",
    "decode",
    "decode_stretches",
    "judge",
    "nothing",
    "resample",
]

SHORT_SECONDS = 0.025  # one frame of wav2vec2: 400 samples at 16 kHz
CLIPPED_LEVEL = 0.999
CLIPPED_SHARE = 0.01
LATE_SECONDS = 0.1  # sound that starts later than this is named
CANCELLED = 0.1  # energy of a mix, to that of a mix of unrelated channels
NAMED_PLACES = 3  # of gaps or damage
FINEST_RATIO = 1_000  # steps of the resampler
HASH_DIGITS = 32  # hexadecimal


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

    def last(self, rate: int) -> float:
        """The sample behind it; infinite where it goes to the end."""
        return inf if self.end is None else round(self.end * rate)


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
    """Decode seconds `start` .. `end` of `path`, on its own clock (see `pipeline.media.timeline`).

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
    if issue := _closed(path):
        yield from ((stretch, nothing(issue)) for stretch in stretches)
        return
    issues: list[str] = []
    if channels == "auto":
        channels, issues = ("first", ["first-channel"]) if _cancels(path, progress) else ("downmix", [])
    timeline = Timeline(path, channels, progress)
    try:
        yield from _cut(timeline, stretches, issues)
    except UnheardError as error:
        yield from ((stretch, nothing(str(error))) for stretch in stretches)
    except FileNotFoundError:  # it vanished
        yield from ((stretch, nothing("missing-file")) for stretch in stretches)


def _cancels(path: Path, progress: Callable[[], None]) -> bool:
    """Whether mixing the channels of the whole recording loses most of it."""
    timeline = Timeline(path, "downmix", progress)
    mixed = heard = 0.0
    try:
        for block in timeline.blocks():
            mixed, heard = mixed + block.energy, heard + block.channels_energy
    except (UnheardError, FileNotFoundError):
        return False
    return _is_cancelled(mixed, heard, timeline.channel_count)


def _is_cancelled(mixed: float, heard: float, channels: int) -> bool:
    """Unrelated channels of energy E / channels each have a mix of energy E / channels ** 2."""
    return channels > 1 and mixed < CANCELLED * heard / channels**2


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


def _cut(timeline: Timeline, stretches: Sequence[Stretch], issues: list[str]) -> Iterator[tuple[Stretch, Recording]]:
    waiting = [_Cut(stretch) for stretch in sorted(stretches, key=lambda s: s.seconds, reverse=True)]  # next one last
    running: list[_Cut] = []
    for block in timeline.blocks():
        position, rate = timeline.position, timeline.rate
        while waiting and waiting[-1].begins(position, rate):
            running.append(waiting.pop())
        if running:
            for cut in running:
                cut.add(block, rate)
            ended = [cut for cut in running if cut.ends(position, rate)]
            running = [cut for cut in running if not cut.ends(position, rate)]
            for cut in ended:
                yield cut.stretch, cut.recording(timeline, issues)
            if not running and not waiting:
                return
    for cut in [*running, *waiting]:
        if not cut.blocks:
            yield cut.stretch, nothing("undecodable" if timeline.failed else "empty-audio")
            continue
        yield cut.stretch, cut.recording(timeline, issues, at_end=True)


@dataclass
class _Cut:
    """A stretch while it is being decoded."""

    stretch: Stretch
    blocks: list[np.ndarray] = field(default_factory=list)
    energy: float = 0.0
    channels_energy: float = 0.0

    def begins(self, position: int, rate: int) -> bool:
        """Whether the samples up to `position` reach into it, or beyond it."""
        return position > self.stretch.first(rate) or self.ends(position, rate)

    def ends(self, position: int, rate: int) -> bool:
        return position >= self.stretch.last(rate)

    def add(self, block: Block, rate: int) -> None:
        """What of the block lies in it."""
        self.energy += block.energy
        self.channels_energy += block.channels_energy
        first = max(self.stretch.first(rate) - block.first, 0)
        last = int(max(min(self.stretch.last(rate) - block.first, block.count), first))
        samples = np.zeros(last - first, np.float32) if block.samples is None else block.samples[first:last]
        self.blocks.append(samples)

    def recording(self, timeline: Timeline, issues: list[str], at_end: bool = False) -> Recording:
        samples = np.concatenate(self.blocks)
        self.blocks.clear()  # of an hour: gigabytes
        rate, channels = timeline.rate, timeline.channel_count
        found = [*issues, *timeline.issues]
        damage = self._places(timeline, "damaged")
        if at_end and self._lacks_its_end(timeline, damage):
            found.append("truncated")
        gaps = self._places(timeline, "gap")
        found += [f"{kind} {_written(places)}" for kind, places in (("damaged", damage), ("gap", gaps)) if places]
        judged = judge(samples, rate, channels, found)
        if timeline.channels == "downmix" and _is_cancelled(self.energy, self.channels_energy, channels):
            return replace(judged, issues=[*(i for i in judged.issues if i != "silent"), "antiphase (channels: first)"])
        return judged

    def _places(self, timeline: Timeline, kind: Kind) -> list[tuple[float, float]]:
        """Seconds of the marks that reach into it; what is late by less than usual counts as no gap."""
        rate = timeline.rate
        return [
            (mark.first / rate, mark.last / rate)
            for mark in timeline.marks
            if mark.kind == kind
            and (kind == "damaged" or mark.last - mark.first > (JITTER_SECONDS if mark.first else LATE_SECONDS) * rate)
            and mark.last > self.stretch.first(rate)
            and mark.first < self.stretch.last(rate)
        ]

    def _lacks_its_end(self, timeline: Timeline, damage: list[tuple[float, float]]) -> bool:
        reached = max([timeline.position / timeline.rate, *(last for _, last in damage)])
        if self.stretch.end is not None:
            return timeline.cut_off or self.stretch.end - reached > TRUNCATED_SECONDS
        return timeline.lacks_its_end(reached)


def _written(places: Sequence[tuple[float, float]]) -> str:
    """Seconds, to the tenth.

    >>> _written([(0.9985, 1.0449), (1.05, 1.07), (3.0, 4.5)])
    '1.0-1.1, 3.0-4.5 s'
    """
    joined: list[list[int]] = []  # tenths
    for first, last in places:
        tenths = [round(10 * first), max(round(10 * last), round(10 * first) + 1)]
        if joined and tenths[0] <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], tenths[1])
        else:
            joined.append(tenths)
    named = ", ".join(f"{first / 10:.1f}-{last / 10:.1f}" for first, last in joined[:NAMED_PLACES])
    return named + (f" and {len(joined) - NAMED_PLACES} more places" if len(joined) > NAMED_PLACES else " s")


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

    waveform = torch.from_numpy(np.require(samples, np.float32, ["C", "W"]))  # a copy where it is not torch's to write
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


def judge(samples: np.ndarray, rate: int, channels: int, issues: list[str]) -> Recording:
    """The samples with what is odd about them, or none where they cannot be used."""
    if not len(samples):
        return nothing("empty-audio")
    if not isfinite(np.dot(samples, samples)) and not np.isfinite(samples).all():
        return nothing("not-finite")
    return Recording(samples, rate, channels, [*issues, *_oddities(samples, rate)])


def _oddities(samples: np.ndarray, rate: int) -> Iterator[str]:
    if len(samples) < SHORT_SECONDS * rate:
        yield "short"
    level = max(samples.max(), -samples.min())
    if not level:
        yield "silent"
    elif level >= CLIPPED_LEVEL and (np.abs(samples) >= CLIPPED_LEVEL).mean() > CLIPPED_SHARE:
        yield "clipped"
