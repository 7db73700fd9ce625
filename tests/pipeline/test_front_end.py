"""The convolutions as matrix products: the frames of transformers, whatever the pieces and the neighbours."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.encoders.exact import Convolutions
from pipeline.encoders.front_end import FrontEnd

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
        FrontEnd(model.feature_extractor, convolutions, torch.float32, frames, together)
        for frames, together in ((7, False), (1000, True))
    )
    return pieces, whole, model.feature_extractor


@pytest.mark.parametrize("folder", ["speech_folder", "stable_speech_folder"])
def test_frames_are_those_of_transformers(folder: str, request: pytest.FixtureRequest) -> None:
    """Group norm over time in one model, layer norm and biases in the other."""
    pieces, whole, extractor = load(request.getfixturevalue(folder))
    clips = noise(400, 16000, 719, 720, 5003)
    for front_end in (pieces, whole):
        for frames, clip in zip(front_end(clips), clips, strict=True):
            expected = extractor(clip[None])[0].T
            assert frames.shape == expected.shape
            assert (frames - expected).abs().max() < TOLERANCE


def test_a_silent_clip_is_finite_and_that_of_transformers(speech_folder: Path) -> None:
    pieces, _, extractor = load(speech_folder)
    (frames,) = pieces([torch.zeros(3000)])
    assert (frames - extractor(torch.zeros(1, 3000))[0].T).abs().max() < TOLERANCE


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (3, 3), (5, 2), (1, 1), (3, 1), (2, 3)])
@pytest.mark.parametrize("together", [False, True])
def test_any_kernel_and_stride_is_the_convolution(kernel: int, stride: int, together: bool) -> None:
    from types import SimpleNamespace as Layer

    torch.manual_seed(0)
    convolutions = [torch.nn.Conv1d(1, 6, 4, 2), torch.nn.Conv1d(6, 5, kernel, stride)]
    layers = [Layer(conv=convolution.requires_grad_(False), activation=torch.tanh) for convolution in convolutions]
    shape = Convolutions((4, kernel), (2, stride))
    front_end = FrontEnd(Layer(conv_layers=layers), shape, torch.float32, piece_frames=5, together=together)
    clips = noise(200, 61)
    for frames, clip in zip(front_end(clips), clips, strict=True):
        expected = clip[None]
        for convolution in convolutions:
            expected = torch.tanh(convolution(expected))
        assert frames.shape == expected.T.shape
        assert (frames - expected.T).abs().max() < TOLERANCE
