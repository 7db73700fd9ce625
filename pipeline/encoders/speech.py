"""Speech encoders: the wav2vec2 family (wav2vec2, HuBERT, WavLM, data2vec-audio), and log-mel frames as a reference.

A clip's features do not depend on the clips that share its batch; `pipeline.encoders.exact` says how.

Axes: clips, samples, frames, layers, dim.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.batching import windows
from pipeline.encoders.budget import fitting
from pipeline.encoders.exact import Convolutions, Padding, prepared, zero_before_positions
from pipeline.encoders.front_end import FrontEnd
from pipeline.encoders.inference import fetched, ready_for_inference
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
from pipeline.engine import Rows
from pipeline.errors import EncoderError
from pipeline.params import AudioParams
from pipeline.store import Dtype, Identity

VERSION = 2  # raise it when a change alters the features
FAMILY = ("wav2vec2", "hubert", "wavlm", "data2vec-audio")
LOG_MEL = "log-mel"
PIECE_FRAMES = 100  # of a clip on a processor: what the convolutions work on stays in its cache
LARGEST_BATCH = {"cpu": 16, "cuda": 512}  # seconds in a batch; on processors larger ones were slower


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

    def frames(self, samples: int) -> int:
        """How many frames a clip of `samples` (at least 1) gives; one shorter than a frame is padded to one."""
        return self._frontend.frames(max(samples, self._frontend.receptive_field))

    def budget(self) -> int:
        """Samples in a batch, padding included, that fit the memory which is free now."""
        return int(self._frontend.budget_seconds() * self.sample_rate)

    def encode(self, clips: Sequence[Tensor]) -> list[np.ndarray]:
        """Each clip (samples,) -> (frames, *row_shape) float32; one longer than the window in overlapping windows."""
        return self.start(clips, "float32")()

    @torch.inference_mode()
    def start(self, clips: Sequence[Tensor], dtype: Dtype) -> Rows:
        """Begin to encode: the device works on while the caller goes on, until it asks for the rows, in `dtype`."""
        ready = [prepared(clip, self._frontend.normalise, self._frontend.receptive_field) for clip in clips]
        frames = [self._mixed(states).to(getattr(torch, dtype)) for states in self._frontend(ready)]
        return fetched(torch.cat(frames), [len(rows) for rows in frames])

    def _mixed(self, frames: Tensor) -> Tensor:
        """(frames, layers, dim) -> (frames, *row_shape)."""
        return frames.mean(dim=1) if self._mix == "mean" else frames


class HiddenStates:
    """Chosen hidden states of a wav2vec2-family model, exact under padding; the model is cut at the highest one.

    The convolutions see every clip whole, however long it is (`FrontEnd`). The transformer sees clips longer than the
    window in overlapping windows.
    """

    def __init__(
        self,
        model: Any,
        layers: list[int],
        final_norm: nn.Module,
        normalise: bool,
        sample_rate: int,
        device: str,
        params: AudioParams,
    ) -> None:
        self.normalise, self.sample_rate = normalise, sample_rate
        self._convolutions = Convolutions.of(model.config)
        self.hop, self.receptive_field = self._convolutions.hop, self._convolutions.receptive_field
        self._window = int(params.window_seconds * sample_rate) // self.hop
        self._overlap = int(params.overlap_seconds * sample_rate) // self.hop
        self._device = torch.device(device)
        self._reduced = choose_precision(params.precision, device) == "bfloat16"
        self._layers = layers
        self._final_norm = final_norm
        self._depth = layers[-1]
        self._captured: dict[int, Tensor] = {}
        self._padding = Padding(self._convolutions)
        zero_before_positions(model, self._padding)
        self._capture(model.encoder.layers)
        model.to(self._device)
        on_cpu = self._device.type == "cpu"
        self._front_end = FrontEnd(
            model.feature_extractor,
            self._convolutions,
            torch.bfloat16 if self._reduced else torch.float32,
            piece_frames=PIECE_FRAMES if on_cpu else self._window,
            together=not on_cpu,
        )
        self._projection, self._encoder = model.feature_projection, model.encoder
        ready_for_inference(self._projection, self._reduced)
        ready_for_inference(self._encoder, self._reduced)
        self._bytes_per_second = _activation_bytes(model.config, len(layers), sample_rate, self.hop, on_cpu)

    def frames(self, samples: int) -> int:
        """Frames of a clip of `samples`, by the convolutions' own formula."""
        return self._convolutions.frames(samples)

    def budget_seconds(self) -> float:
        """Audio in a batch that fits the memory which is free now."""
        return fitting(self._bytes_per_second, self._device, LARGEST_BATCH[self._device.type])

    def __call__(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Clips (samples,) -> (frames, layers, dim) float32 each."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._reduced):
            inputs = self._front_end([clip.to(self._device, non_blocking=True) for clip in clips])
            short = [index for index, frames in enumerate(inputs) if len(frames) <= self._window]
            encoded = dict(zip(short, self._transform([inputs[index] for index in short]), strict=True))
            return [
                encoded[index] if index in encoded else self._transform_long(frames)
                for index, frames in enumerate(inputs)
            ]

    def _transform_long(self, frames: Tensor) -> Tensor:
        pieces = []
        for window in windows(len(frames), self._window, self._overlap):
            (states,) = self._transform([frames[window.start : window.end]])
            pieces.append(states[window.keep_start - window.start : window.keep_end - window.start])
        return torch.cat(pieces)

    def _transform(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Clips (frames, channels) -> (frames, layers, dim) float32 each."""
        if not clips:
            return []
        lengths = [len(clip) for clip in clips]
        projected = self._projection(torch.cat(list(clips)))
        flat = (projected[0] if isinstance(projected, tuple) else projected).float()  # (all frames, dim)
        x = nn.utils.rnn.pad_sequence(flat.split(lengths), batch_first=True)  # (clips, frames, dim)
        mask = torch.arange(x.shape[1])[None] < torch.tensor(lengths)[:, None]
        self._padding.frame_mask = mask.to(self._device)
        self._encoder(x, attention_mask=None if mask.all() else self._padding.frame_mask)
        states = torch.stack([self._normed(layer) for layer in self._layers], dim=2)  # (clips, frames, layers, dim)
        self._captured.clear()
        return [states[index, :length] for index, length in enumerate(lengths)]

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


def _activation_bytes(config: Any, layers: int, sample_rate: int, hop: int, on_cpu: bool) -> float:
    """Memory for one second of audio in a batch, roughly: what the widest part of the model holds at once, float32."""
    dim, inner = config.hidden_size, config.intermediate_size
    transformer = 4 * (sample_rate / hop) * (8 * dim + 2 * inner + layers * dim)
    first = 4 * (sample_rate / config.conv_stride[0]) * config.conv_dim[0]
    return transformer if on_cpu else max(transformer, 3 * first)  # a processor's convolutions take it by the piece


def _cut(model: Any, depth: int) -> nn.Module:
    """Take away the layers behind `depth`; returns the norm that belongs to the last state, if one does.

    The norm behind the last layer of models with norms in front ("stable") is part of their last hidden state.
    """
    stable = getattr(model.config, "do_stable_layer_norm", False)
    final = stable and depth == len(model.encoder.layers)
    model.encoder.layers = model.encoder.layers[: max(1, depth)]
    return model.encoder.layer_norm if final else nn.Identity()


class LogMel:
    """Log-mel frames: 25 ms windows every 10 ms, 80 bands. No weights.

    Every band is brought to zero mean and unit variance over the clip, which takes away the recording's and much of
    the speaker's colour and leaves how the voice moves. The whole clip is at hand, so there are no windows.
    """

    sample_rate, hop, receptive_field, dim = 16_000, 160, 512, 80
    normalise = True

    def __init__(self, device: str) -> None:
        from torchaudio.transforms import MelSpectrogram

        self._device = device
        self._mel = MelSpectrogram(
            self.sample_rate, n_fft=512, win_length=400, hop_length=self.hop, n_mels=self.dim, center=False
        ).to(device)

    def frames(self, samples: int) -> int:
        """Frames of a clip of `samples`."""
        return (samples - self.receptive_field) // self.hop + 1

    def budget_seconds(self) -> float:
        """Clips are encoded one by one: a batch is what is fetched and written at once."""
        return 60.0

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
    normalise, sample_rate = preprocessing(source)
    final_norm = _cut(model, layers[-1])
    weights = weights_hash(model)
    frontend = HiddenStates(model, layers, final_norm, normalise, sample_rate, device, params)
    identity = Identity(
        {
            "modality": "audio",
            "model": source.name,
            "revision": source.revision,
            "architecture": config.model_type,
            "weights": weights,
            "layers": layers,
            "mix": params.mix,
            "frame_rate": sample_rate / frontend.hop,
            "sample_rate": sample_rate,
            "normalise": "clip" if normalise else "none",
            "window_seconds": params.window_seconds,
            "overlap_seconds": params.overlap_seconds,
            "precision": choose_precision(params.precision, device),
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
