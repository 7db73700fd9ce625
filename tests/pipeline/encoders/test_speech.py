"""Speech encoders: exact under padding, faithful to transformers, honest about their weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.encoders import SpeechEncoder, load_speech_encoder
from pipeline.errors import EncoderError
from pipeline.media import resample
from pipeline.media.decoding import decode
from pipeline.params import AudioParams

pytestmark = pytest.mark.arithmetic

# What is promised of features of order 1, whatever kernels a processor chooses. Sums of hundreds of products in another
# order differ by 1e-6: at most 1.9e-6 was seen from AVX2 to AMX, where padding that leaks gives 0.01 and more.
TOLERANCE = 1e-4


def noise(*lengths: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, generator=generator) * 0.1 for length in lengths]


def load(folder: Path | str, **params: Any) -> SpeechEncoder:
    return load_speech_encoder(AudioParams(encoder=str(folder), **params), "cpu")


TOYS = (
    *("wav2vec2", "wav2vec2-layer", "hubert", "hubert-batch-norm", "wavlm", "wavlm-layer", "data2vec-audio"),
    *("conformer-relative", "conformer-rotary", "conformer-plain"),
    *("unispeech", "unispeech-sat", "unispeech-sat-layer", "whisper", "whisper-128"),
)


WHISPER = {"layers": 2, "attention_heads": 2, "ffn_dim": 64}


def toy_config(kind: str) -> Any:
    """A toy model of one branch of the family."""
    import transformers

    width: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "conv_dim": (16,) * 7,
        "num_conv_pos_embedding_groups": 4,
    }
    positions: dict[str, Any] = {"num_conv_pos_embeddings": 16, **width}
    norm_first: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}

    def whisper(bands: int) -> Any:
        sides = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in WHISPER.items()}
        ends = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
        return transformers.WhisperConfig(
            **sides, **ends, d_model=32, num_mel_bins=bands, max_source_positions=150, vocab_size=20, init_std=0.1
        )

    def conformer(embeddings: str | None) -> Any:
        return transformers.Wav2Vec2ConformerConfig(
            **positions, position_embeddings_type=embeddings, conv_depthwise_kernel_size=7, vocab_size=20
        )

    configs = {
        "conformer-relative": lambda: conformer("relative"),
        "conformer-rotary": lambda: conformer("rotary"),
        "conformer-plain": lambda: conformer(None),
        "whisper": lambda: whisper(80),
        "whisper-128": lambda: whisper(128),  # as large-v3
        "wav2vec2": lambda: transformers.Wav2Vec2Config(**positions),
        "wav2vec2-layer": lambda: transformers.Wav2Vec2Config(**positions, **norm_first),
        "hubert": lambda: transformers.HubertConfig(**positions),
        "hubert-batch-norm": lambda: transformers.HubertConfig(conv_pos_batch_norm=True, **positions),
        "wavlm": lambda: transformers.WavLMConfig(**positions),
        "wavlm-layer": lambda: transformers.WavLMConfig(**positions, **norm_first),
        "unispeech": lambda: transformers.UniSpeechConfig(**positions),
        "unispeech-sat": lambda: transformers.UniSpeechSatConfig(**positions),
        "unispeech-sat-layer": lambda: transformers.UniSpeechSatConfig(**positions, **norm_first),
        "data2vec-audio": lambda: transformers.Data2VecAudioConfig(
            num_conv_pos_embeddings=3, conv_pos_kernel_size=9, **width
        ),
    }
    return configs[kind]()


def toy_folder(kind: str, folder: Path) -> Path:
    """A toy model of one branch of the family; the seed is fixed."""
    import transformers

    torch.manual_seed(0)
    transformers.AutoModel.from_config(toy_config(kind)).save_pretrained(folder)
    return folder


def worst_difference(encoder: SpeechEncoder, clips: list[Tensor]) -> float:
    together = encoder.encode(clips)
    alone = [encoder.encode([clip])[0] for clip in clips]
    return max(float(np.abs(left - right).max()) for left, right in zip(together, alone, strict=True))


@pytest.mark.parametrize("layers", [(0,), (1, 3), (0, 1, 2, 3)])
def test_batch_neighbours_do_not_change_frames(
    speech_folder: Path, stable_speech_folder: Path, layers: tuple[int, ...]
) -> None:
    for folder in (speech_folder, stable_speech_folder):
        encoder = load(folder, layers=layers, mix="stack")
        assert worst_difference(encoder, noise(400, 16000, 5003, 30000, 720)) < TOLERANCE


def test_the_plain_model_is_not_exact(speech_folder: Path) -> None:
    """Without the patches padding does change the frames: the tests above can fail."""
    from transformers import Wav2Vec2Model

    model = Wav2Vec2Model.from_pretrained(speech_folder).eval()
    short, long = noise(8000, 30000)
    padded = torch.zeros(2, 30000)
    padded[0, :8000], padded[1] = short, long
    mask = torch.arange(30000)[None] < torch.tensor([8000, 30000])[:, None]
    with torch.inference_mode():
        alone = model(short[None]).last_hidden_state[0]
        together = model(padded, attention_mask=mask.long()).last_hidden_state[0, : len(alone)]
    assert (alone - together).abs().max() > 0.01


def test_real_models_on_real_recordings_are_exact(nemo: Path, tmp_path: Path) -> None:
    """A group-norm and a layer-norm wav2vec2 of base's front end and width, three layers of it, random weights."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    recordings = [decode(path) for path in sorted((nemo / "wav").glob("*.wav"))[::80]]
    clips = [resample(recording.samples, recording.sample_rate, 16000) for recording in recordings]
    layer_norm = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    for name, options in (("group", {}), ("layer", layer_norm)):
        torch.manual_seed(0)
        Wav2Vec2Model(Wav2Vec2Config(num_hidden_layers=3, **options)).save_pretrained(tmp_path / name)
        encoder = load(tmp_path / name)
        assert encoder.row_shape == (768,)
        assert worst_difference(encoder, clips) < TOLERANCE


@pytest.mark.parametrize("folder", ["speech_folder", "stable_speech_folder"])
def test_states_are_those_of_transformers(folder: str, request: pytest.FixtureRequest) -> None:
    from transformers import Wav2Vec2Model

    path = request.getfixturevalue(folder)
    (clip,) = noise(16000)
    frames = load(path, layers=(0, 1, 3), mix="stack").encode([clip])[0]
    normed = (clip - clip.mean()) / torch.sqrt(clip.var(correction=0) + 1e-7)
    model = Wav2Vec2Model.from_pretrained(path).eval()
    with torch.inference_mode():
        output = model(normed[None], output_hidden_states=True)
    # 1e-5: both ways compute the same sums in another order; at most 4.5e-6 was seen, from AVX2 to AMX
    for position, layer in enumerate((0, 1)):
        assert np.allclose(frames[:, position], output.hidden_states[layer][0], atol=1e-5)
    assert np.allclose(frames[:, 2], output.last_hidden_state[0], atol=1e-5)  # with the final norm of stable models


def test_a_cut_model_gives_the_same_state(stable_speech_folder: Path) -> None:
    clips = noise(9000)
    cut = load(stable_speech_folder, layers=(2,)).encode(clips)[0]
    whole = load(stable_speech_folder, layers=(2, 3), mix="stack").encode(clips)[0]
    assert np.allclose(cut, whole[:, 0], atol=1e-6)


def test_layers_are_mixed_as_asked(speech_folder: Path) -> None:
    clips = noise(9000)
    stacked = load(speech_folder, layers="last-3", mix="stack")
    (states,) = stacked.encode(clips)
    assert (stacked.row_shape, stacked.identity.fields["layers"]) == ((3, 96), [1, 2, 3])
    assert load(speech_folder, layers="all").identity.fields["layers"] == [0, 1, 2, 3]
    expected = {"mean": states.mean(axis=1), "sum": states.sum(axis=1), "concat": states.reshape(-1, 288)}
    for mix, rows in expected.items():
        encoder = load(speech_folder, layers=(1, 2, 3), mix=mix)
        assert encoder.row_shape == rows.shape[1:]
        assert np.allclose(encoder.encode(clips)[0], rows, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 399, 400, 719, 720, 16000, 48001])
@pytest.mark.parametrize("encoder", ["tiny", "log-mel"])
def test_frames_are_known_before_encoding(encoder: str, samples: int) -> None:
    loaded = load(encoder)
    (clip,) = noise(samples)
    frames = loaded.encode([clip])[0]
    assert len(frames) == loaded.frames(samples) >= 1
    assert np.isfinite(frames).all()


def test_wav2vec2_gives_a_frame_every_320_samples() -> None:
    assert [load("tiny").frames(samples) for samples in (1, 400, 719, 720, 16000)] == [1, 1, 1, 2, 49]


def test_loudness_and_offset_do_not_change_frames(speech_folder: Path) -> None:
    """Clips are normalised one by one."""
    (clip,) = noise(16000)
    encoder = load(speech_folder)
    # 1e-4: the offset costs the samples bits before they are normalised; 2.9e-6 was seen
    assert np.allclose(encoder.encode([clip])[0], encoder.encode([clip * 3 + 0.2])[0], atol=1e-4)


def test_a_silent_clip_is_finite(speech_folder: Path) -> None:
    assert np.isfinite(load(speech_folder).encode([torch.zeros(4000)])[0]).all()


@pytest.mark.parametrize("encoder", ["tiny", "log-mel"])
def test_a_long_clip_in_windows_has_every_frame(encoder: str) -> None:
    windowed = load(encoder, window_seconds=2.0, overlap_seconds=1.0)
    whole = load(encoder)
    clips = noise(16000 * 7 + 123, 3000)
    joined, short = windowed.encode(clips)
    assert len(joined) == len(whole.encode(clips[:1])[0]) == windowed.frames(len(clips[0]))
    assert np.allclose(short, whole.encode(clips[1:])[0], atol=1e-5)


@pytest.mark.parametrize("folder", ["speech_folder", "stable_speech_folder"])
def test_windows_agree_with_the_whole_clip_away_from_the_seams(folder: str, request: pytest.FixtureRequest) -> None:
    """Convolutions see the clip whole, so their frames agree exactly; layers above see other frames, but few."""
    path = request.getfixturevalue(folder)
    loud_at_the_end = noise(16000 * 90)[0] * torch.linspace(0.05, 1.0, 16000 * 90)
    options = {"layers": (0, 3), "mix": "stack"}
    joined = load(path, window_seconds=20.0, overlap_seconds=4.0, **options).encode([loud_at_the_end])[0]
    whole = load(path, window_seconds=400.0, overlap_seconds=4.0, **options).encode([loud_at_the_end])[0]
    assert joined.shape == whole.shape
    hidden = 50 * 4 // 2  # frames of overlap on each side of a seam
    away = np.ones(len(joined), bool)
    for seam in range(50 * 20 - hidden, len(joined), 50 * 16):
        away[max(0, seam - 25) : seam + 25] = False
    assert away.mean() > 0.9
    assert np.abs(joined[:, 0] - whole[:, 0]).max() < TOLERANCE  # the positional convolution reaches 16 frames only
    left, right = joined[away, 1], whole[away, 1]
    cosine = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    assert cosine.min() > 0.99


def test_log_mel_bands_have_zero_mean_and_unit_variance_over_the_clip() -> None:
    encoder = load("log-mel", normalise="clip-band", window_seconds=2.0, overlap_seconds=1.0)
    frames = encoder.encode(noise(16000 * 5))[0]
    assert np.allclose(frames.mean(axis=0), 0, atol=1e-3)
    assert np.allclose(frames.std(axis=0), 1, atol=0.01)


@pytest.mark.parametrize(("how", "blind"), [("clip-band", True), ("clip", True), ("speaker", True), ("none", False)])
def test_a_louder_clip_alone_gives_other_log_mel_frames_only_where_its_level_is_kept(how: str, blind: bool) -> None:
    """Of a speaker who is not known, the clip stands for all of them."""
    (clip,) = noise(16000 * 2)
    encoder = load("log-mel", normalise=how)
    one, louder = encoder.encode([clip])[0], encoder.encode([clip * 3])[0]
    # log(power + 1e-5) is not blind to the last bit: 3 times as loud is log(9) in every band
    assert bool(np.abs(one - louder).mean() < 0.1) is blind
    assert encoder.identity.fields["normalise"] == how


@pytest.mark.parametrize(
    ("name", "settings", "apart"),
    [
        ("log-mel", {}, 1.0),
        ("tiny", {"normalise": "speaker"}, 0.1),
        ("tiny", {"normalise": "speaker", "layers": (0, 2), "mix": "stack"}, 0.1),
    ],
)
def test_frames_by_speaker_keep_what_tells_a_speakers_clips_apart(
    name: str, settings: dict[str, Any], apart: float
) -> None:
    quiet, loud = noise(16000 * 2, 16000 * 2)
    encoder = load(name, **settings)
    speakers = encoder.measure_speakers(["a", "a", None, "b"], lambda index: [quiet, loud * 5, quiet, loud][index])
    assert sorted(speakers) == ["a", "b"]
    rows = encoder.start([encoder.prepare(clip, speakers["a"]) for clip in (quiet, loud * 5)], "float32")()
    together = np.concatenate(rows)
    assert np.allclose(together.mean(axis=0), 0, atol=1e-3)
    assert np.allclose(together.std(axis=0), 1, atol=0.05)  # a flat column is divided by a little more
    assert (rows[1].mean(axis=0) - rows[0].mean(axis=0)).max() > apart
    assert rows[0].shape[1:] == encoder.row_shape


def test_an_encoder_with_weights_listens_to_a_part_of_each_speaker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.encoders.speech.SPEAKER_SECONDS", 3)
    clips, asked = noise(16000 * 2, 16000 * 2, 16000 * 2, 16000), list[int]()

    def load_clip(index: int) -> Tensor:
        asked.append(index)
        return clips[index]

    encoder = load("tiny", normalise="speaker")
    found = encoder.measure_speakers(["a", "a", "a", "b"], load_clip)
    assert asked == [0, 1, 3]
    assert {name: one.rows for name, one in found.items()} == {
        "a": encoder.frames(16000 * 2) + encoder.frames(16000),
        "b": encoder.frames(16000),
    }


def test_a_clip_is_normalised_by_its_speaker_whatever_shares_its_batch() -> None:
    clips = noise(16000, 8000, 12000)
    encoder = load("tiny", normalise="speaker", layers=(1, 2), mix="stack")
    speaker = encoder.measure_speakers(["a"] * 3, clips.__getitem__)["a"]
    ready = [encoder.prepare(clip, speaker) for clip in clips]
    together = encoder.start(ready, "float32")()
    for one, batched in zip(ready, together, strict=True):
        assert np.abs(encoder.start([one], "float32")()[0] - batched).max() < 10 * TOLERANCE  # divided by deviations
    plain = load("tiny", layers=(1, 2), mix="stack").encode(clips)[1]
    expected = (plain - speaker.mean) / (speaker.deviation + 1e-3)
    assert np.abs(expected - together[1]).max() < 10 * TOLERANCE


def test_an_encoder_that_normalises_as_it_was_trained_refuses_other_values_of_the_key() -> None:
    with pytest.raises(ValidationError, match="normalise is none: of encoder log-mel alone, and encoder is tiny"):
        AudioParams(encoder="tiny", normalise="none")


def test_identity_follows_what_features_depend_on(speech_folder: Path, stable_speech_folder: Path) -> None:
    variants = [
        load(speech_folder),
        load(speech_folder, layers=(2,)),
        load(speech_folder, layers=(1, 2)),
        load(speech_folder, layers=(1, 2), mix="stack"),
        load(stable_speech_folder),
        load("tiny"),
        load("log-mel"),
    ]
    assert len({encoder.identity for encoder in variants}) == len(variants)
    assert load(speech_folder).identity == load(speech_folder).identity
    assert str(speech_folder.parent) not in load(speech_folder).identity.to_json()


def test_bfloat16_is_close(speech_folder: Path) -> None:
    clips = noise(16000, 9000)
    exact, reduced = load(speech_folder).encode(clips), load(speech_folder, precision="bfloat16").encode(clips)
    for left, right in zip(exact, reduced, strict=True):
        cosine = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
        assert cosine.min() > 0.99


def test_a_checkpoint_with_missing_weights_is_refused(speech_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(speech_folder / "model.safetensors")
    removed = next(name for name in weights if "pos_conv_embed" in name)
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((speech_folder / name).read_bytes())
    save_file({n: t for n, t in weights.items() if n != removed}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderError, match=r"1 weights are missing, such as .*pos_conv_embed.*partly random"):
        load(tmp_path)


def test_a_checkpoint_with_unknown_weights_is_refused(speech_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(speech_folder / "model.safetensors") | {"encoder.layers.9.extra": torch.zeros(3)}
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((speech_folder / name).read_bytes())
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderError, match=r"unexpected, such as 'encoder\.layers\.9\.extra'"):
        load(tmp_path)


def test_weights_of_a_pretraining_checkpoint_load(tmp_path: Path) -> None:
    """As facebook/wav2vec2-base is published: with quantizer and projections that an encoder has no use for."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(16,) * 7
    )
    Wav2Vec2ForPreTraining(config).save_pretrained(tmp_path)
    assert load(tmp_path).row_shape == (32,)


@pytest.mark.parametrize("damage", ["truncate", "remove", "config", "strides"])
def test_a_damaged_folder_is_refused(speech_folder: Path, tmp_path: Path, damage: str) -> None:
    for path in speech_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if damage == "truncate":
        content = (tmp_path / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    elif damage == "remove":
        (tmp_path / "model.safetensors").unlink()
    elif damage == "strides":
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"conv_stride": [0] * len(config["conv_stride"])}))
    else:
        (tmp_path / "config.json").write_text("{")
    with pytest.raises(EncoderError, match=str(tmp_path)):
        load(tmp_path)


def test_a_text_model_is_no_speech_encoder() -> None:
    from pipeline.encoders import TINY_TEXT

    with pytest.raises(EncoderError, match=r"is a 'bert' model; expected one of wav2vec2, .*, or log-mel"):
        load(TINY_TEXT)


def test_a_layer_that_does_not_exist_is_refused(speech_folder: Path) -> None:
    with pytest.raises(EncoderError, match="has layers 0 to 3; asked for layer 12"):
        load(speech_folder, layers=(12,))
    with pytest.raises(EncoderError, match="has layers 0 to 3; asked for the last 5"):
        load(speech_folder, layers="last-5")


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such/folder", "~/no/such"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(EncoderError, match="no such encoder folder"):
        load(name)


def copied(folder: Path, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_weights_of_another_shape_are_refused_by_name(speech_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copied(speech_folder, tmp_path) / "model.safetensors")
    save_file(weights | {"encoder.layer_norm.weight": torch.zeros(5)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderError, match=r"mismatched, such as 'encoder\.layer_norm\.weight'"):
        load(tmp_path)


def test_a_damaged_preprocessor_is_not_taken_for_a_missing_one(speech_folder: Path, tmp_path: Path) -> None:
    (copied(speech_folder, tmp_path) / "preprocessor_config.json").write_text("{")
    with pytest.raises(EncoderError, match=r"preprocessor_config\.json cannot be read"):
        load(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"sampling_rate": 0, "feature_extractor_type": "x"}')
    with pytest.raises(EncoderError, match=r"sampling_rate is 0 Hz|cannot be read"):
        load(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    assert load(tmp_path).sample_rate == 16000


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99", "cuda:x"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(EncoderError, match=f"device '{device}': "):
        load_speech_encoder(AudioParams(encoder="log-mel"), device)


def test_a_revision_is_for_the_hub_only() -> None:
    with pytest.raises(EncoderError, match="revision 'abc' is for models of the hub"):
        load("tiny", revision="abc")
