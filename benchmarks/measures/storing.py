"""Writing and reading features, laid out in several ways; beside them, a plain copy in memory.

A read takes the utterances in random order and copies every one behind the one before it into memory that is there
already, as a set of features is brought to where a model trains. All layouts hold float16. The page cache is warm.

Axes: utterances, frames, dim.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from measures.corpora import SAMPLE_RATE, Source
from measures.layouts import FRAME_SAMPLES, LAYOUTS, STORE, Layout, Rows
from measures.timing import Spread, say, spread
from pipeline.media.decoding import resampled_length

DIM = 768
COPY = "copy"  # in memory, the floor of reading


@dataclass(frozen=True)
class LayoutResult:
    """What a layout took; ratios are of the same repeat, above 1 where this layout takes longer."""

    name: str
    bytes: int
    write_seconds: Spread | None
    read_seconds: Spread  # open, and one pass
    second_read_seconds: Spread  # a further pass
    write_to_store: Spread | None
    read_to_store: Spread
    read_to_copy: Spread
    second_read_to_copy: Spread


@dataclass(frozen=True)
class StoreResult:
    """All layouts."""

    utterances: int
    bytes: int
    layouts: list[LayoutResult]


@dataclass(frozen=True)
class _Times:
    bytes: int
    write: float | None
    read: float
    second_read: float


def frame_counts(sources: Sequence[Source]) -> list[int]:
    """Frames of wav2vec2 of each clip."""
    lengths = [resampled_length(source.samples, source.sample_rate, SAMPLE_RATE) for source in sources]
    return [max(1, (length - 400) // FRAME_SAMPLES + 1) for length in lengths]


def measure_store(frames: Sequence[int], work: Path, repeats: int, dim: int = DIM) -> StoreResult:
    """Random features with so many frames each, in every layout, `repeats` times in turn."""
    values = np.random.default_rng(0).standard_normal((sum(frames), dim), np.float32).astype(np.float16)
    features = np.split(values, np.cumsum(frames)[:-1])
    order = np.random.default_rng(1).permutation(len(features)).tolist()
    target = np.ones_like(values)  # written once, so that its pages are there
    runs: list[dict[str, _Times]] = []
    for number in range(repeats):
        runs.append({COPY: _time_copy(features, order, target)})
        for name, layout in LAYOUTS.items():
            runs[-1][name] = _time_layout(layout, work / "layout", features, order, target)
            times = runs[-1][name]
            say(f"{name}, repeat {number + 1}: written in {times.write:.2f} s, read in {times.read:.3f} s")
    return StoreResult(len(features), values.nbytes, [_result(name, runs) for name in runs[0]])


def _time_copy(features: Sequence[np.ndarray], order: Sequence[int], target: np.ndarray) -> _Times:
    seconds = [_pass(features.__getitem__, order, target) for _ in range(2)]
    return _Times(target.nbytes, None, *seconds)


def _time_layout(
    layout: Layout, path: Path, features: Sequence[np.ndarray], order: Sequence[int], target: np.ndarray
) -> _Times:
    started = time.perf_counter()
    layout.write(path, features)
    write = time.perf_counter() - started
    files = list(path.iterdir()) if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    target.fill(0)
    started = time.perf_counter()
    with layout.open(path) as rows:
        _pass(rows, order, target)
        read = time.perf_counter() - started
        second_read = _pass(rows, order, target)
    check(features, order, target)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return _Times(size, write, read, second_read)


def _pass(rows: Rows, order: Sequence[int], target: np.ndarray) -> float:
    """Seconds to copy every utterance into `target` (frames of all, dim)."""
    started = time.perf_counter()
    position = 0
    for number in order:
        array = rows(number)
        np.copyto(target[position : position + len(array)], array)
        position += len(array)
    return time.perf_counter() - started


def check(features: Sequence[np.ndarray], order: Sequence[int], target: np.ndarray) -> None:
    """Stop if what was read is not what was written."""
    position = 0
    for number in order:
        expected = features[number]
        if not np.array_equal(target[position : position + len(expected)], expected):
            raise SystemExit(f"utterance {number} came back with other values")
        position += len(expected)


def _result(name: str, runs: Sequence[dict[str, _Times]]) -> LayoutResult:
    own = [run[name] for run in runs]
    stores, copies = [run[STORE] for run in runs], [run[COPY] for run in runs]
    pairs = list(zip(own, stores, copies, strict=True))
    writes = [times.write for times in own if times.write is not None]
    to_store = [times.write / store.write for times, store, _ in pairs if times.write and store.write]
    return LayoutResult(
        name=name,
        bytes=own[0].bytes,
        write_seconds=spread(writes) if writes else None,
        read_seconds=spread([times.read for times in own]),
        second_read_seconds=spread([times.second_read for times in own]),
        write_to_store=spread(to_store) if to_store else None,
        read_to_store=spread([times.read / store.read for times, store, _ in pairs]),
        read_to_copy=spread([times.read / copy.read for times, _, copy in pairs]),
        second_read_to_copy=spread([times.second_read / copy.second_read for times, _, copy in pairs]),
    )
