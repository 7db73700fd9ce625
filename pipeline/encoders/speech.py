"""Speech encoders: the wav2vec2 family (wav2vec2, HuBERT, WavLM, data2vec-audio), and log-mel frames as a reference.

A clip's features do not depend on the clips that share its batch; `pipeline.encoders.exact` says how.

Axes: clips, samples, frames, layers, dim.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.batching import windows
from pipeline.encoders.exact import Convolutions, make_exact, padded, prepared
from pipeline.encoders.loading import (
    Source,
    choose_device,
    choose_precision,
    find_model,
    load_pretrained,
    resolve_layers,
    weights_hash,
)
from pipeline.encoders.tiny import TINY_SPEECH
from pipeline.errors import EncoderError
from pipeline.params import AudioParams
from pipeline.store import Identity

VERSION = 1  # raise it when a change alters the features
FAMILY = ("wav2vec2", "hubert", "wavlm", "data2vec-audio")
LOG_MEL = "log-mel"


class SpeechEncoder:
    """Clips -> frames; made by `load_speech_encoder`.

    Attributes:
        identity: what the features depend on.
        sample_rate: of the clips, in Hz.
        row_shape: of one frame, (dim,) or (layers, dim).
    """

    def __init__(
        self, frontend: "HiddenStates | LogMel", identity: Identity, row_shape: tuple[int, ...], params: AudioParams
    ) -> None:
        self._frontend = frontend
        self.identity = identity
        self.sample_rate = frontend.sample_rate
        self.row_shape = row_shape
        self._mix = params.mix
        self._window = (
            int(params.window_seconds * self.sample_rate) // frontend.hop if frontend.windowed else sys.maxsize
        )
        self._overlap = int(params.overlap_seconds * self.sample_rate) // frontend.hop

    def frames(self, samples: int) -> int:
        """How many frames a clip of `samples` (at least 1) gives; one shorter than a frame is padded to one."""
        return self._frontend.frames(max(samples, self._frontend.receptive_field))

    @torch.inference_mode()
    def encode(self, clips: Sequence[Tensor]) -> list[np.ndarray]:
        """Each clip (samples,) -> (frames, *row_shape) float32; one longer than the window in overlapping windows."""
        ready = [prepared(clip, self._frontend.normalise, self._frontend.receptive_field) for clip in clips]
        fitting = [clip for clip in ready if self._frontend.frames(len(clip)) <= self._window]
        encoded = iter(self._frontend(fitting) if fitting else [])
        return [
            self._mixed(next(encoded)) if self._frontend.frames(len(clip)) <= self._window else self._encode_long(clip)
            for clip in ready
        ]

    def _encode_long(self, clip: Tensor) -> np.ndarray:
        hop, field = self._frontend.hop, self._frontend.receptive_field
        pieces = []
        for window in windows(self._frontend.frames(len(clip)), self._window, self._overlap):
            stretch = clip[window.start * hop : (window.end - 1) * hop + field]
            frames = self._frontend([stretch])[0]
            pieces.append(self._mixed(frames[window.keep_start - window.start : window.keep_end - window.start]))
        return np.concatenate(pieces)

    def _mixed(self, frames: Tensor) -> np.ndarray:
        """(frames, layers, dim) -> (frames, *row_shape)."""
        return (frames.mean(dim=1) if self._mix == "mean" else frames).float().cpu().numpy()


class HiddenStates:
    """Chosen hidden states of a wav2vec2-family model, exact under padding; the model is cut at the highest one."""

    windowed = True

    def __init__(
        self,
        model: Any,
        layers: list[int],
        normalise: bool,
        sample_rate: int,
        device: str,
        precision: str,
    ) -> None:
        self.normalise, self.sample_rate = normalise, sample_rate
        self._convolutions = Convolutions.of(model.config)
        self.hop, self.receptive_field = self._convolutions.hop, self._convolutions.receptive_field
        self._device, self._precision = device, precision
        self._layers = layers
        # the norm behind the last layer of models with norms in front ("stable"), part of their last hidden state
        stable = getattr(model.config, "do_stable_layer_norm", False)
        final = stable and layers[-1] == len(model.encoder.layers)
        self._final_norm = model.encoder.layer_norm if final else nn.Identity()
        model.encoder.layers = model.encoder.layers[: max(1, layers[-1])]
        self._depth = layers[-1]
        self._captured: dict[int, Tensor] = {}
        make_exact(model)
        self._capture(model.encoder.layers)
        self._model = model.to(device)

    def frames(self, samples: int) -> int:
        """Frames of a clip of `samples`, by the convolutions' own formula."""
        return self._convolutions.frames(samples)

    def __call__(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Clips (samples,) -> (frames, layers, dim) each."""
        batch, sample_mask = padded(clips)
        with torch.autocast(torch.device(self._device).type, torch.bfloat16, enabled=self._precision == "bfloat16"):
            self._model(batch.to(self._device), attention_mask=sample_mask.long().to(self._device))
            states = [self._normed(layer) for layer in self._layers]
        self._captured.clear()
        stacked = torch.stack(states, dim=2)  # (clips, frames, layers, dim)
        return [stacked[index, : self.frames(len(clip))] for index, clip in enumerate(clips)]

    def _normed(self, layer: int) -> Tensor:
        state = self._captured[layer].float()
        return self._final_norm(state) if layer == self._depth else state

    def _capture(self, blocks: nn.ModuleList) -> None:
        """Keep the input of the first transformer layer as state 0, and the output of layer n as state n."""

        def keep_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._captured[0] = args[0] if args else kwargs["hidden_states"]

        if 0 in self._layers:
            blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True)
        for number, block in enumerate(blocks, start=1):
            if number in self._layers:
                block.register_forward_hook(self._keep_output(number))

    def _keep_output(self, number: int) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._captured[number] = output[0] if isinstance(output, tuple) else output

        return keep


class LogMel:
    """Log-mel frames: 25 ms windows every 10 ms, 80 bands. No weights.

    Every band is brought to zero mean and unit variance over the clip, which takes away the recording's and much of
    the speaker's colour and leaves how the voice moves. The whole clip is at hand, so there are no windows.
    """

    sample_rate, hop, receptive_field, dim = 16_000, 160, 512, 80
    normalise, windowed = True, False

    def __init__(self, device: str) -> None:
        from torchaudio.transforms import MelSpectrogram

        self._device = device
        self._mel = MelSpectrogram(
            self.sample_rate, n_fft=512, win_length=400, hop_length=self.hop, n_mels=self.dim, center=False
        ).to(device)

    def frames(self, samples: int) -> int:
        """Frames of a clip of `samples`."""
        return (samples - self.receptive_field) // self.hop + 1

    def __call__(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Clips (samples,) -> (frames, 1, dim) each, encoded one by one: nothing to share, nothing to pad."""
        return [self._standardised(torch.log(self._mel(clip.to(self._device)) + 1e-5).T)[:, None] for clip in clips]

    @staticmethod
    def _standardised(frames: Tensor) -> Tensor:
        centred = frames - frames.mean(dim=0)
        return centred / (centred.square().mean(dim=0).sqrt() + 1e-3)


def load_speech_encoder(params: AudioParams, device: str = "auto") -> SpeechEncoder:
    """The encoder that `params` names, ready on `device`.

    Raises:
        EncoderError: it cannot be found or loaded, or is not of the wav2vec2 family.
    """
    device = choose_device(device)
    if params.encoder == LOG_MEL:
        return _log_mel_encoder(params, device)
    source = find_model(params.encoder, params.revision, {"tiny": TINY_SPEECH})
    return _hidden_state_encoder(source, params, device)


def _log_mel_encoder(params: AudioParams, device: str) -> SpeechEncoder:
    frontend = LogMel(device)
    identity = Identity(
        {
            "modality": "audio",
            "model": LOG_MEL,
            "frame_rate": frontend.sample_rate / frontend.hop,
            "sample_rate": frontend.sample_rate,
            "normalise": "clip and band",
            "dtype": params.dtype,
            "version": VERSION,
        }
    )
    return SpeechEncoder(frontend, identity, (frontend.dim,), params.model_copy(update={"mix": "mean"}))


def _hidden_state_encoder(source: Source, params: AudioParams, device: str) -> SpeechEncoder:
    from transformers import AutoConfig, AutoModel

    config = load_config(AutoConfig, source)
    if config.model_type not in FAMILY:
        raise EncoderError(
            f"audio.encoder {params.encoder} is a '{config.model_type}' model; expected one of {', '.join(FAMILY)}, "
            f"or {LOG_MEL}"
        )
    model = load_pretrained(AutoModel, source, dtype=torch.float32)
    layers = resolve_layers(params.layers, len(model.encoder.layers), params.encoder)
    precision = choose_precision(params.precision, device)
    normalise, sample_rate = preprocessing(source)
    frontend = HiddenStates(model, layers, normalise, sample_rate, device, precision)
    identity = Identity(
        {
            "modality": "audio",
            "model": source.name,
            "revision": source.revision,
            "architecture": config.model_type,
            "weights": weights_hash(model),
            "layers": layers,
            "mix": params.mix,
            "frame_rate": sample_rate / frontend.hop,
            "sample_rate": sample_rate,
            "normalise": "clip" if normalise else "none",
            "window_seconds": params.window_seconds,
            "overlap_seconds": params.overlap_seconds,
            "precision": precision,
            "dtype": params.dtype,
            "version": VERSION,
        }
    )
    dim = int(config.hidden_size)
    return SpeechEncoder(frontend, identity, (dim,) if params.mix == "mean" else (len(layers), dim), params)


def load_config(loader: Any, source: Source) -> Any:
    """The model's configuration, without its weights; raises EncoderError where it cannot be read."""
    try:
        return loader.from_pretrained(source.location, revision=source.revision, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file makes the library raise
        reason = " ".join(str(error).split())[:300]
        raise EncoderError(f"encoder {source.location}: its config.json cannot be read: {reason}") from None


def preprocessing(source: Source) -> tuple[bool, int]:
    """(normalise each clip, sample rate) as the model's preprocessor says; as wav2vec2-base where it has none."""
    from transformers import Wav2Vec2FeatureExtractor

    pinned: dict[str, Any] = {"revision": source.revision} if source.revision else {}
    try:
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(source.location, **pinned)
        sample_rate = int(extractor.sampling_rate)
    except Exception as error:  # whatever a missing or a damaged file makes the library raise
        if Path(source.location).is_dir() and not (Path(source.location) / "preprocessor_config.json").exists():
            return True, 16_000
        reason = " ".join(str(error).split())[:300]
        raise EncoderError(f"encoder {source.location}: preprocessor_config.json cannot be read: {reason}") from None
    if not 1_000 <= sample_rate <= 768_000:
        raise EncoderError(f"encoder {source.location}: preprocessor_config.json: sampling_rate is {sample_rate} Hz")
    return bool(extractor.do_normalize), sample_rate
