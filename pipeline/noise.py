"""Noise in a clip at a given signal-to-noise ratio. Pure.

The ratio is 10 log10(P / N) dB, where P is the clip's own power and N that of the noise, both over the whole clip. A
constant offset is no sound and counts for nothing. The noise of a clip depends on the seed and the utterance; ratios
only scale it, so that curves over the ratio are smooth. It is

    white   Gaussian: the same power at every frequency, or
    speech  Gaussian with the clip's own spectrum: its power lies where the speech is, which hides it more.

Digital silence has no ratio and stays as it is.
"""

import numpy as np

from pipeline.params import NoiseKind
from pipeline.randomness import generator


def add_noise(clip: np.ndarray, ratio: float, seed: int, identifier: str, kind: NoiseKind = "white") -> np.ndarray:
    """`clip` (samples,) float32 with noise at `ratio` dB; itself where it holds no sound."""
    sound = clip - clip.mean(dtype=np.float64)
    noise = generator("noise", seed, identifier).standard_normal(len(clip))
    if kind == "speech":
        noise = _coloured(noise, sound)
    signal_power, noise_power = np.square(sound).mean(), np.square(noise).mean()
    if not signal_power or not noise_power:
        return clip
    scale = np.sqrt(signal_power / (noise_power * 10 ** (ratio / 10)))
    return (clip + scale * noise).astype(np.float32)


def _coloured(noise: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """White `noise` with the magnitudes of `sound` at every frequency."""
    return np.fft.irfft(np.fft.rfft(noise) * np.abs(np.fft.rfft(sound)), n=len(sound))
