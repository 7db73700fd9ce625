"""Recordings as an encoder wants them: utterances in any order, every recording decoded once.

Encoders take clips by length, so the turns of one long recording are asked for in no order of its own. Decoding it from
its start for each of them would take time that grows with the square of its length: all of its turns are cut at the
first request, and lie in a nameless scratch file until they are asked for, 0.23 GB for an hour at 16 kHz. The file goes
when the work does, even if it is killed.
"""

import os
import tempfile
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import IO, TYPE_CHECKING

import numpy as np

from pipeline.errors import ClipError
from pipeline.manifest import Source
from pipeline.media.decoders import Decoders
from pipeline.media.decoding import Channels, Recording, Stretch, hash_file, resample, resampled_length
from pipeline.store import writing

if TYPE_CHECKING:
    import torch


AGAIN = "run pipeline-prepare again, or dvc repro"


def encoder_samples(utterance: Source, sample_rate: int) -> int:
    """How many samples the utterance has at the encoder's rate; 0 where there is no audio."""
    if not utterance.samples or not utterance.sample_rate:
        return 0
    return resampled_length(utterance.samples, utterance.sample_rate, sample_rate)


def stretch_of(utterance: Source) -> Stretch:
    """The part of its recording that an utterance is."""
    return Stretch(utterance.start, utterance.end)


class Clips:
    """The clips of a corpus at the encoder's rate; threads may load them in any order. A context manager.

    Decoding is done in processes, which start with the first clip and end with `close`. Resampling is done in the
    calling thread: torch lets other threads run meanwhile.
    """

    def __init__(
        self,
        utterances: Iterable[Source],
        root: Path,
        channels: Channels,
        sample_rate: int,
        scratch: Path,
        decode_seconds: float,
    ) -> None:
        self._root, self._channels, self._sample_rate = root, channels, sample_rate
        self._scratch = _Scratch(scratch)
        self._decoders = Decoders(decode_seconds)
        self._decode_seconds = decode_seconds
        stretches: dict[str, set[Stretch]] = defaultdict(set)
        for utterance in utterances:
            if utterance.audio is not None and utterance.samples:
                stretches[utterance.audio].add(stretch_of(utterance))
        self._stamps = {audio: _stamp(root / audio) for audio in stretches}
        self._albums = {audio: _Album(several) for audio, several in stretches.items() if len(several) > 1}

    def __enter__(self) -> "Clips":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End the decoders' processes."""
        self._decoders.close()

    def load(self, utterance: Source) -> "torch.Tensor":
        """(samples,) float32 at the encoder's rate.

        Raises:
            ClipError: the recording is not what the manifest says, or cannot be decoded.
            DataError: nothing can be decoded here.
            StoreError: the scratch file cannot be written.
        """
        path, stretch = self._root / str(utterance.audio), stretch_of(utterance)
        album = self._albums.get(str(utterance.audio))
        if album is None:
            ((_, recording),) = self._decoders.decode_stretches(path, self._channels, [stretch])
            clip = _Clip(len(recording.samples), recording.sample_rate, recording.issues, _content(recording, path))
            self._check(utterance, clip, path)
            return resample(recording.samples, recording.sample_rate, self._sample_rate)
        with album.lock:
            if not album.clips:
                album.clips = dict(self._cut(path, album))
        self._check(utterance, album.clips[stretch], path)
        return self._scratch.read(album.clips[stretch].first_byte, encoder_samples(utterance, self._sample_rate))

    def _cut(self, path: Path, album: "_Album") -> "Iterator[tuple[Stretch, _Clip]]":
        """All clips of a recording, laid into the scratch file."""
        content = None
        for stretch, recording in self._decoders.decode_stretches(path, self._channels, list(album.stretches)):
            first_byte = 0
            if len(recording.samples):
                clip = resample(recording.samples, recording.sample_rate, self._sample_rate)
                first_byte = self._scratch.append(clip)
            content = content or _content(recording, path)
            yield stretch, _Clip(len(recording.samples), recording.sample_rate, recording.issues, content, first_byte)

    def _check(self, utterance: Source, clip: "_Clip", path: Path) -> None:
        if (clip.samples, clip.sample_rate) != (utterance.samples, utterance.sample_rate):
            raise _failure(utterance, clip, path, self._decode_seconds)
        if utterance.content not in (None, clip.content):
            raise ClipError(
                f"'{utterance.name}': {path} has changed since the manifest was made; {AGAIN}",
                utterance.name,
                "changed",
            )
        if _stamp(path) != self._stamps[str(utterance.audio)]:
            raise ClipError(f"'{utterance.name}': {path} changed while it was read; {AGAIN}", utterance.name, "changed")


@dataclass(frozen=True)
class _Clip:
    """A clip as it was decoded, and where it lies in the scratch file, if it does."""

    samples: int
    sample_rate: int
    issues: list[str]
    content: str | None  # of the whole recording, `hash_file`
    first_byte: int = 0


@dataclass
class _Album:
    """A recording of several turns, and its clips once they are cut."""

    stretches: set[Stretch]
    clips: dict[Stretch, _Clip] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)


class _Scratch:
    """A nameless file of float32 samples."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = Lock()
        self._file: IO[bytes] | None = None

    def append(self, clip: "torch.Tensor") -> int:
        """Where it begins."""
        with self._lock, writing(self._folder):
            return self._append(clip)

    def _append(self, clip: "torch.Tensor") -> int:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
        first_byte = self._file.seek(0, os.SEEK_END)
        self._file.write(clip.numpy().tobytes())
        self._file.flush()
        return first_byte

    def read(self, first_byte: int, samples: int) -> "torch.Tensor":
        import torch

        with self._lock:
            assert self._file is not None
            self._file.seek(first_byte)
            content = self._file.read(4 * samples)
        assert len(content) == 4 * samples
        return torch.from_numpy(np.frombuffer(bytearray(content), np.float32))


def _content(recording: Recording, path: Path) -> str | None:
    return hash_file(path) if len(recording.samples) else None


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written; None where it is not to be seen."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _failure(utterance: Source, clip: _Clip, path: Path, decode_seconds: float) -> ClipError:
    status = "changed" if clip.samples else "+".join(clip.issues)
    same_length = clip.samples == utterance.samples
    found = _told(clip.samples, clip.sample_rate if same_length else None) if clip.samples else status
    expected = _told(utterance.samples, utterance.sample_rate if same_length else None)
    reasons = {
        "missing-file": ": no such file, though the manifest has it; set dataset.root to the one that it was made "
        "with, or run pipeline-prepare again",
        "timed-out": f": decoding came no further for {decode_seconds:g} s; raise audio.decode_seconds if its disk is "
        "slow",
        "decoder-crashed": ": its decoder died, twice; see whether memory is left, and whether the file is damaged",
    }
    if status.startswith("unreadable"):
        reason = f": {status}; give the user of this command the right to read it"
    else:
        changed = f" has changed since the manifest was made (found {found}, expected {expected}); {AGAIN}"
        reason = reasons.get(status, changed)
    return ClipError(f"'{utterance.name}': {path}{reason}", utterance.name, status)


def _told(samples: int, rate: int | None) -> str:
    return f"{samples} samples" + (f" at {rate} Hz" if rate else "")
