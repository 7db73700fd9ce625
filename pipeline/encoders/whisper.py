"""Whisper's encoder: log-mel spectra of a clip -> hidden states, 50 a second, the clip's own `ceil(samples / 320)`.

The model was trained on 30 s of audio, silence behind what is shorter. Context `full` is that function: it costs 30 s
of encoding for every clip, and no clip sees another. Context `clip` is the clip and `MARGIN_SECONDS` of silence, which
is another function of the same weights, and cheaper. Batches of it are padded, and exact, because:

- spectra are of each clip by itself, and zero behind its margin, which is what the first convolution sees beyond the
  end of a clip that is alone;
- the second convolution, of stride 2, never looks beyond an even number of spectra;
- attention is masked.

A clip that is longer than the model's positions is encoded in windows, each as a clip by itself.

Axes: clips, samples, bands, frames, layers, dim.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.encoders.batching import Window, batches_under_budget, windows
from pipeline.encoders.front_end import Prepared
from pipeline.encoders.loading import Source, load_preprocessor
from pipeline.encoders.precision import (
    PROBE_FRAMES,
    Probe,
    cast_products,
    layer_name,
    noise_and_tones,
    ready_for_inference,
)
from pipeline.encoders.transfer import batches_at_once, fitting, upload
from pipeline.errors import EncoderError
from pipeline.params import Context

MARGIN_SECONDS = 1.0  # of silence behind a clip, in context `clip`
SPECTRA = 2  # to a frame
LARGEST_BATCH = {"cpu": 8, "cuda": 512}  # seconds in a batch


@dataclass(frozen=True)
class Spectra:
    """Clips -> log-mel spectra as the model was trained on, by transformers' own extractor, on the host.

    Attributes:
        longest: frames that the model has positions for.
        margin: frames of silence behind a clip; None: as many as make it `longest`.
    """

    extractor: Any
    longest: int
    margin: int | None

    @classmethod
    def of(cls, source: Source, config: Any, context: Context) -> "Spectra":
        """Those of a model.

        Raises:
            EncoderError: its preprocessor cannot be read, or is of another model.
        """
        from transformers import WhisperFeatureExtractor

        bands = int(config.num_mel_bins)
        found = load_preprocessor(WhisperFeatureExtractor, source) or WhisperFeatureExtractor(feature_size=bands)
        if found.feature_size != bands:
            raise EncoderError(
                f"encoder {source.location}: preprocessor_config.json makes {found.feature_size} bands, and the model "
                f"takes {bands}"
            )
        found.dither = 0.0  # noise; features are a function of the clip
        margin = round(MARGIN_SECONDS * found.sampling_rate / found.hop_length / SPECTRA)
        return cls(found, int(config.max_source_positions), None if context == "full" else margin)

    @property
    def sample_rate(self) -> int:
        """Of the clips, in Hz."""
        return int(self.extractor.sampling_rate)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return int(self.extractor.hop_length) * SPECTRA

    def frames(self, samples: int) -> int:
        """Frames of a clip of `samples`."""
        return -(-samples // self.hop)

    def __call__(self, clip: Tensor) -> Tensor:
        """(samples,), at most as long as the model takes -> (bands, 2 frames), of the margin, too."""
        own = self.frames(len(clip))
        frames = self.longest if self.margin is None else min(own + self.margin, self.longest)
        made = self.extractor(
            clip.numpy(), sampling_rate=self.sample_rate, max_length=frames * self.hop, return_tensors="pt"
        )
        spectra: Tensor = made.input_features[0]
        return spectra


def encoded(encoder: Any, spectra: Sequence[Tensor], wanted: Collection[int]) -> dict[int, Tensor]:
    """Spectra (bands, 2 frames) of clips -> hidden states (clips, frames, dim) that are wanted, by number.

    State 0 enters the first block, and the last is the model's own output, behind its norm. Frames behind a clip's
    spectra hold anything.
    """
    lengths = [one.shape[1] // SPECTRA for one in spectra]
    batch = nn.utils.rnn.pad_sequence([one.T for one in spectra], batch_first=True)  # (clips, 2 frames, bands)
    x = nn.functional.gelu(encoder.conv1(batch.transpose(1, 2)))
    x = nn.functional.gelu(encoder.conv2(x)).transpose(1, 2)  # (clips, frames, dim)
    x = x.float() + encoder.embed_positions.weight[: x.shape[1]]
    x = nn.functional.dropout(x, encoder.dropout, encoder.training)
    mask = None
    if min(lengths) < max(lengths):  # as scaled dot-product attention takes it
        mask = frame_mask(lengths, x.device)[:, None, None].expand(-1, 1, max(lengths), -1)
    states = {}
    for number in range(max(wanted) + 1):
        if number:
            x = encoder.layers[number - 1](x, mask)
        if number in wanted:
            states[number] = encoder.layer_norm(x) if number == encoder.config.num_hidden_layers else x
    return states


def frame_mask(lengths: Sequence[int], device: torch.device) -> Tensor:
    """(clips, frames), true = real."""
    (sent,) = upload([torch.tensor(lengths)], device)
    return torch.arange(max(lengths), device=device)[None] < sent[:, None]


class WhisperStates:
    """Chosen hidden states of Whisper's encoder; the model is cut at the highest one. Float32 until `reduce`."""

    normalise, receptive_field = False, 1

    def __init__(
        self, encoder: Any, layers: list[int], spectra: Spectra, device: str, window_seconds: float, overlap: float
    ) -> None:
        self._spectra, self._layers = spectra, layers
        self.sample_rate, self.hop = spectra.sample_rate, spectra.hop
        self._window = min(int(window_seconds * self.sample_rate) // self.hop, spectra.longest)
        self._overlap = min(int(overlap * self.sample_rate) // self.hop, self._window // 2)
        self.device = torch.device(device)
        encoder.layers = encoder.layers[: max(1, layers[-1])]
        self._encoder = encoder.to(self.device)
        ready_for_inference(self._encoder)
        config = self._encoder.config
        width = 10 * config.d_model + 2 * config.encoder_ffn_dim + len(self._layers) * config.d_model
        self._bytes_per_second = 4 * (self.sample_rate / self.hop) * width
        longest = self._bytes_per_second * self._window * self.hop / self.sample_rate
        self.side_by_side = batches_at_once(self.device, longest)
        self._reduced = False

    def reduce(self) -> None:
        """Compute in bfloat16 from now on."""
        self._reduced = True
        cast_products(self._encoder)

    def frames(self, samples: int) -> int:
        """Frames of a clip of `samples`."""
        return self._spectra.frames(samples)

    def budget_seconds(self) -> float:
        """Audio in a batch that fits the memory which is free now."""
        together = self._bytes_per_second * max(1, self.side_by_side)
        return fitting(together, self.device, LARGEST_BATCH[self.device.type])

    def _windows(self, clip: Tensor) -> list[Window]:
        return windows(self.frames(len(clip)), self._window, self._overlap)

    def prepare(self, clip: Tensor) -> Prepared:
        """The spectra of a clip, one for each of its windows."""
        cuts = [clip[window.start * self.hop : window.end * self.hop] for window in self._windows(clip)]
        return Prepared(clip, None, spectra=[self._spectra(cut) for cut in cuts])

    def __call__(self, clips: Sequence[Prepared], finish: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Clips -> (frames, ...) each, what `finish` makes of states (..., layers, dim) in float32.

        Windows are encoded in as large groups as the clips without their context are: what the encoder holds at once
        is bounded by the batch in both contexts.
        """
        wanted = [window for clip in clips for window in self._windows(clip.samples)]
        spectra = upload([one for clip in clips for one in clip.spectra], self.device)
        largest = len(clips) * max(SPECTRA * self.frames(len(clip.samples)) for clip in clips)
        pieces: list[Tensor] = [torch.empty(0)] * len(wanted)
        for group in batches_under_budget([one.shape[1] for one in spectra], largest):
            states = self._states([spectra[index] for index in group], self._layers)
            kept = max(wanted[index].keep_end - wanted[index].start for index in group)
            rows = finish(torch.stack([states[layer][:, :kept] for layer in self._layers], dim=2))
            for own, index in zip(rows, group, strict=True):
                window = wanted[index]
                pieces[index] = own[window.keep_start - window.start : window.keep_end - window.start]
        parts = iter(pieces)
        return [torch.cat([next(parts) for _ in clip.spectra]) for clip in clips]

    def _states(self, spectra: Sequence[Tensor], wanted: Sequence[int]) -> dict[int, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._reduced):
            found = encoded(self._encoder, spectra, wanted)
        return {number: state.float() for number, state in found.items()}

    def probes(self) -> list[Probe]:
        """Noise and tones of up to a second; the longest window, through one layer."""
        generator = torch.Generator().manual_seed(0)
        lengths = [min(frames, self._window) * self.hop for frames in PROBE_FRAMES]
        clips = noise_and_tones([*lengths, self._window * self.hop], self.sample_rate, generator)
        return [Probe(clips[:-1]), Probe(clips[-1:], 1)]

    def look(self, inputs: Sequence[Tensor], depth: int | None) -> dict[str, Tensor]:
        """By layer, the rows (all frames, dim) of clips (samples,) encoded together."""
        spectra = upload([self._spectra(clip) for clip in inputs], self.device)
        states = self._states(spectra, range(min(self._layers[-1], depth or self._layers[-1]) + 1))
        return {
            layer_name(number): torch.cat(
                [rows[: self.frames(len(clip))] for rows, clip in zip(state, inputs, strict=True)]
            )
            for number, state in states.items()
        }
