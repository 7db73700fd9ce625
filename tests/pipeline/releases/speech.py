"""Synthesised speech: pieces of the embedded corpus, which espeak-ng said."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from pipeline.media.decoding import decode
from tests.pipeline.made import write_wav

RATE = 16_000
DEMO = Path(__file__).parents[3] / "data" / "demo" / "audio"


def speech(samples: int, rate: int, number: int = 0) -> np.ndarray:
    """(samples,) float64 of speech at `rate`; another `number` starts at another recording."""
    pieces: list[np.ndarray] = []
    while sum(map(len, pieces)) < samples:
        pieces.append(_recording(number % len(_recordings()), rate))
        number += 1
    return np.concatenate(pieces)[:samples]


def write_speech(path: Path, number: int, seconds: float = 0.3) -> Path:
    """The same as a WAV file of 16 bits at 16 kHz."""
    return write_wav(path, speech(round(seconds * RATE), RATE, number)[:, None], RATE)


@lru_cache(maxsize=1)
def _recordings() -> list[Path]:
    return sorted(DEMO.rglob("*.ogg"))


@lru_cache(maxsize=64)
def _recording(number: int, rate: int) -> np.ndarray:
    recording = decode(_recordings()[number])
    seconds = len(recording.samples) / recording.sample_rate
    times = np.arange(round(seconds * rate)) / rate  # straight lines between samples: speech enough, without torch
    return np.interp(times * recording.sample_rate, np.arange(len(recording.samples)), recording.samples)
