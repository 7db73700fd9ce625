"""Synthesised speech for fabricated releases: pieces of the embedded corpus' recordings."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from pipeline.media import decode
from tests.pipeline.made import write_wav

RECORDINGS = sorted((Path(__file__).parents[3] / "data" / "demo" / "audio").glob("c00*/*.ogg"))


def speech(number: int, seconds: float = 0.3) -> tuple[np.ndarray, int]:
    """A piece of the `number`-th recording: (samples, 1) float64 in [-1, 1], and its rate."""
    samples, rate = _decoded(number % len(RECORDINGS))
    return samples[: round(seconds * rate), None].astype(np.float64), rate


def write_speech(path: Path, number: int, seconds: float = 0.3) -> Path:
    """The same as a WAV file of 16 bits."""
    return write_wav(path, *speech(number, seconds))


@lru_cache(maxsize=64)
def _decoded(number: int) -> tuple[np.ndarray, int]:
    recording = decode(RECORDINGS[number])
    return recording.samples, recording.sample_rate
