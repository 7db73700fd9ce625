"""Noise at a signal-to-noise ratio."""

import numpy as np
import pytest

from pipeline.degradation.distortions import add_noise
from pipeline.params import NoiseKind

RATE = 16_000


def voice(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    """Low pitches and their overtones, an offset, float32."""
    time = np.arange(round(seconds * RATE)) / RATE
    waves = sum(np.sin(2 * np.pi * (120 + 10 * seed) * n * time) / n for n in range(1, 12))
    return (0.1 * waves + 0.03).astype(np.float32)


def ratio_of(clip: np.ndarray, noisy: np.ndarray) -> float:
    noise = noisy.astype(np.float64) - clip
    return float(10 * np.log10(clip.astype(np.float64).var() / np.square(noise).mean()))


@pytest.mark.parametrize("kind", ["white", "speech"])
@pytest.mark.parametrize("ratio", [30.0, 10.0, 0.0, -10.0])
@pytest.mark.parametrize("seconds", [0.005, 0.3, 3.0])
def test_the_ratio_is_realised(ratio: float, kind: NoiseKind, seconds: float) -> None:
    clip = voice(seconds)
    noisy = add_noise(clip, ratio, 0, "a", kind)
    assert noisy.dtype == np.float32
    assert noisy.shape == clip.shape
    assert ratio_of(clip, noisy) == pytest.approx(ratio, abs=0.1)


@pytest.mark.parametrize("kind", ["white", "speech"])
def test_the_same_noise_is_scaled(kind: NoiseKind) -> None:
    clip = voice()
    loud, soft = (add_noise(clip, ratio, 0, "a", kind).astype(np.float64) - clip for ratio in (0.0, 20.0))
    np.testing.assert_allclose(soft * 10, loud, atol=1e-5)


def test_noise_depends_on_seed_and_utterance_alone() -> None:
    clip = voice()
    one = add_noise(clip, 10.0, 0, "a")
    np.testing.assert_array_equal(add_noise(clip, 10.0, 0, "a"), one)
    for seed, name in ((1, "a"), (0, "b")):
        other = add_noise(clip, 10.0, seed, name) - clip
        assert abs(np.corrcoef(other, one - clip)[0, 1]) < 0.05


def test_speech_noise_lies_where_the_speech_is() -> None:
    clip = voice()

    def share_below_2_khz(samples: np.ndarray) -> float:
        power = np.square(np.abs(np.fft.rfft(samples)))
        return float(power[1:2000].sum() / power[1:].sum())

    assert share_below_2_khz(add_noise(clip, 0.0, 0, "a", "speech") - clip) > 0.95
    assert share_below_2_khz(add_noise(clip, 0.0, 0, "a", "white") - clip) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("clip", [np.zeros(800, np.float32), np.zeros(1, np.float32), np.full(7, 0.5, np.float32)])
def test_silence_stays_silent(clip: np.ndarray) -> None:
    np.testing.assert_array_equal(add_noise(clip, 0.0, 0, "a"), clip)
    np.testing.assert_array_equal(add_noise(clip, 0.0, 0, "a", "speech"), clip)
