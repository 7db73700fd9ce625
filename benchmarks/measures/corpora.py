"""The clips that are encoded: real recordings, and audio made to real lengths; in memory and as compressed files.

Made audio is noise that swells four times a second, as syllables do. How long encoding takes depends on lengths alone.

Axes: samples, channels.
"""

import csv
import os
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.manifest import Utterance, write_manifest
from pipeline.media import Channels, resample
from pipeline.media.decoding import resampled_length

if TYPE_CHECKING:
    import torch

SAMPLE_RATE = 16_000  # of wav2vec2-family encoders
PACKET = 1_024  # samples of an AAC packet; a decoder gives whole ones
SURROUND = "5.1"
CENTRE, CHANNELS = 2, 6  # of 5.1: front left, front right, centre, low frequencies, back left, back right


@dataclass(frozen=True)
class Source:
    """One recording, or the length of one."""

    samples: int
    sample_rate: int
    wav: Path | None = None  # 16-bit mono; None: the audio is made

    @property
    def name(self) -> str:
        """Tells its sound, beside a seed."""
        return self.wav.stem if self.wav else str(self.samples)

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.samples / self.sample_rate

    def audio(self, sample_rate: int, seed: int) -> np.ndarray:
        """(samples,) float32; made audio comes at any rate, a recording at its own."""
        if self.wav is None:
            return made_audio(resampled_length(self.samples, self.sample_rate, sample_rate), sample_rate, seed)
        assert sample_rate == self.sample_rate
        with wave.open(str(self.wav)) as file:
            return np.frombuffer(file.readframes(self.samples), "<i2").astype(np.float32) / 2**15

    def clip(self, seed: int) -> "torch.Tensor":
        """(samples,) float32 at the encoder's rate."""
        if self.wav is None:
            import torch

            return torch.from_numpy(self.audio(SAMPLE_RATE, seed))
        return resample(self.audio(self.sample_rate, seed), self.sample_rate, SAMPLE_RATE)


@dataclass(frozen=True)
class Corpus:
    """Clips in an order of no meaning."""

    name: str
    title: str
    container: str  # mp4: AAC in 5.1 | flac: mono
    channels: Channels
    sources: Sequence[Source]

    @property
    def seconds(self) -> float:
        """Of all clips together."""
        return sum(source.seconds for source in self.sources)

    def sample(self, seconds: float) -> "Corpus":
        """About so many seconds of it, of every length in its proportion; 0: all of it."""
        return replace(self, sources=sampled(self.sources, seconds))

    def clips(self) -> "list[torch.Tensor]":
        """(samples,) float32 at the encoder's rate, each."""
        return [source.clip(seed) for seed, source in enumerate(self.sources)]


def real_corpus(folder: Path) -> Corpus:
    """The recordings of nEMO: `wav/*.wav` in `folder`."""
    sources = []
    for path in sorted((folder / "wav").glob("*.wav")):
        with wave.open(str(path)) as file:
            sources.append(Source(file.getnframes(), file.getframerate(), path))
    return Corpus("nemo", "nEMO's recordings", "flac", "downmix", sources)


def made_corpus(clips_csv: Path) -> Corpus:
    """Audio made to MELD's real lengths, `samples` and `sample_rate` of each line of `clips_csv`."""
    with clips_csv.open(encoding="utf-8", newline="") as file:
        sources = [Source(int(row["samples"]), int(row["sample_rate"])) for row in csv.DictReader(file)]
    return Corpus("meld", "MELD's lengths", "mp4", "center", sources)


def sampled(sources: Sequence[Source], seconds: float) -> list[Source]:
    """Sources at evenly spaced ranks of length, in a random order that is the same every time.

    >>> [source.samples for source in sampled([Source(n, 1) for n in range(1, 10)], seconds=15)]
    [8, 2, 5]
    """
    ranked = sorted(sources, key=lambda source: source.seconds)
    if seconds:
        count = max(1, min(len(ranked), round(seconds * len(ranked) / sum(source.seconds for source in ranked))))
        ranked = [ranked[(2 * number + 1) * len(ranked) // (2 * count)] for number in range(count)]
    return [ranked[position] for position in np.random.default_rng(0).permutation(len(ranked))]


def made_audio(samples: int, sample_rate: int, seed: int) -> np.ndarray:
    """(samples,) float32."""
    time = np.arange(samples, dtype=np.float32) / np.float32(sample_rate)
    swell = 0.1 + 0.09 * np.sin(2 * np.pi * 4 * time + seed, dtype=np.float32)
    return np.random.default_rng(seed).standard_normal(samples, np.float32) * swell


def write_release(corpus: Corpus, root: Path) -> Path:
    """Every clip as a compressed file below `root`, and their manifest, whose path is returned."""
    root.mkdir(parents=True, exist_ok=True)
    names = [f"{number:05d}-{source.name}.{corpus.container}" for number, source in enumerate(corpus.sources)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        lengths = list(pool.map(_write, [root / name for name in names], corpus.sources, range(len(names))))
    utterances = [
        Utterance(
            id=f"all/{number:05d}",
            conversation="all",
            turn=number,
            split="train",
            audio=name,
            samples=samples,
            sample_rate=source.sample_rate,
            channels=CHANNELS if corpus.container == "mp4" else 1,
        )
        for number, (name, samples, source) in enumerate(zip(names, lengths, corpus.sources, strict=True))
    ]
    write_manifest(root / "manifest.jsonl", utterances)
    return root / "manifest.jsonl"


def _write(path: Path, source: Source, seed: int) -> int:
    """A file that is there stays; returns the samples that a decoder will give."""
    import av

    is_film = path.suffix == ".mp4"
    samples = -(-source.samples // PACKET) * PACKET if is_film else source.samples
    if path.exists():
        return samples
    mono = source.audio(source.sample_rate, seed)
    codec, layout = ("aac", SURROUND) if is_film else ("flac", "mono")
    partial = path.with_name("partial-" + path.name)
    with av.open(str(partial), "w", format=path.suffix[1:]) as container:
        stream: Any = container.add_stream(codec, rate=source.sample_rate, layout=layout)
        content = _surround(mono) if is_film else mono[None]
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(content), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = source.sample_rate, 0, Fraction(1, source.sample_rate)
        packet = stream.codec_context.frame_size or 4 * PACKET
        resampler = av.AudioResampler(stream.format, layout, source.sample_rate, frame_size=packet)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    partial.rename(path)
    return samples


def _surround(mono: np.ndarray) -> np.ndarray:
    """(channels, samples): the clip in the centre, and an echo of it in every other channel."""
    channels = np.stack([0.3 * np.roll(mono, 100 * number) for number in range(CHANNELS)])
    channels[CENTRE] = mono
    return channels
