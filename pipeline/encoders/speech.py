"""Speech encoders: the wav2vec2 family (its Conformer, HuBERT, WavLM, UniSpeech, data2vec-audio), Whisper's, log-mel.

A clip's features do not depend on the clips that share its batch; `pipeline.encoders.exact` says how.

Axes: clips, samples, frames, layers, dim.
"""

import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.encoders.batching import Rows, windows
from pipeline.encoders.egemaps import EGEMAPS, Egemaps
from pipeline.encoders.exact import Convolutions, Padding, prepared, zero_before_convolutions
from pipeline.encoders.front_end import FrontEnd, LongConvolution, Prepared
from pipeline.encoders.loading import (
    Source,
    choose_device,
    encoder_of,
    find_model,
    load_config,
    load_preprocessor,
    load_pretrained,
    mixed,
    resolve_layers,
    row_shape,
    weights_hash,
)
from pipeline.encoders.precision import (
    PROBE_FRAMES,
    Probe,
    cast_products,
    layer_name,
    noise_and_tones,
    pack_products,
    packs,
    ready_for_inference,
    reduce_precision,
    shapes_cost,
)
from pipeline.encoders.tiny import TINY_SPEECH
from pipeline.encoders.transfer import batches_at_once, fetched, fitting, upload
from pipeline.encoders.whisper import MARGIN_SECONDS, Spectra, WhisperStates
from pipeline.params import AudioParams, Normalise
from pipeline.settings import cores, full_float32
from pipeline.store import Columns, Dtype, Identity, join_columns, measure_columns

log = logging.getLogger(__name__)

VERSION = 3  # raise it when a change alters the features
LOG_MEL = "log-mel"
PIECE_FRAMES = 100  # of a clip on a processor: what the convolutions work on stays in its cache
PIECE_STEP = 10  # frames by which pieces differ in length where oneDNN multiplies
WIDTH_STEP = 8  # and batches in width, where a new shape costs much (docs/extraction.md)
TOGETHER_SECONDS = 64  # of audio that a GPU's convolutions work on at once, padding included: about 1.3 GB for base
SPEAKER_SECONDS = 120  # of a speaker's clips, which say what their frames are like; without weights, all
FLAT = 1e-3  # added to a standard deviation that frames are divided by
LARGEST_BATCH = {"cpu": 8, "cuda": 512}  # seconds in a batch; larger ones make nothing faster


class SpeechEncoder:
    """Clips -> frames; made by `load_speech_encoder`.

    Attributes:
        identity: what the features depend on.
        sample_rate: of the clips, in Hz.
        row_shape: of one frame, (dim,) or (layers, dim).
        device: where it computes.
        side_by_side: how many batches are best encoded at the same time, each by one core; 0: all cores work at one.
        by_speaker: whether frames are normalised by those of their speaker's clips, see `measure_speakers`.
    """

    def __init__(
        self,
        frontend: "HiddenStates | WhisperStates | LogMel | Egemaps",
        identity: Identity,
        row_shape: tuple[int, ...],
        params: AudioParams,
    ) -> None:
        self.frontend = frontend
        self.identity = identity
        self.sample_rate = frontend.sample_rate
        self.row_shape = row_shape
        self.device = frontend.device
        self.side_by_side, self._cores = frontend.side_by_side, torch.get_num_threads()
        self._mix = params.mix
        how = frontend.how if isinstance(frontend, LogMel) else params.normalise
        self._by_itself = how in ("clip-band", "speaker")  # a clip whose speaker is not known
        self.by_speaker = how == "speaker"

    def frames(self, samples: int) -> int:
        """How many frames a clip of `samples` (at least 1) gives; one shorter than a frame is padded to one."""
        return self.frontend.frames(max(samples, self.frontend.receptive_field))

    def budget(self) -> int:
        """Samples in a batch, padding included, that fit the memory which is free now."""
        return int(self.frontend.budget_seconds() * self.sample_rate)

    def prepare(self, clip: Tensor, speaker: Columns | None = None) -> Prepared:
        """What can be done to a clip (samples,) on the host, before its batch is encoded; safe in threads.

        `speaker` is from `measure_speakers`; without, where it is asked for, the clip stands for its speaker.
        """
        ready = self.frontend.prepare(prepared(clip, self.frontend.normalise, self.frontend.receptive_field))
        if speaker is None:
            return ready
        mean, deviation = (torch.from_numpy(one).float() for one in (speaker.mean, speaker.deviation))
        return ready._replace(speaker=(mean, deviation))

    def measure_speakers(
        self, speakers: Sequence[str | None], load: Callable[[int], Tensor | None]
    ) -> dict[str, Columns]:
        """Mean and deviation of the frames of each speaker that has a name; `load` gives the clip of an index.

        An encoder with weights listens to `SPEAKER_SECONDS` of a speaker, clip by clip in this order.
        """
        cheap = isinstance(self.frontend, LogMel | Egemaps)
        most = sys.maxsize if cheap else SPEAKER_SECONDS * self.sample_rate
        found: dict[str, Columns] = {}
        heard: Counter[str] = Counter()
        bar = tqdm(speakers, desc="hearing the speakers", unit="clip", disable=None)
        for index, speaker in enumerate(bar):
            clip = load(index) if speaker and heard[speaker] < most else None
            if speaker and clip is not None:
                clip = clip[: most - heard[speaker]]
                heard[speaker] += len(clip)
                with cores(self._cores):  # others wait for this
                    own = measure_columns(self._frames([self.prepare(clip)])[0].cpu().numpy())
                found[speaker] = join_columns(found[speaker], own) if speaker in found else own
        return found

    def encode(self, clips: Sequence[Tensor]) -> list[np.ndarray]:
        """Each clip (samples,) -> (frames, *row_shape) float32; one longer than the window in overlapping windows."""
        return self.start([self.prepare(clip) for clip in clips], "float32")()

    def start(self, clips: Sequence[Prepared], dtype: Dtype) -> Rows:
        """Begin to encode: the device works on while the caller goes on, until it asks for the rows, in `dtype`."""
        stored = getattr(torch, dtype)
        if not self._by_itself:
            frames = self._frames(clips, stored)
        else:
            found = self._frames(clips)
            frames = [_normalised(rows, clip.speaker).to(stored) for rows, clip in zip(found, clips, strict=True)]
        return fetched(torch.cat(frames), [len(rows) for rows in frames])

    @torch.inference_mode()
    def _frames(self, clips: Sequence[Prepared], dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """(frames, *row_shape) of each clip, not normalised by any other."""

        def finish(states: Tensor) -> Tensor:
            """(..., layers, dim) -> (..., *row_shape)."""
            return mixed(states, self._mix).to(dtype)

        with full_float32():
            return self.frontend(clips, finish)


def _normalised(frames: Tensor, speaker: tuple[Tensor, Tensor] | None) -> Tensor:
    """(frames, ...) with mean 0 and deviation 1 in each column, over the speaker's frames or, without, these."""
    if speaker is None:
        centred = frames - frames.mean(dim=0)
        return centred / (centred.square().mean(dim=0).sqrt() + FLAT)
    mean, deviation = (one.to(frames.device) for one in speaker)
    return (frames - mean) / (deviation + FLAT)


class HiddenStates:
    """Chosen hidden states of a wav2vec2-family model, exact under padding; the model is cut at the highest one.

    The convolutions see every clip whole, however long it is (`FrontEnd`). The transformer sees clips longer than the
    window in overlapping windows. Float32 until `reduce` is called.
    """

    def __init__(
        self, model: Any, layers: list[int], normalise: bool, sample_rate: int, device: str, params: AudioParams
    ) -> None:
        self.normalise, self.sample_rate = normalise, sample_rate
        self._convolutions = Convolutions.of(model.config)
        self.hop, self.receptive_field = self._convolutions.hop, self._convolutions.receptive_field
        self._window = int(params.window_seconds * sample_rate) // self.hop
        self._overlap = int(params.overlap_seconds * sample_rate) // self.hop
        self.device = torch.device(device)
        self._layers = layers
        self._conformer = model.config.model_type == "wav2vec2-conformer"
        self._norm_first = self._conformer or getattr(model.config, "do_stable_layer_norm", False)
        # the norm behind the last layer of models with norms in front ("stable") is part of their last state alone
        final = self._norm_first and layers[-1] == model.config.num_hidden_layers
        self._final_norm = model.encoder.layer_norm if final else nn.Identity()
        # scaled dot-product attention takes masks of (clips, 1, frames, frames); WavLM makes its own of (clips, frames)
        self._ready_mask = model.config._attn_implementation == "sdpa"
        self._padding = Padding(self._convolutions)
        zero_before_convolutions(model, self._padding)
        self._model = model.to(self.device)
        ready_for_inference(self._model)
        if self.device.type == "cpu":
            LongConvolution.replace(self._model.encoder)
        self._reduced = False
        self._step = 1  # frames of which a batch's width is a multiple
        self.front_end = self._make_front_end(torch.float32)
        on_cpu = self.device.type == "cpu"
        self._bytes_per_second = _activation_bytes(model.config, len(layers), sample_rate, self.hop, on_cpu)
        window = self._bytes_per_second * params.window_seconds + self._score_bytes(model.config)
        # a Conformer keeps the positions of the batch that it saw last
        self.side_by_side = 0 if self._conformer else batches_at_once(self.device, window)

    def _make_front_end(self, dtype: torch.dtype) -> FrontEnd:
        on_cpu = self.device.type == "cpu"
        together = int(TOGETHER_SECONDS * self.sample_rate)
        longest = self._convolutions.frames(together)
        return FrontEnd(
            self._model.feature_extractor,
            self._convolutions,
            dtype,
            piece_frames=PIECE_FRAMES if on_cpu else min(self._window, longest),
            budget=0 if on_cpu else together,
            step=PIECE_STEP if packs(self.device, dtype) else 1,
        )

    def _score_bytes(self, config: Any) -> float:
        """Of the scores of attention in a window, where the model holds them: four versions, as WavLM does."""
        return 0.0 if self._ready_mask else 4.0 * 4 * config.num_attention_heads * self._window**2

    def reduce(self) -> None:
        """Compute in bfloat16 from now on."""
        self._reduced = True
        self._step = WIDTH_STEP if shapes_cost(self.device) else 1
        self.front_end = self._make_front_end(torch.bfloat16)
        cast_products(self._model.feature_projection)
        cast_products(self._model.encoder)

    def frames(self, samples: int) -> int:
        """Frames of a clip of `samples`, by the convolutions' own formula."""
        return self._convolutions.frames(samples)

    def budget_seconds(self) -> float:
        """Audio in a batch that fits the memory which is free now."""
        most = LARGEST_BATCH[self.device.type]
        return fitting(self._bytes_per_second * max(1, self.side_by_side), self.device, most)

    def prepare(self, clip: Tensor) -> Prepared:
        """What the front end can know of a clip on the host."""
        return self.front_end.prepare(clip)

    def __call__(self, clips: Sequence[Prepared], finish: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Clips -> (frames, ...) each, what `finish` makes of states (..., layers, dim) in float32."""
        inputs = self.front_end(clips, self.device)
        short = [index for index, frames in enumerate(inputs) if len(frames) <= self._window]
        encoded = dict(zip(short, self._transform([inputs[index] for index in short], finish), strict=True))
        return [
            encoded[index] if index in encoded else self._transform_long(frames, finish)
            for index, frames in enumerate(inputs)
        ]

    def _transform_long(self, frames: Tensor, finish: Callable[[Tensor], Tensor]) -> Tensor:
        pieces = []
        for window in windows(len(frames), self._window, self._overlap):
            (states,) = self._transform([frames[window.start : window.end]], finish)
            pieces.append(states[window.keep_start - window.start : window.keep_end - window.start])
        return torch.cat(pieces)

    def _transform(self, clips: Sequence[Tensor], finish: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Clips (frames, channels) -> (frames, ...) each."""
        if not clips:
            return []
        states = self._states(clips, self._layers)
        kept = finish(torch.stack([states[layer] for layer in self._layers], dim=2))  # of (clips, frames, layers, dim)
        return [rows[: len(clip)] for rows, clip in zip(kept, clips, strict=True)]

    def _states(self, clips: Sequence[Tensor], wanted: Sequence[int]) -> dict[int, Tensor]:
        """Clips (frames, channels) -> hidden states by number: 0 is the input of layer 1, n the output of layer n.

        Shape:
            returns: (clips, frames, dim) float32, the last one behind the norm that belongs to it
        """
        states = {}
        lengths, encoder, depth = [len(clip) for clip in clips], self._model.encoder, max(wanted)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._reduced):
            projected = self._model.feature_projection(torch.cat(list(clips)).float())
            flat = (projected[0] if isinstance(projected, tuple) else projected).float()  # (all frames, dim)
            x = nn.utils.rnn.pad_sequence(flat.split(lengths), batch_first=True)  # (clips, frames, dim)
            if missing := -x.shape[1] % self._step:
                x = nn.functional.pad(x, (0, 0, 0, missing))
            self._padding.frame_mask, mask = self._masks(lengths, x.shape[1])
            passed: dict[str, Any] = {}
            if self._conformer:
                passed["relative_position_embeddings"] = encoder.embed_positions and encoder.embed_positions(x)
            else:
                x = x + encoder.pos_conv_embed(x)
            x = x if self._norm_first else encoder.layer_norm(x)
            for number in range(depth + 1):
                if number:
                    x, more = _unpacked(encoder.layers[number - 1](x, attention_mask=mask, **passed))
                    passed |= more
                if number in wanted:
                    states[number] = (self._final_norm(x) if number == self._layers[-1] else x).float()
        return states

    def _masks(self, lengths: Sequence[int], width: int) -> tuple[Tensor, Tensor | None]:
        """Which frames are real (clips, frames), and what the layers take as a mask, None where all are."""
        (sent,) = upload([torch.tensor(lengths)], self.device)
        real = torch.arange(width, device=self.device)[None] < sent[:, None]
        if min(lengths) == width:
            return real, None
        return real, real[:, None, None].expand(-1, 1, width, -1) if self._ready_mask else real

    def probes(self) -> list[Probe]:
        """Noise and tones of up to a second; as many frames as the longest window holds, through one layer."""
        lengths = [self._convolutions.samples(min(frames, self._window)) for frames in PROBE_FRAMES]
        generator = torch.Generator().manual_seed(0)
        channels = self._model.config.conv_dim[-1]
        longest = torch.randn(self._window, channels, generator=generator)  # the convolutions know no such length
        return [Probe(noise_and_tones(lengths, self.sample_rate, generator)), Probe([longest], 1)]

    def look(self, inputs: Sequence[Tensor], depth: int | None) -> dict[str, Tensor]:
        """By layer, the rows (all frames, dim) of clips (samples,) or frames (frames, channels) encoded together."""
        seen = {}
        if inputs[0].dim() == 1:
            ready = [self.prepare(prepared(clip, self.normalise, self.receptive_field)) for clip in inputs]
            frames = self.front_end(ready, self.device)
            seen["front end"] = torch.cat(frames).float()
        else:
            frames = [one.to(self.device) for one in inputs]
        states = self._states(frames, range(min(self._layers[-1], depth or self._layers[-1]) + 1))
        for number, state in states.items():
            seen[layer_name(number)] = torch.cat([rows[: len(one)] for rows, one in zip(state, frames, strict=True)])
        return seen


def _unpacked(output: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """What a layer gives, and what it hands to the next one: WavLM's bias of positions."""
    return (output[0], {"position_bias": output[1]}) if isinstance(output, tuple) else (output, {})


def _activation_bytes(config: Any, layers: int, sample_rate: int, hop: int, on_cpu: bool) -> float:
    """Memory for one second of audio in a batch, roughly: what the widest part of the model holds at once, float32."""
    dim, inner = config.hidden_size, config.intermediate_size
    transformer = 4 * (sample_rate / hop) * (8 * dim + 2 * inner + layers * dim)
    first = 4 * (sample_rate / config.conv_stride[0]) * config.conv_dim[0]
    return transformer if on_cpu else max(transformer, 3 * first)  # a processor's convolutions take it by the piece


def _cut(model: Any, depth: int) -> None:
    """Take away the layers behind `depth`."""
    model.encoder.layers = model.encoder.layers[: max(1, depth)]


class LogMel:
    """Log-mel frames: 25 ms windows every 10 ms, 80 bands. No weights.

    Over all clips of a `speaker` every band is brought to zero mean and unit variance, which takes away the colour of
    the voice and of its recording, and leaves how loud and how high a clip is for this speaker. Over the clip alone
    (`clip-band`) that is lost, too. `clip` takes away the level of the clip and leaves the bands. The whole clip is
    there, so there are no windows.
    """

    sample_rate, hop, receptive_field, dim = 16_000, 160, 512, 80
    side_by_side = 0

    def __init__(self, device: str, how: Normalise) -> None:
        from torchaudio.transforms import MelSpectrogram

        self.how, self.normalise = how, how in ("clip-band", "clip")
        self.device = torch.device(device)
        self._mel = MelSpectrogram(
            self.sample_rate, n_fft=512, win_length=400, hop_length=self.hop, n_mels=self.dim, center=False
        ).to(device)

    def frames(self, samples: int) -> int:
        """Frames of a clip of `samples`."""
        return (samples - self.receptive_field) // self.hop + 1

    def budget_seconds(self) -> float:
        """Clips are encoded one by one: a batch is what is fetched and written at once."""
        return 60.0

    def prepare(self, clip: Tensor) -> Prepared:
        """Nothing more can be done to a clip on the host."""
        return Prepared(clip, None)

    def __call__(self, clips: Sequence[Prepared], finish: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Clips -> (frames, dim) each, encoded one by one: nothing to share, nothing to pad."""
        (flat,) = upload([torch.cat([clip.samples for clip in clips])], self.device)
        samples = flat.split([len(clip.samples) for clip in clips])
        bands = [torch.log(self._mel(one) + 1e-5).T for one in samples]  # (frames, dim)
        return [finish(one[:, None]) for one in bands]


def load_speech_encoder(params: AudioParams, device: str = "auto") -> SpeechEncoder:
    """The encoder that `params` names, ready on `device`.

    Raises:
        EncoderError: it cannot be found or loaded, or its architecture is not supported.
    """
    device = choose_device(device)
    if params.encoder == LOG_MEL:
        log_mel = LogMel(device, params.normalise or "speaker")
        return _weightless_encoder(log_mel, params, normalise=log_mel.how)
    if params.encoder in EGEMAPS:
        egemaps, stated = Egemaps(params.encoder), {"frames": "speaker"} if params.normalise else {}
        return _weightless_encoder(egemaps, params, opensmile=egemaps.version, normalise="none", **stated)
    source = find_model(params.encoder, params.revision, {"tiny": TINY_SPEECH})
    return _hidden_state_encoder(source, params, device)


def _weightless_encoder(frontend: LogMel | Egemaps, params: AudioParams, **stated: Any) -> SpeechEncoder:
    """Of frames that are computed; `stated` is what the identity says of this front end alone."""
    one_row = params.encoder == "egemaps-functionals"
    identity = Identity(
        {
            "modality": "audio",
            "model": params.encoder,
            "frame_rate": None if one_row else frontend.sample_rate / frontend.hop,
            "sample_rate": frontend.sample_rate,
            **stated,
            "dtype": params.dtype,
            "version": VERSION,
        }
    )
    return SpeechEncoder(frontend, identity, (frontend.dim,), params.model_copy(update={"mix": "mean"}))


def _hidden_state_encoder(source: Source, params: AudioParams, device: str) -> SpeechEncoder:
    found = load_config(source, "audio", f"audio.encoder {params.encoder}", f", {', '.join(EGEMAPS)}, or {LOG_MEL}")
    import transformers

    config, loader = found.config, getattr(transformers, found.architecture.loader)
    layers = resolve_layers(params.layers, int(config.num_hidden_layers), params.encoder)
    model = load_pretrained(loader, source, cut=lambda model: _cut(model, layers[-1]), dtype=torch.float32)
    weights = weights_hash(encoder_of(model))
    frontend: HiddenStates | WhisperStates
    stated: dict[str, Any] = {}
    if config.model_type == "whisper":
        spectra = Spectra.of(source, config, params.context)
        frontend = WhisperStates(model.encoder, layers, spectra, device, params.window_seconds, params.overlap_seconds)
        stated = {"context": params.context} | ({"margin_seconds": MARGIN_SECONDS} if params.context == "clip" else {})
    else:
        frontend = HiddenStates(model, layers, *preprocessing(source), device, params)
    if params.precision == "bfloat16":
        names = [layer_name(layer) for layer in layers]
        proof = "".join([weights, *stated.get("context", "")])
        reduce_precision(frontend, names, who=f"encoder {params.encoder}", key="audio.precision", weights=proof)
    else:
        pack_products(model)
    identity = Identity(
        {
            "modality": "audio",
            "model": source.name,
            "revision": source.revision,
            "architecture": config.model_type,
            "weights": weights,
            "layers": layers,
            "mix": params.mix,
            "frame_rate": frontend.sample_rate / frontend.hop,
            "sample_rate": frontend.sample_rate,
            "normalise": "clip" if frontend.normalise else "none",
            **stated,
            **({"frames": "speaker", "speaker_seconds": SPEAKER_SECONDS} if params.normalise else {}),
            "window_seconds": params.window_seconds,
            "overlap_seconds": params.overlap_seconds,
            "precision": params.precision,
            "dtype": params.dtype,
            "version": VERSION,
        }
    )
    return SpeechEncoder(frontend, identity, row_shape(params.mix, len(layers), int(config.hidden_size)), params)


def preprocessing(source: Source) -> tuple[bool, int]:
    """(normalise each clip, sample rate) as the model's preprocessor says; as wav2vec2-base where it has none."""
    from transformers import Wav2Vec2FeatureExtractor

    extractor = load_preprocessor(Wav2Vec2FeatureExtractor, source)
    if extractor is None:
        log.warning(
            "encoder %s has no preprocessor_config.json: clips are taken at 16 kHz and each normalised, as for "
            "wav2vec2-base; if the model learned from others, add the file",
            source.location,
        )
        return True, 16_000
    return bool(extractor.do_normalize), int(extractor.sampling_rate)
