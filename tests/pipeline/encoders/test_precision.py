"""Reduced precision: right with the kernels that are there, refused with wrong ones, never chosen unasked."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation, GELUTanh

from pipeline.encoders import load_speech_encoder, load_text_encoder, precision, widen_narrow_groups
from pipeline.encoders.precision import Packed, pack_products, packs
from pipeline.finetuning.learners import TextLearner, check_precision, load_speech_learner
from pipeline.params import AudioParams, FinetuneAudioParams, FinetuneTextParams, TextParams
from pipeline.settings import SettingsError, advise_precision, check_agreement, check_section
from pipeline.settings.precision import LOWEST_COSINE, PrecisionError, lowest_cosine
from tests.pipeline.encoders.test_speech import noise, toy_folder

CPU = torch.device("cpu")

pytestmark = [
    pytest.mark.arithmetic,
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask"),  # WavLM's own way
]

# wav2vec2-base and those like it, in every width that kernels look at, two layers of them
BASE: dict[str, Callable[[], Any]] = {
    "wav2vec2, group norm": lambda: config("Wav2Vec2"),
    "wav2vec2, layer norm": lambda: config(
        "Wav2Vec2", feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True
    ),
    "hubert": lambda: config("Hubert"),
    "wavlm": lambda: config("WavLM"),
    "data2vec-audio": lambda: config("Data2VecAudio"),
}


def config(family: str, **options: Any) -> Any:
    import transformers

    return getattr(transformers, f"{family}Config")(num_hidden_layers=2, **options)


@pytest.fixture(autouse=True)
def _nothing_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "proven", set())


@pytest.fixture
def noisy_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in bfloat16 return noise."""
    right = nn.functional.conv1d

    def wrong(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        y = right(x, weight, *rest)
        return torch.randn_like(y) if y.dtype == torch.bfloat16 else y

    monkeypatch.setattr(nn.functional, "conv1d", wrong)


@pytest.fixture
def deaf_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in bfloat16 ignores its mask."""
    right = nn.functional.scaled_dot_product_attention

    def wrong(query: Tensor, *rest: Any, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        mask = None if query.dtype == torch.bfloat16 else attn_mask
        return right(query, *rest, attn_mask=mask, **options)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", wrong)


def load_audio(folder: Path | str, precision: Any = "bfloat16") -> Any:
    return load_speech_encoder(AudioParams(encoder=str(folder), precision=precision), "cpu")


def load_words(folder: Path | str, precision: Any = "bfloat16") -> Any:
    return load_text_encoder(TextParams(encoder=str(folder), precision=precision), "cpu")


@pytest.mark.soak
@pytest.mark.parametrize("kind", BASE)
def test_bfloat16_is_accepted_at_the_widths_of_base(kind: str, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    transformers.AutoModel.from_config(BASE[kind]()).save_pretrained(tmp_path)
    clips = noise(400, 16000, 5003)
    exact, reduced = (load_audio(tmp_path, name).encode(clips) for name in ("float32", "bfloat16"))
    assert agreement(exact, reduced) >= LOWEST_COSINE


@pytest.mark.parametrize(
    "kind", ["tiny", "hubert", "hubert-batch-norm", "wavlm", "data2vec-audio", "whisper", "conformer-relative"]
)
@pytest.mark.sampled(3)
def test_bfloat16_of_toy_models_is_right(kind: str, tmp_path: Path) -> None:
    """Their positional convolutions have few channels a group, which a kernel of processors with AMX gets wrong."""
    folder = "tiny" if kind == "tiny" else toy_folder(kind, tmp_path / kind)
    clips = noise(400, 16000, 5003)
    exact, reduced = (load_audio(folder, name).encode(clips) for name in ("float32", "bfloat16"))
    assert agreement(exact, reduced) >= LOWEST_COSINE


def test_bfloat16_of_text_is_right(minilm: Path) -> None:
    for folder in ("tiny", minilm):
        encoders = [load_words(folder, name) for name in ("float32", "bfloat16")]
        texts = [encoders[0].tokenize(text) for text in ("Hello.", "I cannot believe that they did this to us!")]
        assert agreement(*(encoder.encode(texts) for encoder in encoders)) >= LOWEST_COSINE


def agreement(expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    first, second = (torch.from_numpy(np.concatenate(rows)) for rows in (expected, found))
    return lowest_cosine(first, second)


@pytest.mark.usefixtures("noisy_convolution")
def test_a_convolution_that_returns_noise_is_refused() -> None:
    with pytest.raises(PrecisionError, match=r"encoder tiny .*first in 'layer 0 \(projection and positions\)'"):
        load_audio("tiny")
    load_audio("tiny", "float32")


@pytest.mark.usefixtures("deaf_attention")
@pytest.mark.parametrize("load", [load_audio, load_words])
def test_an_attention_that_ignores_its_mask_is_refused(load: Callable[..., Any]) -> None:
    with pytest.raises(PrecisionError, match=r"first in 'layer 1'; set (audio|text)\.precision: float32"):
        load("tiny")
    load("tiny", "float32")


def test_a_refusal_names_processor_and_libraries(noisy_convolution: None) -> None:
    with pytest.raises(PrecisionError) as error:
        load_audio("tiny")
    message = str(error.value)
    assert f"torch {torch.__version__}" in message
    assert "oneDNN" in message
    assert "\n" not in message


@pytest.mark.usefixtures("noisy_convolution")
def test_fine_tuning_refuses_too() -> None:
    learner = load_speech_learner(FinetuneAudioParams(precision="bfloat16"), ["a", "b"])
    with pytest.raises(PrecisionError, match=r"set audio\.finetune\.precision: float32"):
        check_precision(learner, "cpu", "audio.finetune.precision")


def test_fine_tuning_with_right_kernels_is_accepted() -> None:
    speech = load_speech_learner(FinetuneAudioParams(precision="bfloat16"), ["a", "b"])
    check_precision(speech, "cpu", "audio.finetune.precision")
    check_precision(TextLearner(FinetuneTextParams(), ["a", "b"]), "cpu", "text.finetune.precision")
    assert speech.model.training


def test_an_encoder_proves_itself_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def counting(*arguments: Any, **options: Any) -> None:
        nonlocal looks
        looks += 1

    monkeypatch.setattr(precision, "check_agreement", counting)
    load_audio("tiny")
    once = looks
    load_audio("tiny")
    assert looks == once > 0


def conv_cases() -> Iterator[tuple[int, int]]:
    yield from ((channels, kernel) for channels in (4, 8, 12, 16, 24, 48, 64) for kernel in (16, 19, 31, 32, 128))


@pytest.mark.parametrize(("channels", "kernel"), conv_cases())
def test_positional_convolutions_are_right_in_bfloat16(channels: int, kernel: int) -> None:
    """0.02: rounding to bfloat16 (8 bits) gives 0.002; the kernel that is wrong on AMX is off by 1.1."""
    torch.manual_seed(0)
    convolution = nn.Conv1d(8 * channels, 8 * channels, kernel, padding=kernel // 2, groups=8).requires_grad_(False)
    reduced = nn.Conv1d(8 * channels, 8 * channels, kernel, padding=kernel // 2, groups=8).requires_grad_(False)
    reduced.load_state_dict(convolution.state_dict())
    precision.cast_products(nn.Sequential(reduced))
    for length in (1, 2, 49, 50, 151):
        x = torch.randn(2, 8 * channels, length)
        expected = convolution(x)
        assert (reduced(x.bfloat16()).float() - expected).norm() < 0.02 * expected.norm()


def test_widening_narrow_groups_changes_nothing_but_the_way() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv1d(24, 48, 4, padding=2, groups=8).double()
    x = torch.randn(3, 24, 11, dtype=torch.float64)
    expected = convolution(x)
    names = list(convolution.state_dict())
    widen_narrow_groups(nn.Sequential(convolution))
    assert torch.allclose(convolution(x), expected, rtol=0, atol=1e-12)
    assert list(convolution.state_dict()) == names


def test_the_first_convolution_is_float32_under_autocast(speech_folder: Path) -> None:
    encoder = load_audio(speech_folder, "float32")
    clips = noise(5003)
    expected = encoder.frontend.front_end([encoder.prepare(clips[0])], CPU)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder.frontend.front_end([encoder.prepare(clips[0])], CPU)[0]
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("noisy_convolution")
def test_a_model_of_such_features_says_what_to_do() -> None:
    from pipeline.encoders.named import load_speech

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "check_agreement", lambda *arguments, **options: None)
        identity = load_audio("tiny").identity
    precision.proven.clear()
    with pytest.raises(PrecisionError, match=r"the model was trained on such audio features, so use it on another"):
        load_speech(identity, None, "cpu")


def test_auto_is_refused_with_what_to_write() -> None:
    with pytest.raises(SettingsError, match=r"'auto' no longer exists.*write float32.*or bfloat16"):
        check_section({"precision": "auto"}, "audio", AudioParams, "params.yaml")


def test_float32_is_the_default_everywhere() -> None:
    assert {AudioParams().precision, TextParams().precision} == {"float32"}
    assert {FinetuneAudioParams().precision, FinetuneTextParams().precision} == {"float32"}


def test_advice_is_for_devices_that_are_built_for_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.settings.precision.built_for_bfloat16", lambda device: True)
    advice = advise_precision("float32", CPU, "audio.precision")
    assert advice is not None
    assert advice.startswith("audio.precision is float32; this device (")
    assert advise_precision("bfloat16", CPU, "audio.precision") is None
    monkeypatch.setattr("pipeline.settings.precision.built_for_bfloat16", lambda device: False)
    assert advise_precision("float32", CPU, "audio.precision") is None


def test_the_lowest_cosine_is_of_a_single_row() -> None:
    rows = torch.eye(4)
    turned = rows.clone()
    turned[2] = -turned[2]
    assert lowest_cosine(rows, rows) == 1
    assert lowest_cosine(rows, turned) == -1
    assert lowest_cosine(rows, rows.where(rows > 0, torch.nan)) == -1
    assert lowest_cosine(torch.zeros(2, 3), torch.zeros(2, 3)) == 1
    assert lowest_cosine(torch.zeros(2, 3), torch.ones(2, 3)) == 0
    assert lowest_cosine(torch.zeros(0, 3), torch.zeros(0, 3)) == 1


def test_only_decisive_layers_decide() -> None:
    rows, wrong = torch.eye(4), -torch.eye(4)
    expected, found = {"a": rows, "b": rows, "c": rows}, {"a": rows, "b": wrong, "c": rows}
    options: dict[str, Any] = {"who": "the model", "key": "train.precision", "device": CPU}
    check_agreement(expected, found, ["c"], **options)
    with pytest.raises(PrecisionError, match=r"cosine -1\.000 .* first in 'b'"):
        check_agreement(expected, found, ["b", "c"], **options)


@torch.inference_mode()
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_a_packed_product_is_that_of_the_plain_weight(gelu: bool, dtype: torch.dtype, tolerance: float) -> None:
    if dtype == torch.bfloat16 and not packs(CPU, dtype):
        pytest.skip("oneDNN packs no bfloat16 on this processor")
    linear, generator = nn.Linear(48, 32), torch.Generator().manual_seed(0)
    packed = Packed(linear.weight.data.to(dtype), linear.bias.data.to(dtype), gelu)
    samples = torch.randn(2, 40, 16, generator=generator)
    overlapping = samples.as_strided((2, 19, 48), (640, 32, 1))  # as the convolutions see them
    for x in (samples[0, :4].reshape(1, -1)[:, :48], overlapping, overlapping[:, :0]):
        expected = nn.functional.gelu(linear(x)) if gelu else linear(x)
        assert torch.allclose(packed(x).float(), expected, atol=tolerance)


@torch.inference_mode()
def test_a_layer_lets_go_of_its_plain_weight_when_it_is_first_called() -> None:
    called, read = nn.Linear(8, 4), nn.Linear(8, 4)
    x, bytes_before = torch.ones(3, 8), read.weight.nbytes
    expected = called(x)
    pack_products(nn.ModuleList([called, read]))
    assert torch.allclose(called(x), expected, atol=1e-6)
    assert torch.allclose(called(x), expected, atol=1e-6)
    assert read.weight.nbytes == bytes_before
    assert called.weight.nbytes == (0 if packs(CPU, torch.float32) else bytes_before)


@torch.inference_mode()
@pytest.mark.parametrize("activation", [GELUActivation(), GELUTanh(), nn.ReLU()])
def test_a_packed_product_takes_the_gelu_behind_it_and_no_other_activation(activation: nn.Module) -> None:
    class Feed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.intermediate_dense, self.intermediate_act_fn = nn.Linear(8, 16), activation
            self.output_dense = nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.output_dense(self.intermediate_act_fn(self.intermediate_dense(x)))  # type: ignore[no-any-return]

    feed, x = Feed(), torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    expected = feed(x)
    pack_products(nn.Sequential(feed))
    assert torch.allclose(feed(x), expected, atol=1e-6)
    taken = packs(CPU, torch.float32) and isinstance(activation, GELUActivation)
    assert isinstance(feed.intermediate_act_fn, nn.Identity) == taken
