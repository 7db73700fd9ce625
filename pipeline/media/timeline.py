"""The sound of a file on the file's own clock, which is the one that `ffmpeg -ss 3 -to 4` reads.

Zero is the file's start time, that of its earliest stream. Where a stream starts late, packets are muted or lost, or
time stamps jump, there is silence, so that every sound keeps its time. A packet that cannot be decoded costs itself: it
is silence too, and named, and decoding goes on behind it.
"""

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from math import isfinite
from pathlib import Path
from sys import maxsize
from typing import Any, Literal

import numpy as np

from pipeline.media.containers import Part, is_one_page, lacks_its_end, late_samples, read_parts

Channels = Literal["downmix", "center", "first", "auto"]

SAMPLE_RATES = range(1_000, 768_001)  # Hz; any other is a damaged header
JITTER_SECONDS = 0.01  # of time stamps; the packets of usual codecs are longer, so that a lost one is more than this
ROUNDED_SECONDS = 0.002  # of time stamps in milliseconds, as Matroska has them, and of their start
RESTART_SECONDS = 1.0  # a jump back by more is another recording behind this one; by less, packets overlap
LONGEST_GAP_SECONDS = 3 * 3600.0  # a longer one is a jump of the clock
BROADCAST_GAP_SECONDS = 10.0  # as ffmpeg has it for formats whose clocks do jump
SEAM_SECONDS = 0.1  # the same, of jumps back
TRUNCATED_SECONDS = 0.1  # a gap to the header's length that codec delay does not explain
SAME_BYTES = 64  # by which a packet is found in its file
READ_ERRORS = 16  # in a row, until the rest of a file is given up
AVI_SHARE = 0.75  # of the length that AVI headers state, which counts chunks that were left out
STAMPED = ("flac", "wv")  # of the formats without an index, those whose frames say their time
TAGS = (b"ID3", b"TAG", b"APETAGEX")  # not sound, where MP3 files are joined
SUMMED = ("flac", "ac3", "eac3", "wavpack", "tta")  # codecs with checksums, which FFmpeg ignores unless it is asked
INTEGERS_OF_64 = {"s64": "i8", "s64p": "i8"}  # which PyAV does not know
SURROUND = ["FL", "FR", "FC", "LFE", "BL", "BR"]  # of 5.1
# they have FFmpeg open other files (of a.mlv: a.m00 and so on); and pictures
REFUSED = {"concat", "concatf", "hls", "applehttp", "dash", "imf", "webm_dash_manifest", "sdp", "rtp", "rtsp", "sap"}
REFUSED |= {"image2", "image2pipe", "vobsub", "mlv"}

Kind = Literal["gap", "damaged"]


@dataclass(slots=True)  # frozen, one for every packet would take time
class Block:
    """Samples that follow those of the block before, or silence."""

    first: int  # place on the clock
    count: int
    samples: np.ndarray | None = None  # (count,) float32; None: silence that the file does not hold
    energy: float = 0.0  # sum of squares of `samples`
    channels_energy: float = 0.0  # the same of all channels before they were mixed


@dataclass(frozen=True)
class Mark:
    """Where there is silence because sound is missing, in samples."""

    kind: Kind
    first: int
    last: int


class UnheardError(Exception):
    """No sound can be read; the issue that says why."""


@dataclass
class Timeline:
    """The sound of one file. Its fields are filled while `blocks` is read."""

    path: Path
    channels: Channels
    progress: Callable[[], None] = lambda: None  # called at every packet
    rate: int = 0  # of the first frame; what follows at another rate is resampled
    channel_count: int = 0
    position: int = 0  # samples read
    marks: list[Mark] = field(default_factory=list)
    issues: list[str] = field(default_factory=list)  # of the file as a whole
    expected: float | None = None  # seconds that the file states
    slack: float = 0.0  # seconds of its longest frame
    failed: bool = False  # the last of it could not be read
    cut_off: bool = False  # the last packet is incomplete, or the file is shorter than its header says
    exact: bool = True  # samples are stored as numbers, so that NaN is the file's own

    def blocks(self) -> Iterator[Block]:
        """The sound from the clock's zero to its end.

        Raises:
            UnheardError: the file cannot be opened, or holds no sound.
        """
        unheard: UnheardError | None = None
        for part in read_parts(self.path):
            yield from self._bridge()
            try:
                container, duration_is_known, errors = _open(part)
                with container:
                    stream = self._choose(container)
                    clock = _Clock(self.path, container, stream, self.position, errors)
                    if clock.vorbis and stream.duration and is_one_page(part):
                        clock.take_one_page(stream)
                    self.expected = clock.end_seconds(container, stream, self.rate) if duration_is_known else None
                    yield from self._read(container, stream, clock, getattr(part, "gain", 1.0))
                    self._end(clock, part)
            except UnheardError as error:
                self.cut_off, self.expected, unheard = True, None, error
            finally:
                if isinstance(part, Part):
                    part.close()
        if unheard and not self.rate:
            raise unheard

    def lacks_its_end(self, reached: float) -> bool:
        """Whether the recording that ends at second `reached` was cut short."""
        missing = (self.expected or 0.0) - reached
        return self.cut_off or missing > max(TRUNCATED_SECONDS, self.slack)

    def _bridge(self) -> Iterator[Block]:
        """Silence for what the recording before lacks at its end, so that the next one keeps its time. Where nothing
        says how much that is, the seam is marked.
        """
        end = max((mark.last for mark in self.marks), default=0)
        if end <= self.position and self.lacks_its_end(self.position / self.rate if self.rate else 0.0):
            stated = round((self.expected or 0.0) * self.rate)
            end = stated if self.position < stated < self.position + LONGEST_GAP_SECONDS * self.rate else 0
            self.marks.append(Mark("damaged", self.position, max(end, self.position + 1)))
        self.cut_off = False
        if self.rate and end > self.position:
            first, self.position = self.position, end
            yield Block(first, end - first)

    def _choose(self, container: Any) -> Any:
        """The audio stream that players take: the default one, else the first that can be decoded."""
        from av.stream import Disposition

        streams = container.streams.audio
        known = [stream for stream in streams if stream.codec_context is not None]
        if not known:  # a codec that FFmpeg does not know
            raise UnheardError("undecodable" if streams else "no-sound-stream")
        defaults = [stream for stream in known if stream.disposition & Disposition.default]
        chosen = (defaults or known)[0]
        if len(streams) > 1 and len(defaults) != 1:
            self.issues = [f"stream {streams.index(chosen) + 1} of {len(streams)}"]
        count = chosen.layout.nb_channels
        issue = f"channel 1 of {count}"
        if self.channels == "center" and count > 2 and _centre(chosen.layout) is None and issue not in self.issues:
            self.issues.append(issue)
        return chosen

    def _read(self, container: Any, stream: Any, clock: "_Clock", gain: float) -> Iterator[Block]:
        self.exact = stream.codec_context.name.startswith("pcm_")
        if stream.codec_context.name in SUMMED:
            stream.codec_context.options = {"err_detect": "crccheck+explode"}
        for packet, frames in _decoded(container, stream):
            self.progress()
            clock.see(packet, frames)
            for frame in frames or ():
                yield from self._place(frame, clock, gain)
        if clock.resampler:
            rest = clock.resample(None, 0, self.rate)
            self.position += len(rest)
            yield Block(self.position - len(rest), len(rest), rest)

    def _place(self, frame: Any, clock: "_Clock", gain: float) -> Iterator[Block]:
        """A frame where it belongs, behind silence where there is a gap."""
        if frame.sample_rate not in SAMPLE_RATES:
            clock.drop()
            return
        with np.errstate(over="ignore", invalid="ignore"):  # a float64 too large becomes infinite, which is an issue
            samples, heard, count = _mono(frame, self.channels)
            if gain != 1:
                samples, heard = samples * np.float32(gain), heard * gain * gain
            energy = float(np.dot(samples, samples))
        if not self.exact and not isfinite(energy):  # what a decoder makes of damage
            clock.drop()
            return
        rate, size = frame.sample_rate, len(samples)
        self.channel_count = max(self.channel_count, count)
        self.rate = self.rate or rate
        self.slack = max(self.slack, size / rate)
        at = clock.place(frame, self.position, self.rate)
        if at > self.position:
            yield self._silence(at - self.position, "damaged" if clock.accuse() else "gap")
        clock.placed(size)
        if rate != self.rate or clock.resampler:
            samples = clock.resample(samples, rate, self.rate)
        if at < self.position:
            samples = samples[self.position - at :]
        samples = samples[: max(0, clock.last - self.position)]
        if len(samples):
            self.position += len(samples)
            yield Block(self.position - len(samples), len(samples), samples, energy, heard)

    def _silence(self, count: int, kind: Kind) -> Block:
        self.marks.append(Mark(kind, self.position, self.position + count))
        self.position += count
        return Block(self.position - count, count)

    def _end(self, clock: "_Clock", part: str | Part) -> None:
        """What is known of the end once it is there."""
        slack = int(TRUNCATED_SECONDS * clock.bytes_per_second)
        self.cut_off = clock.partial or clock.short or lacks_its_end(part, slack)
        self.failed = clock.met_trouble()
        if self.failed and not clock.partial:
            lost = clock.lost_samples()
            if self.expected and not clock.fragmented:
                missing = round(self.expected * self.rate) - self.position
            else:
                missing = clock.lost_samples(clock.unread_bytes())
            if 2 * lost >= missing > 0:  # all of it is there, and damaged
                self.marks.append(Mark("damaged", self.position, self.position + missing))
            else:
                self.cut_off = True


class _Clock:
    """Where the frames of a stream lie on the clock of their file."""

    def __init__(self, path: Path, container: Any, stream: Any, base: int, errors: int) -> None:
        from av import logging
        from av.format import Flags

        flags, name = container.format.flags, container.format.name
        self._tick = float(stream.time_base)  # seconds
        self._base = base  # samples before this file, where several are joined
        self._origin = (container.start_time or 0) / 1e6
        self._jumps = bool(flags & Flags.ts_discont.value)
        self._broadcast = name in ("mpegts", "mpeg")
        self.fragmented = "mp4" in name and not stream.frames  # of which FFmpeg knows the fragments that it met
        self._stored = name == "matroska,webm"  # ffmpeg before version 8: blocks count from the first one
        # elsewhere FFmpeg makes the time stamps by adding up rounded durations
        self._stamped = not flags & Flags.generic_index.value or self._jumps or name in STAMPED
        self._packet_seconds = 0.0  # as FFmpeg states it
        self.vorbis = stream.codec_context.name == "vorbis"
        self._page_seconds: float | None = None
        self.last = maxsize  # the sample behind its end
        self._logged = logging.get_last_error
        self._errors = self._errors_at_frame = self._logged()[0]
        self._size: int = container.size  # bytes
        self._content: mmap.mmap | None = None
        if name == "aac":  # without a container
            with path.open("rb") as file:
                self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._packets = self._frames = self._lost_bytes = self._tag_end = self._read_bytes = 0
        self._mean_bytes = self._mean_samples = 0.0  # of the last packets
        self._sync = b""
        self._sizes: dict[bytes, int] | None = {} if name == "mp3" else None  # header -> bytes of such a frame
        self.short = False  # the last packet is; FFmpeg makes sound of it all the same
        self._stamp: int | None = None  # of the frame before
        self.frame_samples = 0
        self.bytes_per_second = (stream.bit_rate or 0) / 8
        self.troubled = False  # damage was met since the last frame
        if name == "ogg" and self._errors > errors and self._origin > 0:  # the first page of sound is lost
            self._origin, self.troubled = 0.0, True
        self.partial = False  # what was met is the beginning of a packet
        self.resampler: Any = None

    def end_seconds(self, container: Any, stream: Any, rate: int) -> float | None:
        """When the header says that the stream ends; None where there is no header that does."""
        base, whole = self._base / rate if rate else 0.0, None
        if container.duration:  # Matroska counts it from zero, FFmpeg from the start
            whole = container.duration / 1e6 - (self._origin if self._stored else 0.0)
        if stream.duration and stream.time_base:
            start = float((stream.start_time or 0) * stream.time_base) - self._origin
            late = 0.0 if container.format.name == "asf" else max(0.0, start)  # whose streams have the file's duration
            end = late + float(stream.duration * stream.time_base)
            end = end if whole is None else min(end, whole)
            return base + end * (AVI_SHARE if container.format.name == "avi" else 1.0)
        return None if whole is None or container.streams.video else base + whole

    def take_one_page(self, stream: Any) -> None:
        """The first block of Vorbis is no sound, but FFmpeg counts it where one page holds all: it stamps all others
        late, and cuts off too much at the end, or nothing. Here both follow from the page's length.
        """
        from av.codec.context import Flags2

        stream.codec_context.flags2 |= Flags2.skip_manual  # which would pass over the first block
        self._page_seconds = float(stream.duration * stream.time_base)

    def see(self, packet: Any, frames: list[Any] | None) -> None:
        """Take note of a packet before its frames: None where it could not be decoded, or not read."""
        if packet is not None and not self._packets and self._stored and packet.pts is not None:
            self._origin = min(self._origin, float(packet.pts * packet.time_base))
        if packet is not None and packet.size:
            self._follow(packet)
        self._packets += 1
        if packet is not None and packet.time_base:
            self._packet_seconds = float((packet.duration or 0) * packet.time_base)
        if packet is None:
            self.troubled = True
        elif frames is None:
            self._note_damage(bytes(packet), packet.pos or 0, packet.is_corrupt)
        elif packet.size:
            weight = 1 / min(self._packets, 16)
            self._mean_bytes += (packet.size - self._mean_bytes) * weight
            self._mean_samples += (sum(frame.samples for frame in frames) - self._mean_samples) * weight
            self._sync = self._sync or bytes(packet)[:1]
            if self._sizes is not None:
                self.short = packet.size < self._sizes.setdefault(bytes(packet)[1:3], packet.size)
            self.troubled = self.troubled or packet.is_corrupt

    def _follow(self, packet: Any) -> None:
        """Where in the file a packet ends. FFmpeg does not count what it passes over in raw AAC: that is looked for."""
        if self._content is None:
            self._read_bytes = max(self._read_bytes, (packet.pos or 0) + packet.size)
            return
        behind, at = self._read_bytes, self._content.find(bytes(packet)[:SAME_BYTES], self._read_bytes)
        if at > behind and self._packets:
            self._note_damage(self._content[behind:at], behind, False)
        self._read_bytes = max(behind, at + packet.size)

    def _note_damage(self, content: bytes, position: int, is_corrupt: bool) -> None:
        if content.startswith(TAGS):
            sizes = content[6:10] if content.startswith(b"ID3") else b""
            self._tag_end = (
                position + 10 + sum((byte & 127) << shift for byte, shift in zip(sizes, (21, 14, 7, 0), strict=False))
            )
        if self._tag_end > position:
            return
        begins = self._stamped or content.startswith(self._sync)
        alone = not self._stamped and begins and not self.troubled and len(content) < 2 * self._mean_bytes
        self.partial = is_corrupt or alone
        self.troubled = self.troubled or begins or len(content) >= self._mean_bytes
        self._lost_bytes += len(content)

    def drop(self) -> None:
        """A frame is left out that cannot be sound."""
        self.troubled = True
        self._lost_bytes += round(self._mean_bytes)

    def unread_bytes(self) -> int:
        """How many there are behind the last packet."""
        return max(0, self._size - self._read_bytes)

    def lost_samples(self, more: int = 0) -> int:
        """How many the packets held that could not be decoded, and so many `more` bytes, judged by their size: whole
        frames.
        """
        if not self._lost_bytes or not self._mean_bytes:
            return 0
        samples = (self._lost_bytes + more) / self._mean_bytes * self._mean_samples
        return round(samples / max(self.frame_samples, 1)) * self.frame_samples

    def place(self, frame: Any, position: int, rate: int) -> int:
        """The place of its first sample; `position` where it follows the frame before."""
        stamp = frame.pts
        if not self._stamped:
            return position + self.lost_samples()
        if stamp is None or stamp == self._stamp:  # some writers stamp nothing, or everything alike
            return position
        self._stamp = stamp
        late = late_samples(frame.samples) / frame.sample_rate if self.vorbis else 0.0
        misjudged = frame.samples / frame.sample_rate - self._packet_seconds
        misjudged = late if abs(misjudged - late) < self._tick else 0.0
        seconds = stamp * self._tick - misjudged
        if self._page_seconds and not self._frames:
            self._origin = seconds + self._packet_seconds
            self.last = self._base + round(self._page_seconds * rate)
        at = self._base + round((seconds - self._origin) * rate)
        if at < position == self._base:  # before the clock begins
            return at
        ahead = (at - position) / rate
        longest = BROADCAST_GAP_SECONDS if self._broadcast else LONGEST_GAP_SECONDS
        restarts = -ahead > (SEAM_SECONDS if self._jumps else RESTART_SECONDS)
        if self._frames and (restarts or ahead > longest):
            self._origin += ahead
            return position
        if late and abs(ahead - late) < ROUNDED_SECONDS:  # Matroska copied from Ogg states the right length with it
            return position
        # the label of a first frame that lost its priming is rounded
        second = self._frames == 1 and frame.samples != self.frame_samples and at > position
        return at if abs(ahead) > JITTER_SECONDS or not self._frames or second else position

    def placed(self, samples: int) -> None:
        """A frame was placed: the damage before it is settled."""
        self._frames += 1
        self.frame_samples = samples
        self._lost_bytes = 0
        self.troubled = self.partial = False
        self._errors_at_frame = self._logged()[0]

    def accuse(self) -> bool:
        """Whether a gap before this frame comes of damage: it was met, or FFmpeg logged an error since the last gap."""
        before, self._errors = self._errors, self._logged()[0]
        return self.troubled or self._errors > before

    def met_trouble(self) -> bool:
        """Whether there was damage behind the last frame."""
        return self.troubled or self._logged()[0] > self._errors_at_frame

    def resample(self, samples: np.ndarray | None, rate: int, target_rate: int) -> np.ndarray:
        """(samples,) at `rate` -> at `target_rate`; None gives what is left in the filter."""
        import av

        flushed = []
        if self.resampler and (samples is None or rate != self.resampler[0]):
            flushed, self.resampler = self.resampler[1].resample(None), None
        if samples is not None:
            self.resampler = self.resampler or (rate, av.AudioResampler("fltp", "mono", target_rate))
            frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
            frame.sample_rate = rate
            flushed += self.resampler[1].resample(frame)
        return np.concatenate([np.empty(0, np.float32), *(frame.to_ndarray()[0] for frame in flushed)])


@lru_cache(maxsize=1)
def _readable() -> str:
    import av

    return ",".join(sorted(av.formats_available - REFUSED))


def _decoded(container: Any, stream: Any) -> Iterator[tuple[Any, list[Any] | None]]:
    """Every packet with its frames, None where it cannot be decoded; no packet where one cannot be read."""
    import av

    packets, errors = container.demux(stream), 0
    while errors < READ_ERRORS:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            errors += 1
            packets = container.demux(stream)
            yield None, None
            continue
        if packet is None:
            return
        errors = 0
        try:
            frames = packet.decode()
        except (av.error.FFmpegError, ValueError):
            frames = None if packet.size else []
        yield packet, frames


def _open(part: str | Part) -> tuple[Any, bool, int]:
    """The container, whether its header states a duration (else FFmpeg guesses one from the bit rate), and how many
    errors FFmpeg had logged before. A crafted playlist must not make FFmpeg open other files or places.
    """
    import av  # not installed on machines that only encode cached audio or train

    av.logging.set_skip_repeated(False)  # of the file before, too
    av.logging.set_level(av.logging.WARNING)
    errors = av.logging.get_last_error()[0]
    try:
        with av.logging.Capture() as logged:
            container = av.open(part, options={"protocol_whitelist": "file", "format_whitelist": _readable()})
    except (av.error.FFmpegError, ValueError, UnicodeError):
        raise UnheardError("undecodable") from None
    finally:
        av.logging.set_level(av.logging.PANIC)  # from here errors are counted, and nothing is passed on
    return container, not any("from bitrate" in message for _, _, message in logged), errors


def _mono(frame: Any, channels: Channels) -> tuple[np.ndarray, float, int]:
    """One decoded frame as (samples,) float32 in [-1, 1], and the energy of all channels and their number."""
    from av.audio.frame import format_dtypes

    kind = np.dtype((format_dtypes | INTEGERS_OF_64)[frame.format.name])
    planes = [np.frombuffer(plane, kind) for plane in frame.planes]  # frame.to_ndarray() would copy them
    if not frame.format.is_planar:
        count = frame.layout.nb_channels
        planes = [planes[0][channel : count * frame.samples : count] for channel in range(count)]
    sounds = [_floats(plane[: frame.samples]) for plane in planes]
    if len(sounds) == 1:
        return sounds[0], 0.0, 1
    heard = float(sum(np.dot(sound, sound) for sound in sounds))
    if channels != "downmix":
        return sounds[_channel_index(frame, channels)], heard, len(sounds)
    samples = sounds[0] + sounds[1]
    for sound in sounds[2:]:
        samples += sound
    samples /= len(sounds)
    return samples, heard, len(sounds)


def _floats(plane: np.ndarray) -> np.ndarray:
    """(samples,) as they are stored -> float32 in [-1, 1]."""
    if plane.dtype == np.uint8:
        return (plane.astype(np.float32) - 128.0) / 128.0
    if plane.dtype.kind == "i":
        return plane.astype(np.float32) / float(-np.iinfo(plane.dtype).min)
    return plane.astype(np.float32, copy=False)


def _channel_index(frame: Any, channels: Channels) -> int:
    """The centre channel where there is one (dialogue in films), else the first."""
    return (channels == "center" and _centre(frame.layout)) or 0


def _centre(layout: Any) -> int | None:
    """The place of the centre channel, where it has one. Six channels without names are 5.1, as ffmpeg has it."""
    names = [channel.name for channel in layout.channels]
    if len(names) == len(SURROUND) and layout.name == f"{len(names)} channels":  # without names
        names = SURROUND
    return names.index("FC") if "FC" in names else None
