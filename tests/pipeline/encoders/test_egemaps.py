"""eGeMAPS by openSMILE, where it is installed; how it is asked for where it is not."""

import importlib.util
from typing import Literal

import numpy as np
import pytest
import torch

from pipeline.encoders import load_speech, load_speech_encoder
from pipeline.errors import EncoderError
from pipeline.finetuning.learners import load_speech_learner
from pipeline.params import AudioParams, FinetuneAudioParams
from tests.pipeline.encoders.test_speech import noise

HERE = importlib.util.find_spec("opensmile") is not None
needed = pytest.mark.skipif(not HERE, reason="opensmile is not installed (extra egemaps)")


@needed
@pytest.mark.parametrize("samples", [1, 959, 960, 1119, 1120, 16_000, 16_007, 40_000])
def test_frames_are_known_before_encoding(samples: int) -> None:
    encoder = load_speech_encoder(AudioParams(encoder="egemaps"), "cpu")
    (frames,) = encoder.encode(noise(samples))
    assert frames.shape == (encoder.frames(samples), 25)
    assert np.isfinite(frames).all()


@needed
def test_functionals_are_one_row_and_those_of_opensmile() -> None:
    import opensmile

    clips = noise(16_000, 9_000)
    encoder = load_speech_encoder(AudioParams(encoder="egemaps-functionals", dtype="float32"), "cpu")
    smile = opensmile.Smile(feature_set="eGeMAPSv02", feature_level="func")
    for clip, row in zip(clips, encoder.encode(clips), strict=True):
        assert np.array_equal(row, smile.process_signal(clip.numpy(), 16_000).to_numpy("float32"))
        assert row.shape == (encoder.frames(len(clip)), 88) == (1, 88)


@needed
def test_pitch_is_heard_in_semitones() -> None:
    encoder = load_speech_encoder(AudioParams(encoder="egemaps-functionals"), "cpu")
    phase = 2 * torch.pi * torch.arange(16_000) / 16_000
    low, high = (encoder.encode([sum(torch.sin(k * f * phase) for k in range(1, 9)) / 20])[0][0, 0] for f in (110, 220))
    assert high - low == pytest.approx(12, abs=0.2)


@needed
def test_functionals_by_speaker_are_those_over_all_their_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.encoders.speech.SPEAKER_SECONDS", 1)  # of encoders with weights alone
    clips = noise(16_000, 9_000, 20_000)
    encoder = load_speech_encoder(AudioParams(encoder="egemaps-functionals", normalise="speaker"), "cpu")
    speaker = encoder.measure_speakers(["a"] * 3, clips.__getitem__)["a"]
    rows = np.concatenate(encoder.start([encoder.prepare(clip, speaker) for clip in clips], "float32")())
    assert rows.shape == (3, 88)
    assert np.allclose(rows.mean(axis=0), 0, atol=1e-3)
    assert np.abs(rows).max() < 3**0.5  # what three values may differ from their mean


@needed
@pytest.mark.parametrize("normalise", [None, "speaker"])
def test_an_identity_finds_it_again(normalise: Literal["speaker"] | None) -> None:
    encoder = load_speech_encoder(AudioParams(encoder="egemaps", normalise=normalise), "cpu")
    assert load_speech(encoder.identity, None, "cpu").encoder.identity == encoder.identity
    assert encoder.identity.fields["opensmile"]


@pytest.mark.skipif(HERE, reason="opensmile is installed")
def test_without_opensmile_the_extra_is_named() -> None:
    with pytest.raises(EncoderError, match=r"needs opensmile.*erc-fusion\[egemaps\].*no commercial use"):
        load_speech_encoder(AudioParams(encoder="egemaps"), "cpu")


def test_it_has_no_weights_that_could_learn() -> None:
    with pytest.raises(EncoderError, match="egemaps has no weights that could learn"):
        load_speech_learner(FinetuneAudioParams(encoder="egemaps"), ["a", "b"])
