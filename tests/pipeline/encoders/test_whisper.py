"""Whisper's encoder with the real weights of tiny.en, and what is its own: contexts, windows, what an identity says."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.encoders import SpeechEncoder, load_speech, load_speech_encoder
from pipeline.errors import EncoderError
from pipeline.media import resample
from pipeline.media.decoding import decode
from pipeline.params import AudioParams
from scripts.whisper_folder import whisper_folder
from tests.pipeline.encoders.test_speech import TOLERANCE, noise, toy_folder, worst_difference

pytestmark = pytest.mark.arithmetic
DEMO = Path(__file__).parents[3] / "data/demo"


def load(folder: Path | str, **params: Any) -> SpeechEncoder:
    return load_speech_encoder(AudioParams(encoder=str(folder), **params), "cpu")


def recordings(folder: Path, step: int) -> list[Tensor]:
    found = [decode(path) for path in sorted((folder / "wav").glob("*.wav"))[::step]]
    return [resample(recording.samples, recording.sample_rate, 16000) for recording in found]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers and positions for 3 s."""
    return toy_folder("whisper", tmp_path_factory.mktemp("whisper"))


@pytest.mark.parametrize("step", [200, pytest.param(10, marks=pytest.mark.soak)])
def test_real_states_on_real_recordings_are_those_of_transformers(step: int, whisper_tiny: Path, nemo: Path) -> None:
    clips = recordings(nemo, step)
    encoder = transformers.WhisperModel.from_pretrained(whisper_tiny, dtype=torch.float32).eval().encoder
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(whisper_tiny)
    for clip, found in zip(clips, load(whisper_tiny, layers="all", mix="stack").encode(clips), strict=True):
        with torch.inference_mode():
            heard = extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt").input_features
            states = encoder(heard, output_hidden_states=True).hidden_states
        assert found.shape == (-(-len(clip) // 320), 5, 384)
        for layer, state in enumerate(states):
            assert np.abs(found[:, layer] - state[0, : len(found)].numpy()).max() < TOLERANCE


@pytest.mark.parametrize("step", [20, pytest.param(1, marks=pytest.mark.soak)])
def test_real_clips_of_their_own_length_are_exact_in_batches(step: int, whisper_tiny: Path, nemo: Path) -> None:
    encoder = load(whisper_tiny, layers="all", mix="stack", context="clip")
    assert worst_difference(encoder, recordings(nemo, step)) < TOLERANCE


def test_converted_weights_transcribe(whisper_tiny: Path) -> None:
    with (DEMO / "utterances.csv").open(encoding="utf-8", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["text"] == "I never thought my sister would do that.")
    recording = decode(DEMO / row["audio"])
    model = transformers.WhisperForConditionalGeneration.from_pretrained(whisper_tiny, dtype=torch.float32)
    processor = transformers.WhisperProcessor.from_pretrained(whisper_tiny)
    clip = resample(recording.samples, recording.sample_rate, 16000)
    heard = processor(clip.numpy(), sampling_rate=16000, return_tensors="pt").input_features
    with torch.inference_mode():
        (tokens,) = model.generate(heard)
    assert processor.decode(tokens, skip_special_tokens=True).strip() == row["text"]
    assert whisper_folder() == whisper_tiny


@pytest.mark.parametrize("context", ["full", "clip"])
@pytest.mark.parametrize("samples", [1, 320, 321, 47_999, 48_000, 48_001, 160_000])
def test_every_frame_of_a_clip_of_any_length_is_there(context: str, samples: int, toy: Path) -> None:
    encoder = load(toy, context=context)
    (frames,) = encoder.encode(noise(samples))
    assert len(frames) == encoder.frames(samples) == -(-samples // 320)
    assert np.isfinite(frames).all()


@pytest.mark.parametrize("context", ["full", "clip"])
def test_a_long_clip_is_encoded_in_windows_that_are_clips_by_themselves(context: str, toy: Path) -> None:
    encoder = load(toy, context=context, window_seconds=2.0, overlap_seconds=1.0)
    (clip,) = noise(16_000 * 4)
    (long,) = encoder.encode([clip])
    windows = encoder.encode([clip[start * 16_000 : (start + 2) * 16_000] for start in (0, 1, 2)])
    pieces = [windows[0][:75], windows[1][25:75], windows[2][25:]]  # seams in the middle of each overlap
    assert np.abs(long - np.concatenate(pieces)).max() < TOLERANCE


def test_the_context_is_part_of_what_features_are_where_there_are_two(toy: Path, speech_folder: Path) -> None:
    full, clip = load(toy), load(toy, context="clip")
    assert (full.identity.fields["context"], clip.identity.fields["context"]) == ("full", "clip")
    assert full.identity.fields["weights"] == clip.identity.fields["weights"]
    assert clip.identity.fields["margin_seconds"] == 1.0
    assert load(speech_folder).identity == load(speech_folder, context="clip").identity
    for encoder in (full, clip):  # as fusion-predict finds it again
        assert load_speech(encoder.identity, toy, "cpu").encoder.identity == encoder.identity
    assert np.abs(full.encode(noise(16_000))[0] - clip.encode(noise(16_000))[0]).max() > 0.01


@pytest.mark.sampled(2)
@pytest.mark.parametrize("context", ["full", "clip"])
@pytest.mark.soak
def test_bfloat16_of_real_weights_is_right(context: str, whisper_tiny: Path) -> None:
    """The check when it is loaded refuses it else."""
    assert load(whisper_tiny, context=context, precision="bfloat16").identity.fields["precision"] == "bfloat16"


def test_a_preprocessor_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = toy_folder("whisper-128", tmp_path)
    assert load(folder).row_shape == (32,)  # without one, that of the model's bands
    transformers.WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    with pytest.raises(EncoderError, match=r"preprocessor_config.json makes 80 bands, and the model takes 128"):
        load(folder)


def test_weights_of_the_decoder_and_of_later_layers_are_not_looked_at(toy: Path, tmp_path: Path) -> None:
    for path in toy.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(toy / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith(("decoder.", "encoder.layers.1."))}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    left, right = (load(folder, layers=(1,)).encode(noise(5003))[0] for folder in (toy, tmp_path))
    assert np.array_equal(left, right)
    with pytest.raises(EncoderError, match=r"15 weights are missing, such as 'encoder\.layers\.1\."):
        load(tmp_path)
    save_file(weights | {"encoder.layers.2.extra": torch.zeros(3)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderError, match=r"1 weights are unexpected, such as 'encoder\.layers\.2\.extra'"):
        load(tmp_path)
