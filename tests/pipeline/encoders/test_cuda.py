"""Encoders on a GPU that is not there: devices and types fit, nothing waits for it, and memory has a bound."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.encoders import TEXT, Spectra, TextEncoder, front_end, speech, text, transfer, whisper
from pipeline.encoders.speech import HiddenStates
from pipeline.encoders.whisper import WhisperStates
from pipeline.errors import EncoderError
from pipeline.params import AudioParams, TextParams
from pipeline.store import Identity
from tests.fake_cuda import Seen, fake_cuda
from tests.pipeline.encoders.test_architectures import text_config, tokenizer
from tests.pipeline.encoders.test_speech import TOYS, toy_config

# text architectures whose code in transformers needs a number from the device, so that Python waits in each batch, or
# that FakeTensorMode cannot follow, and what it says then
UNFOLLOWED = {
    "flaubert": "_local_scalar_dense",
    "longformer": "_local_scalar_dense",
    "xlm": "_local_scalar_dense",
    "xmod": "nonzero",
    "deberta-v2": "NVIDIA driver",  # its scripted functions ask for one
    "falcon": "NVIDIA driver",  # picks heads by a list of numbers, which is copied
    "gpt_neo": "NVIDIA driver",  # copies the value of what is hidden
}
WITHOUT_BFLOAT16 = {"fnet": "Unsupported dtype BFloat16"}  # a Fourier transform
PRECISIONS = ("float32", "bfloat16")

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")


@pytest.fixture(autouse=True)
def _no_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which only a driver can give; one copy for an upload, whatever it holds."""

    def upload(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
        return transfer.unpacked(transfer.packed(tensors).to(device), tensors)

    for module in (front_end, speech, text, whisper):
        monkeypatch.setattr(module, "upload", upload)


def speech_states(kind: str, precision: str, **params: Any) -> HiddenStates | WhisperStates:
    given, states = AudioParams(**params), None
    with unset_fake_temporarily():
        model = transformers.AutoModel.from_config(toy_config(kind)).eval().requires_grad_(False)
        if isinstance(model, transformers.WhisperModel):
            extractor = transformers.WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
            spectra = Spectra(extractor, longest=150, margin=50)
    if isinstance(model, transformers.WhisperModel):
        windows = given.window_seconds, given.overlap_seconds
        states = WhisperStates(model.encoder, [0, 1, 2], spectra, "cuda", *windows)
    else:
        states = HiddenStates(model, [0, 1, 2], True, 16_000, "cuda", given)
    if precision == "bfloat16":
        states.reduce()
    return states


def finish(states: Tensor) -> Tensor:
    return states.mean(dim=-2).half()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", TOYS)
def test_speech_fits_and_does_not_wait(kind: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One upload a batch for the clips, one for their lengths in frames; nothing comes back."""
    with fake_cuda(monkeypatch):
        encoder = speech_states(kind, precision)
        with unset_fake_temporarily():
            ready = [encoder.prepare(torch.zeros(samples)) for samples in (16_000, 5003, 400)]
        with torch.inference_mode(), Seen() as seen:
            frames = encoder(ready, finish)
    assert {(rows.device.type, rows.dtype, rows.shape[1:]) for rows in frames} == {("cuda", torch.float16, (32,))}
    whisper = kind.startswith("whisper")
    assert [len(rows) for rows in frames] == ([50, 16, 2] if whisper else [49, 15, 1])
    assert seen.copies.total() == (3 if kind == "conformer-rotary" else 2), seen.copies  # a range of so many frames
    if precision == "bfloat16":
        assert torch.bfloat16 in seen.types


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm", "whisper"])
def test_windows_of_a_long_clip_do_not_wait(kind: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch):
        encoder = speech_states(kind, precision, window_seconds=2.0, overlap_seconds=0.5)
        with unset_fake_temporarily():
            ready = encoder.prepare(torch.zeros(100_000))
        with torch.inference_mode(), Seen() as seen:
            (frames,) = encoder([ready], finish)
    assert frames.shape == (313 if kind == "whisper" else 312, 32)
    windows = 5  # each says how many frames it has
    assert seen.copies.total() <= 1 + windows, seen.copies


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that is made on the GPU."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.is_cuda and not func.is_view:
            self.bytes = max(self.bytes, found.nbytes)
        return found


def test_a_long_clip_has_a_bound_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond what is allowed at once, only samples and frames grow with a clip: not what convolutions work on."""
    largest = []
    for minutes in (2, 20):
        with fake_cuda(monkeypatch):
            encoder = speech_states("wav2vec2", "float32")
            clip = encoder.prepare(torch.zeros(minutes * 60 * 16_000))
            with torch.inference_mode(), Largest() as seen:
                encoder([clip], finish)
        largest.append(seen.bytes)
    first_layer = 4 * 16 * speech.TOGETHER_SECONDS * 16_000 // 5  # float32, 16 channels, stride 5
    samples = 4 * 20 * 60 * 16_000
    assert largest[0] <= first_layer
    assert largest[1] <= max(first_layer, samples)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", TEXT)
@pytest.mark.sampled(5)
def test_text_fits_and_does_not_wait(kind: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One upload a batch, and nothing comes back, in every architecture but those that are named above."""
    architecture = TEXT[kind]
    model = getattr(transformers, architecture.loader).from_config(text_config(kind)).eval().requires_grad_(False)
    numbers = [[4] * 9] if architecture.alone else [[4] * 9, [4] * 3]
    refusal = UNFOLLOWED.get(kind) or (WITHOUT_BFLOAT16.get(kind) if precision == "bfloat16" else None)
    expected = pytest.raises((EncoderError, RuntimeError), match=refusal) if refusal else nullcontext()
    with fake_cuda(monkeypatch), expected:
        encoder = TextEncoder(model, tokenizer(kind), Identity({}), [0, 1, 2], TextParams(), "cuda")
        if precision == "bfloat16":
            encoder.reduce()
        with torch.inference_mode(), Seen() as seen:
            rows = encoder.forward(numbers)
        assert [(len(one), one.shape[1]) for one in rows] == [(encoder.tokens(one), 3) for one in numbers]
        assert {one.device.type for one in rows} == {"cuda"}
        assert seen.copies.total() == 1, seen.copies
        assert (torch.bfloat16 in seen.types) == (precision == "bfloat16")


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64, torch.int64), (torch.uint8, torch.float64)])
def test_an_upload_gives_back_what_went_in(dtypes: tuple[torch.dtype, ...]) -> None:
    tensors = [torch.arange(12).reshape(3, 4).to(dtype)[: index + 1] for index, dtype in enumerate(dtypes)]
    for expected, found in zip(tensors, transfer.unpacked(transfer.packed(tensors), tensors), strict=True):
        assert torch.equal(expected, found)
        assert expected.dtype == found.dtype
