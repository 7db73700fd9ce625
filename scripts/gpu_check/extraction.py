"""An encoder that runs short of memory, and how fast features are made from clips in memory.

Axes: clips, samples, frames.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock, local
from typing import Any

import numpy as np
import torch
from measures.corpora import made_audio
from measures.encoding import operations
from measures.machine import matrix_rate
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

import pipeline.encoders.speech as speech
from gpu_check.agreement import EXACT, largest_difference
from gpu_check.context import Case, Context
from gpu_check.encoders import build_encoder
from gpu_check.features import clip_lengths
from gpu_check.sizes import SAMPLE_RATE
from pipeline.encoders import load_speech_encoder
from pipeline.encoders.front_end import FrontEnd
from pipeline.extraction import Work, collect, plan_clips
from pipeline.extraction.engine import LocalEngine
from pipeline.manifest import Utterance
from pipeline.params import AudioParams

KIND = "wav2vec2 group norm"
REPEATS = 3
PRODUCT_SECONDS = 0.3  # that a matrix product is repeated for
SPARE_BYTES = 64 << 20  # that a batch may leave behind: workspaces of libraries
MODULES = {"EncoderLayer": "transformer", "PositionalConv": "positions"}  # by a part of the class' name
CLIP_SECONDS = 8.0  # of the clips that do not fit together


@dataclass
class Spans:
    """Seconds of all threads by name; where one span lies within another, the inner one alone counts."""

    seconds: dict[str, float] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)
    threads: local = field(default_factory=local)  # the spans that are open in each

    @property
    def open(self) -> list[tuple[str, float]]:
        """Those of this thread, the outer ones first."""
        if not hasattr(self.threads, "open"):
            self.threads.open = []
        found: list[tuple[str, float]] = self.threads.open
        return found

    def enter(self, name: str) -> None:
        """Begin a span."""
        now = time.perf_counter()
        if self.open:
            self._add(self.open[-1], now)
        self.open.append((name, now))

    def leave(self) -> None:
        """End the one that was begun last."""
        now = time.perf_counter()
        self._add(self.open.pop(), now)
        if self.open:
            self.open[-1] = (self.open[-1][0], now)

    def _add(self, span: tuple[str, float], now: float) -> None:
        with self.lock:
            self.seconds[span[0]] = self.seconds.get(span[0], 0.0) + now - span[1]


def check_memory(context: Context) -> None:
    """With little memory: a batch that does not fit, and a clip of 20 minutes."""
    with context.case("a batch that does not fit is halved") as case:
        _halved(context, case)
    with context.case(f"a clip of {context.size.long_clip_seconds:.0f} s") as case:
        _long_clip(context, case)


def _halved(context: Context, case: Case) -> None:
    location = _build(context)
    count = (40 if context.has_gpu else 3) * (8 if context.judges else 1)
    clips = [_clip(CLIP_SECONDS if context.judges else 1.0, seed) for seed in range(count)]
    encoder = load_speech_encoder(AudioParams(encoder=location, precision="float32"), context.device)
    expected = collect(_work(context, location, "float32", clips, batch_seconds=60.0, encoder=encoder))
    work = _work(context, location, "float32", clips, batch_seconds=36_000.0, encoder=encoder)
    with _little_memory(context) as held:
        found = collect(work)
    assert isinstance(work.engine, LocalEngine)
    case["pieces"] = work.engine.pieces
    case.at_most("difference_to_enough_memory", largest_difference(found, expected), EXACT)
    _judge_memory(context, case, held)
    if context.has_gpu:
        case.require(work.engine.pieces > 1, "all clips fitted at once: the limit on memory did not hold")


def _long_clip(context: Context, case: Case) -> None:
    clip = _clip(context.size.long_clip_seconds, 0)
    work = _work(context, _build(context), "float32", [clip])
    with _little_memory(context) as held:
        (rows,) = collect(work)
    case.require(len(rows) == work.layout.rows[0], f"{len(rows)} frames instead of {work.layout.rows[0]}")
    case.require(bool(np.isfinite(rows).all()), "not all frames are finite")
    _judge_memory(context, case, held)


@contextmanager
def _little_memory(context: Context) -> Iterator[dict[str, int]]:
    """While it is open, torch may hold `memory_bytes` of the GPU; gives the most that was held, and what still is."""
    held: dict[str, int] = {}
    if not context.has_gpu:
        yield held
        return
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_per_process_memory_fraction(context.size.memory_bytes / total)
    try:
        yield held
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        held["peak_gib"] = torch.cuda.max_memory_reserved()
        held["left_behind_mib"] = torch.cuda.memory_allocated() - before


def _judge_memory(context: Context, case: Case, held: dict[str, int]) -> None:
    if not context.has_gpu:
        case.needs_a_gpu = True
        return
    case["peak_gib"] = round(held["peak_gib"] / 2**30, 2)
    case.at_most("left_behind_mib", held["left_behind_mib"] / 2**20, SPARE_BYTES / 2**20)


def _build(context: Context) -> str:
    """An encoder of base's shape, with all its layers at full size."""
    return build_encoder(context, KIND, context.size.extraction_layers)


def _clip(seconds: float, seed: int) -> Tensor:
    return torch.from_numpy(made_audio(int(seconds * SAMPLE_RATE), SAMPLE_RATE, seed))


def _work(
    context: Context,
    location: str,
    precision: str,
    clips: Sequence[Tensor],
    batch_seconds: float | None = None,
    encoder: Any = None,
) -> Work:
    """What `pipeline-audio` does with clips that are decoded."""
    content: dict[str, Any] = {"encoder": location, "precision": precision, "batch": batch_seconds or "auto"}
    params = AudioParams.model_validate(content)
    encoder = encoder or load_speech_encoder(params, context.device)
    utterances = [
        Utterance(
            id=f"all/{number:05}",
            conversation="all",
            turn=number,
            split="train",
            audio=str(number),
            samples=len(clip),
            sample_rate=SAMPLE_RATE,
            channels=1,
        )
        for number, clip in enumerate(clips)
    ]
    return plan_clips(utterances, encoder, params, "downmix", lambda index: clips[index])


def check_extraction(context: Context) -> None:
    """Hours of audio a minute from clips in memory, then how a second is split, waiting for the device at each part."""
    for precision, seconds in context.size.extraction_seconds.items():
        lengths, note = clip_lengths(context, seconds)
        clips = [torch.from_numpy(made_audio(length, SAMPLE_RATE, seed)) for seed, length in enumerate(lengths)]
        with context.case(f"{KIND}, {precision}") as case:
            case.notes.append(note)
            _measure(context, case, precision, clips)


def _measure(context: Context, case: Case, precision: str, clips: Sequence[Tensor]) -> None:
    location = _build(context)
    params = AudioParams.model_validate({"encoder": location, "precision": precision})
    encoder = load_speech_encoder(params, context.device)
    collect(_work(context, location, precision, clips[:8], encoder=encoder))  # libraries are ready
    took = [_time(lambda: collect(_work(context, location, precision, clips, encoder=encoder))) for _ in range(REPEATS)]
    audio, seconds = sum(len(clip) for clip in clips) / SAMPLE_RATE, statistics.median(took)
    case["audio_seconds"], case["seconds_median"] = round(audio), seconds
    case["seconds_spread"] = f"{min(took):.3g} to {max(took):.3g}"
    case["hours_a_minute"] = audio / 60 / seconds
    if context.judges:
        import transformers

        config = transformers.AutoConfig.from_pretrained(location)
        work = sum(operations(config, len(clip)) for clip in clips)
        floor = work / matrix_rate(precision, context.device, PRODUCT_SECONDS)
        case["floor_hours_a_minute"] = audio / 60 / floor
    with split_of_time(context) as spans:
        collect(_work(context, location, precision, clips, encoder=encoder))
    total = sum(spans.seconds.values())
    case.values |= {f"share_{name}": round(part / total, 3) for name, part in spans.seconds.items()}


def _time(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


@contextmanager
def split_of_time(context: Context) -> Iterator[Spans]:
    """Where the time of an encoder goes: preparing clips, convolutions, transformer layers, fetching rows, all else.

    Each part of a batch is made to wait for the device, so that its work is counted where it was asked for: shares of
    the sum, not of the time that extraction takes when parts overlap. Clips are prepared in threads, which do not wait.
    """
    spans = Spans()
    targets: list[tuple[Any, str, str, Callable[[], None]]] = [
        (speech.SpeechEncoder, "prepare", "host_preparation", lambda: None),
        (speech.SpeechEncoder, "start", "other", context.synchronize),
        (FrontEnd, "__call__", "front_end", context.synchronize),
        (speech, "fetched", "fetching", context.synchronize),
    ]
    before = [getattr(owner, name) for owner, name, *_ in targets]
    for (owner, name, title, wait), function in zip(targets, before, strict=True):
        setattr(owner, name, _spanning(spans, title, wait, function))
    hooks = [
        register_module_forward_pre_hook(lambda module, _: _enter(context, spans, module)),
        register_module_forward_hook(lambda module, _, __: _leave(context, spans, module)),
    ]
    try:
        yield spans
    finally:
        for (owner, name, *_), function in zip(targets, before, strict=True):
            setattr(owner, name, function)
        for hook in hooks:
            hook.remove()


def _spanning(spans: Spans, title: str, wait: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        wait()
        spans.enter(title)
        try:
            return function(*arguments, **options)
        finally:
            wait()
            spans.leave()

    return call


def _title(module: nn.Module) -> str | None:
    """Which part a module is, whatever the architecture calls its classes."""
    found = [title for part, title in MODULES.items() if part in type(module).__name__]
    return found[0] if found else None


def _enter(context: Context, spans: Spans, module: nn.Module) -> None:
    title = _title(module)
    if title:
        context.synchronize()
        spans.enter(title)


def _leave(context: Context, spans: Spans, module: nn.Module) -> None:
    if _title(module):
        context.synchronize()
        spans.leave()
