"""The convolutions as matrix products: the frames of transformers, whatever the pieces and the neighbours."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.encoders import Convolutions
from pipeline.encoders.front_end import FrontEnd, LongConvolution, Moments
from pipeline.encoders.precision import cast_products

pytestmark = pytest.mark.arithmetic

# frames are of order 1, and both ways add up the same products in another order: 2.4e-6 was seen, at AVX2 and on AMX
TOLERANCE = 2e-5


def noise(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, generator=generator) + 0.1 for length in lengths]


def load(folder: Path) -> tuple[FrontEnd, FrontEnd, torch.nn.Module]:
    """Pieces one by one, as on a processor; whole clips together, as on a GPU; and transformers' own module."""
    from transformers import Wav2Vec2Model

    model = Wav2Vec2Model.from_pretrained(folder).eval().requires_grad_(False)
    convolutions = Convolutions.of(model.config)
    pieces, whole = (
        FrontEnd(model.feature_extractor, convolutions, torch.float32, frames, budget)
        for frames, budget in ((7, 0), (1000, 10**6))
    )
    return pieces, whole, model.feature_extractor


def encode(front_end: FrontEnd, clips: list[Tensor]) -> list[Tensor]:
    return front_end([front_end.prepare(clip) for clip in clips], torch.device("cpu"))


@pytest.mark.parametrize("folder", ["speech_folder", "stable_speech_folder"])
def test_frames_are_those_of_transformers(folder: str, request: pytest.FixtureRequest) -> None:
    """Group norm over time in one model, layer norm and biases in the other."""
    pieces, whole, extractor = load(request.getfixturevalue(folder))
    clips = noise(400, 16000, 719, 720, 5003)
    for front_end in (pieces, whole):
        for frames, clip in zip(encode(front_end, clips), clips, strict=True):
            expected = extractor(clip[None])[0].T
            assert frames.shape == expected.shape
            assert (frames - expected).abs().max() < TOLERANCE


def test_a_silent_clip_is_finite_and_that_of_transformers(speech_folder: Path) -> None:
    pieces, _, extractor = load(speech_folder)
    (frames,) = encode(pieces, [torch.zeros(3000)])
    assert (frames - extractor(torch.zeros(1, 3000))[0].T).abs().max() < TOLERANCE


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (3, 3), (5, 2), (1, 1), (3, 1), (2, 3)])
@pytest.mark.parametrize(("budget", "step"), [(0, 1), (0, 3), (10**6, 1), (10**6, 4)])
def test_any_kernel_and_stride_is_the_convolution(kernel: int, stride: int, budget: int, step: int) -> None:
    from types import SimpleNamespace as Layer

    torch.manual_seed(0)
    convolutions = [torch.nn.Conv1d(1, 6, 4, 2), torch.nn.Conv1d(6, 5, kernel, stride)]
    layers = [Layer(conv=convolution.requires_grad_(False), activation=torch.tanh) for convolution in convolutions]
    shape = Convolutions((4, kernel), (2, stride))
    front_end = FrontEnd(Layer(conv_layers=layers), shape, torch.float32, 5, budget, step)
    clips = noise(200, 61)
    for frames, clip in zip(encode(front_end, clips), clips, strict=True):
        expected = clip[None]
        for convolution in convolutions:
            expected = torch.tanh(convolution(expected))
        assert frames.shape == expected.T.shape
        assert (frames - expected.T).abs().max() < TOLERANCE


def test_moments_of_a_long_clip_are_those_of_one_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long clip is looked at in parts, so that memory is bounded."""
    (clip,) = noise(5000)
    whole = Moments.of(clip, 10, 5)
    monkeypatch.setattr("pipeline.encoders.front_end.PLACES", 64)
    parts = Moments.of(clip, 10, 5)
    windows = clip.double().unfold(0, 10, 5)
    assert torch.allclose(parts.covariance, whole.covariance, rtol=0, atol=1e-12)
    assert torch.allclose(whole.covariance, torch.cov(windows.T, correction=0), rtol=0, atol=1e-12)


def test_pieces_come_in_few_lengths(speech_folder: Path) -> None:
    """Each new one costs oneDNN up to 60 ms (docs/extraction.md)."""
    from transformers import Wav2Vec2Model

    model = Wav2Vec2Model.from_pretrained(speech_folder).eval().requires_grad_(False)
    activation, seen = model.feature_extractor.conv_layers[-1].activation, []
    del model.feature_extractor.conv_layers[-1].activation  # a module, which no function may replace
    model.feature_extractor.conv_layers[-1].activation = lambda x: (seen.append(x.shape[1]), activation(x))[1]
    front_end = FrontEnd(model.feature_extractor, Convolutions.of(model.config), torch.float32, 20, 0, step=10)
    encode(front_end, noise(*range(400, 20_000, 390)))
    assert set(seen) == {10, 20}


def test_pieces_stay_within_the_budget(speech_folder: Path) -> None:
    """A long clip is worked off a few pieces at a time: never more samples at once than the budget."""
    from transformers import Wav2Vec2Model

    model = Wav2Vec2Model.from_pretrained(speech_folder).eval().requires_grad_(False)
    first = model.feature_extractor.conv_layers[0]
    seen: list[tuple[int, ...]] = []
    activation = first.activation
    del first.activation  # a module, which no function may replace
    first.activation = lambda x: (seen.append(x.shape), activation(x))[1]
    convolutions = Convolutions.of(model.config)
    front_end = FrontEnd(model.feature_extractor, convolutions, torch.float32, piece_frames=20, budget=30_000)
    encode(front_end, noise(200_000, 9000, 400))
    samples = [pieces * frames * convolutions.strides[0] for pieces, frames, _ in seen]
    assert max(samples) <= 30_000
    assert len(seen) > 200_000 // 30_000


@torch.inference_mode()
@pytest.mark.parametrize(("kernel", "padding"), [(128, 64), (95, 47), (64, 0)])
@pytest.mark.parametrize("frames", [64, 130, 400])
def test_a_long_convolution_is_the_convolution_and_no_clip_sees_another(kernel: int, padding: int, frames: int) -> None:
    plain = nn.Conv1d(24, 12, kernel, padding=padding, groups=3)
    module, x = nn.ModuleList([plain]), torch.randn(2, 24, frames, generator=torch.Generator().manual_seed(0))
    expected = plain(x)
    LongConvolution.replace(module)
    cast_products(module)  # it stays in float32
    assert torch.allclose(plain(x), expected, atol=1e-5)
    longer = plain(nn.functional.pad(x, (0, 200)))
    assert torch.allclose(longer[:, :, : expected.shape[2]], expected, atol=1e-5)
    assert not plain.weight.nbytes
