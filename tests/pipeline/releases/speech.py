"""Synthesised speech: pieces of the embedded corpus, which espeak-ng said."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from pipeline.media import decode

DEMO = Path(__file__).parents[3] / "data" / "demo" / "audio"


def speech(samples: int, rate: int, number: int = 0) -> np.ndarray:
    """(samples,) float64 of speech at `rate`; another `number` starts at another recording."""
    pieces: list[np.ndarray] = []
    while sum(map(len, pieces)) < samples:
        pieces.append(_recording(number % len(_recordings()), rate))
        number += 1
    return np.concatenate(pieces)[:samples]


@lru_cache(maxsize=1)
def _recordings() -> list[Path]:
    return sorted(DEMO.rglob("*.ogg"))


@lru_cache(maxsize=64)
def _recording(number: int, rate: int) -> np.ndarray:
    recording = decode(_recordings()[number])
    seconds = len(recording.samples) / recording.sample_rate
    times = np.arange(round(seconds * rate)) / rate  # straight lines between samples: speech enough, without torch
    return np.interp(times * recording.sample_rate, np.arange(len(recording.samples)), recording.samples)
