"""Every architecture in both precisions, against the processor in float32 and alone against batched.

Weights are random, of a seed: what is compared does not depend on them. Loading in reduced precision includes the
encoder's own self-check, which ends in an error where it finds the precision wrong.

Axes: clips, samples, frames, dim.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from measures.corpora import made_audio
from torch import Tensor

from gpu_check.agreement import COSINE, EXACT, largest_difference, lowest_cosine
from gpu_check.context import Case, Context
from gpu_check.sizes import SAMPLE_RATE
from pipeline.encoders import load_speech_encoder, load_text_encoder
from pipeline.encoders.tiny import build_text
from pipeline.params import AudioParams, TextParams

LOG_MEL, TEXT = "log-mel", "bert"
LAYER_NORM: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
SPEECH: dict[str, Callable[..., Any]] = {
    "wav2vec2 group norm": lambda **shape: transformers.Wav2Vec2Config(**shape),
    "wav2vec2 layer norm": lambda **shape: transformers.Wav2Vec2Config(**shape, **LAYER_NORM),
    "hubert group norm": lambda **shape: transformers.HubertConfig(**shape),
    "wavlm layer norm": lambda **shape: transformers.WavLMConfig(**shape, **LAYER_NORM),
    "data2vec-audio": lambda **shape: transformers.Data2VecAudioConfig(**shape),
}
KINDS = (*SPEECH, TEXT, LOG_MEL)
PRECISIONS = ("float32", "bfloat16")
SENTENCE = "I never said that she stole my money, and you know it as well as anybody else in this room does ."


def check_encoders(context: Context) -> None:
    """A case for each architecture and precision."""
    for kind in KINDS:
        location, inputs, expected = None, None, None
        for precision in PRECISIONS[:1] if kind == LOG_MEL else PRECISIONS:
            with context.case(f"{kind}, {precision}") as case:
                if location is None or expected is None:
                    location = build_encoder(context, kind)
                    inputs = inputs_of(context, kind, location)
                    expected = _alone(_load(context, location, "float32", "cpu"), inputs)
                _compare(context, case, location, precision, inputs, expected)


def build_encoder(context: Context, kind: str, layers: int | None = None) -> str:
    """The folder of that architecture, with so many layers or the size's own, or what `audio.encoder` calls it."""
    shape = context.size.encoders
    folder = context.work / (TEXT if kind == TEXT else f"{kind.replace(' ', '-')}-{layers or shape.layers}")
    if kind == LOG_MEL or (folder / "config.json").exists():
        return kind if kind == LOG_MEL else str(folder)
    if kind == TEXT:
        return str(build_text(folder, [SENTENCE], hidden=shape.hidden, layers=shape.layers))
    config = SPEECH[kind](
        hidden_size=shape.hidden,
        num_hidden_layers=layers or shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.inner,
        conv_dim=(shape.channels,) * 7,
        num_conv_pos_embedding_groups=shape.position_groups,
    )
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return str(folder)


def load_encoder(context: Context, location: str, precision: str) -> Any:
    """The encoder in `location` on the context's device."""
    return _load(context, location, precision, context.device)


def _load(context: Context, location: str, precision: str, device: str) -> Any:
    shape = context.size.encoders
    params: dict[str, Any] = {"encoder": location, "precision": precision}
    if Path(location).name == TEXT:
        return load_text_encoder(TextParams.model_validate(params), device)
    windows = {"window_seconds": shape.window_seconds, "overlap_seconds": shape.overlap_seconds}
    return load_speech_encoder(AudioParams.model_validate(params | windows), device)


def clips_of(context: Context) -> list[Tensor]:
    """Noise that swells, of all lengths of the size."""
    lengths = context.size.encoders.clip_samples
    return [torch.from_numpy(made_audio(length, SAMPLE_RATE, seed)) for seed, length in enumerate(lengths)]


def inputs_of(context: Context, kind: str, location: str) -> Sequence[Any]:
    """Clips, or the token numbers of texts of one word to more than the model has positions."""
    if kind != TEXT:
        return clips_of(context)
    words = SENTENCE.split()
    texts = [" ".join(words[:count]) for count in (1, 5, len(words))] + [" ".join(words * 30)]
    encoder = _load(context, location, "float32", "cpu")
    return [encoder.tokenize(text) for text in texts]


def _alone(encoder: Any, inputs: Sequence[Any]) -> list[np.ndarray]:
    return [encoder.encode([one])[0] for one in inputs]


def _compare(
    context: Context, case: Case, location: str, precision: str, inputs: Any, expected: list[np.ndarray]
) -> None:
    started = time.perf_counter()
    encoder = load_encoder(context, location, precision)
    case["load_seconds"] = round(time.perf_counter() - started, 2)
    together, alone = encoder.encode(inputs), _alone(encoder, inputs)
    differences = {
        "batched_to_alone": largest_difference(together, alone),
        "to_cpu_float32": largest_difference(together, expected),
    }
    cosines = {"batched_to_alone": lowest_cosine(together, alone), "to_cpu_float32": lowest_cosine(together, expected)}
    for name, difference in differences.items():
        if precision == "float32":
            case.at_most(f"difference_{name}", difference, EXACT)
        else:
            case[f"difference_{name}"] = difference
            case.at_least(f"lowest_cosine_{name}", cosines[name], COSINE)
