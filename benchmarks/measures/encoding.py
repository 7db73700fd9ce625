"""The encoder alone, on clips in memory: plain transformers, naive batches, and this project's extractor.

Variants take turns within each repeat, so that whatever else the machine does hits all of them alike, and the matrix
product that the floor is made of is measured in each repeat too. Ratios are taken within a repeat.

Axes: clips, samples, frames, dim.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from measures.corpora import SAMPLE_RATE, Corpus
from measures.machine import matrix_rate, peak_memory
from measures.timing import Spread, say, spread
from pipeline.encoders import Convolutions, SpeechEncoder, batches_under_budget, load_speech_encoder
from pipeline.encoders.speech import LARGEST_BATCH
from pipeline.extraction.engine import LocalEngine
from pipeline.params import AudioParams
from pipeline.settings.precision import built_for_bfloat16

NAIVE_BATCH = 32
SHORTEST = 400  # samples; transformers refuses shorter clips
WARM_UP = 2  # clips
SINGLE, NAIVE, EXACT, REDUCED = "single", "naive", "float32", "bfloat16"


@dataclass(frozen=True)
class Variant:
    """One way to encode."""

    name: str
    precision: str
    encode: Callable[[list[Tensor]], list[np.ndarray]]  # clips (samples,) -> (frames, dim) each
    batches: Callable[[list[int]], list[list[int]]]  # lengths in samples -> indices
    halved: Callable[[], int] = lambda: 0  # batches so far that exceeded the memory
    spread: SpeechEncoder | None = None  # encodes batches side by side, as `pipeline-audio` does

    def run(self, clips: Sequence[Tensor], batches: Sequence[Sequence[int]]) -> None:
        """Encode all batches."""
        if self.spread is None:
            for batch in batches:
                self.encode([clips[index] for index in batch])
            return
        start = partial(self.spread.start, dtype="float32")
        prepare, several = self.spread.prepare, self.spread.side_by_side
        engine = LocalEngine(lambda index: prepare(clips[index]), start, str, side_by_side=several)
        for _ in engine.run(batches):
            pass


@dataclass(frozen=True)
class VariantResult:
    """What a variant took; ratios are of the same repeat."""

    name: str
    precision: str
    batches: int
    padding_share: float  # of all samples that were encoded
    seconds: Spread
    audio_hours_a_minute: float
    times_single: Spread  # how often faster than `single`
    times_floor: Spread  # how often slower than the matrix product of its precision
    floor_share: float  # its inverse: share of the matrix product's rate
    matrix_rate: Spread  # floating-point operations a second of that product
    halved: int  # batches of all repeats that exceeded the memory
    peak_bytes: int | None  # above what models and clips take


@dataclass(frozen=True)
class CorpusResult:
    """All variants on one corpus."""

    corpus: str
    title: str
    clips: int
    audio_seconds: float
    gigaflops_a_second: float  # of audio
    variants: list[VariantResult]


class Plain:
    """The model as transformers gives it, in float32, as most projects use it."""

    def __init__(self, location: str, device: str) -> None:
        from transformers import AutoModel, Wav2Vec2FeatureExtractor

        self._prepare = Wav2Vec2FeatureExtractor.from_pretrained(location)
        self._model = AutoModel.from_pretrained(location, dtype=torch.float32).eval().to(device)
        self._convolutions = Convolutions.of(self._model.config)
        self._device = device
        self.config = self._model.config
        self.out_of_memory = 0  # batches that were halved

    @torch.inference_mode()
    def encode(self, clips: list[Tensor]) -> list[np.ndarray]:
        """Clips (samples,), padded to the longest -> (frames, dim) each."""
        try:
            states = self.states(clips)
        except torch.OutOfMemoryError:
            if len(clips) == 1:
                raise
            self.out_of_memory += 1
            half = len(clips) // 2
            return self.encode(clips[:half]) + self.encode(clips[half:])
        frames = [self._convolutions.frames(max(len(clip), SHORTEST)) for clip in clips]
        return [state[:count] for state, count in zip(states, frames, strict=True)]

    def states(self, clips: list[Tensor]) -> np.ndarray:
        """(clips, frames, dim)."""
        arrays = [clip.numpy() for clip in clips]
        inputs = self._prepare(arrays, sampling_rate=SAMPLE_RATE, padding=True, return_tensors="pt")
        values = inputs.input_values
        values = torch.nn.functional.pad(values, (0, max(0, SHORTEST - values.shape[1])))
        return self._model(values.to(self._device)).last_hidden_state.cpu().numpy()


def extractor(location: str, precision: str, device: str) -> Variant:
    """This project's encoder under `audio.precision: <precision>`, which names it, with `pipeline-audio`'s batches."""
    params = audio_params(location, precision)
    encoder = load_speech_encoder(params, device)
    batches = partial(extraction_batches, device=device)
    return Variant(precision, precision, encoder.encode, batches, spread=encoder)


def audio_params(location: str, precision: str) -> AudioParams:
    """The section `audio` as it is by default, with this encoder and precision."""
    return AudioParams.model_validate({"encoder": location, "precision": precision})


def extraction_batches(lengths: Sequence[int], device: str) -> list[list[int]]:
    """The batches of `pipeline-audio` where memory is not short; the one place here where their budget is chosen."""
    return batches_under_budget(lengths, LARGEST_BATCH[torch.device(device).type] * SAMPLE_RATE)


def make_variants(location: str, device: str) -> list[Variant]:
    """All variants; bfloat16 is left out where the device is not built for it."""
    plain = Plain(location, device)
    variants = [
        Variant(SINGLE, "float32", plain.encode, lambda lengths: [[index] for index in range(len(lengths))]),
        Variant(NAIVE, "float32", plain.encode, naive_batches, halved=lambda: plain.out_of_memory),
        extractor(location, "float32", device),
    ]
    native = built_for_bfloat16(torch.device(device))
    return [*variants, extractor(location, REDUCED, device)] if native else variants


def naive_batches(lengths: Sequence[int]) -> list[list[int]]:
    """Batches of 32 in random order.

    >>> [len(batch) for batch in naive_batches([400] * 70)]
    [32, 32, 6]
    """
    order = np.random.default_rng(0).permutation(len(lengths)).tolist()
    return [order[start : start + NAIVE_BATCH] for start in range(0, len(order), NAIVE_BATCH)]


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of padding in all that is encoded.

    >>> padding_share([100, 50], [[0, 1]])
    0.25
    """
    size = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    return 1 - sum(lengths) / size


def operations(config: Any, samples: int) -> float:
    """Floating-point operations of a model of the wav2vec2 family on a clip, a multiply and an add counted as two.

    >>> from transformers import Wav2Vec2Config
    >>> round(operations(Wav2Vec2Config(), 4 * 16_000) / 4e9, 1)
    14.2
    """
    convolutions = Convolutions.of(config)
    widths = [1, *config.conv_dim]
    multiplied = 0.0
    for depth, kernel in enumerate(convolutions.kernels, start=1):
        frames = convolutions.frames(max(samples, SHORTEST), depth)
        multiplied += frames * kernel * widths[depth - 1] * widths[depth]
    dim, layers = config.hidden_size, config.num_hidden_layers
    positions = config.num_conv_pos_embeddings * dim * dim // config.num_conv_pos_embedding_groups
    weights = 4 * dim * dim + 2 * dim * config.intermediate_size
    multiplied += frames * (widths[-1] * dim + positions + layers * (weights + 2 * frames * dim))
    return 2 * multiplied


def measure(corpus: Corpus, location: str, device: str, repeats: int, product_seconds: float) -> CorpusResult:
    """Every variant on a corpus, `repeats` times in turn."""
    from transformers import AutoConfig

    clips = corpus.clips()
    lengths = [len(clip) for clip in clips]
    variants = make_variants(location, device)
    batches = {variant.name: variant.batches(lengths) for variant in variants}
    for variant in variants:
        variant.encode(clips[:WARM_UP])
    runs: list[_Repeat] = []
    for number in range(repeats):
        say(f"{corpus.name}, encoder alone, repeat {number + 1} of {repeats}")
        rates = {name: matrix_rate(name, device, product_seconds) for name in {v.precision for v in variants}}
        took = {variant.name: _time(variant, clips, batches[variant.name], device) for variant in variants}
        runs.append(_Repeat(took, rates))
    config = AutoConfig.from_pretrained(location)
    work = _Work(sum(lengths) / SAMPLE_RATE, sum(operations(config, length) for length in lengths))
    results = [_result(variant, lengths, batches[variant.name], runs, work) for variant in variants]
    return CorpusResult(
        corpus.name, corpus.title, len(clips), work.audio_seconds, work.operations / work.audio_seconds / 1e9, results
    )


@dataclass(frozen=True)
class _Took:
    seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class _Repeat:
    """One turn of all variants."""

    took: Mapping[str, _Took]  # by a variant's name
    rates: Mapping[str, float]  # of the matrix product, by precision


@dataclass(frozen=True)
class _Work:
    """What every variant had to do."""

    audio_seconds: float
    operations: float


def _time(variant: Variant, clips: Sequence[Tensor], batches: Sequence[Sequence[int]], device: str) -> _Took:
    with peak_memory(device) as peak:
        started = time.perf_counter()
        variant.run(clips, batches)
        seconds = time.perf_counter() - started
    say(f"  {variant.name}: {seconds:.2f} s")
    return _Took(seconds, peak.bytes)


def _result(
    variant: Variant, lengths: Sequence[int], batches: Sequence[Sequence[int]], runs: Sequence[_Repeat], work: _Work
) -> VariantResult:
    name, rates = variant.name, [run.rates[variant.precision] for run in runs]
    taken = [run.took[name].seconds for run in runs]
    floor = spread([seconds * rate / work.operations for seconds, rate in zip(taken, rates, strict=True)])
    peaks = [peak for run in runs if (peak := run.took[name].peak_bytes) is not None]
    return VariantResult(
        name=name,
        precision=variant.precision,
        batches=len(batches),
        padding_share=padding_share(lengths, batches),
        seconds=spread(taken),
        audio_hours_a_minute=work.audio_seconds / 60 / spread(taken).median,
        times_single=spread([run.took[SINGLE].seconds / run.took[name].seconds for run in runs]),
        times_floor=floor,
        floor_share=1 / floor.median,
        matrix_rate=spread(rates),
        halved=variant.halved(),
        peak_bytes=max(peaks, default=None),
    )


def build_base_model(folder: Path) -> Path:
    """A model of wav2vec2-base's shape with the random weights of a seed, written to `folder` unless it is there."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    if not (folder / "preprocessor_config.json").exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            Wav2Vec2Model(Wav2Vec2Config(mask_time_prob=0.0)).save_pretrained(folder)
        Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    return folder
