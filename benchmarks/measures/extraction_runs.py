"""The whole of `pipeline-audio` from compressed files, each run in a process of its own.

Axes: samples.
"""

import resource
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from measures.corpora import SAMPLE_RATE, Corpus, write_release
from measures.encoding import audio_params, extraction_batches, padding_share
from measures.machine import process_peak
from measures.timing import Spread, say, spread
from pipeline.extraction import extract_audio
from pipeline.manifest import read_manifest
from pipeline.media import Channels, encoder_samples, resample
from pipeline.media.decoding import decode
from pipeline.params import AudioParams
from pipeline.settings import settle_libraries

GROWTH = 4


@dataclass(frozen=True)
class Job:
    """What a process is to extract."""

    manifest: Path
    params: AudioParams
    channels: Channels
    device: str


@dataclass(frozen=True)
class Run:
    """What one process measured; loading the model is not in its seconds."""

    seconds: float
    load_seconds: float
    processor_seconds: float  # of all threads, and of the processes that decode
    decode_seconds: float  # of processor: decoding and resampling the same files alone
    peak_bytes: int | None  # of the process, from its start to the end of extraction; not of those that decode
    gpu_peak_bytes: int | None


@dataclass(frozen=True)
class FilesResult:
    """A corpus from its files to a feature file."""

    corpus: str
    title: str
    container: str
    precision: str  # as asked for
    clips: int
    audio_seconds: float
    seconds: Spread
    load_seconds: float
    audio_hours_a_minute: float
    decode_seconds: float  # of processor, in all threads together
    decode_share: float  # of the processor's time
    padding_share: float
    peak_bytes: int | None
    gpu_peak_bytes: int | None


@dataclass(frozen=True)
class GrowthResult:
    """A corpus, and one with `growth` times as many clips of the same lengths."""

    encoder: str
    growth: int
    clips: int
    audio_seconds: float
    seconds: Spread
    grown_seconds: Spread
    time_ratio: Spread
    peak_bytes: int | None
    grown_peak_bytes: int | None
    peak_ratio: float | None


def measure_files(corpus: Corpus, work: Path, location: str, device: str, repeats: int) -> FilesResult:
    """`extract_audio` in float32 from the corpus' files, which are made in `work` if they are not there."""
    say(f"{corpus.name}: making the files")
    manifest = write_release(corpus, work / corpus.name)
    params = audio_params(location, "float32")
    runs = []
    for number in range(repeats):
        runs.append(in_own_process(Job(manifest, params, corpus.channels, device)))
        say(f"{corpus.name} from files, repeat {number + 1}: {runs[-1].seconds:.2f} s")
    seconds = spread([run.seconds for run in runs])
    lengths = [encoder_samples(utterance, SAMPLE_RATE) for utterance in read_manifest(manifest)]
    return FilesResult(
        corpus=corpus.name,
        title=corpus.title,
        container=corpus.container,
        precision=params.precision,
        clips=len(lengths),
        audio_seconds=corpus.seconds,
        seconds=seconds,
        load_seconds=spread([run.load_seconds for run in runs]).median,
        audio_hours_a_minute=corpus.seconds / 60 / seconds.median,
        decode_seconds=spread([run.decode_seconds for run in runs]).median,
        decode_share=spread([run.decode_seconds / run.processor_seconds for run in runs]).median,
        padding_share=padding_share(lengths, extraction_batches(lengths, device)),
        peak_bytes=_highest([run.peak_bytes for run in runs]),
        gpu_peak_bytes=_highest([run.gpu_peak_bytes for run in runs]),
    )


def measure_growth(corpus: Corpus, work: Path, encoder: str, device: str, repeats: int) -> GrowthResult:
    """Time and memory of a corpus, and of one with four times its clips, in turn."""
    small = replace(corpus, container="flac")
    grown = replace(small, sources=[*small.sources] * GROWTH)
    params = audio_params(encoder, "float32")
    jobs = [
        Job(write_release(wanted, work / name), params, wanted.channels, device)
        for name, wanted in (("once", small), ("grown", grown))
    ]
    pairs = []
    for number in range(repeats):
        pairs.append([in_own_process(job) for job in jobs])
        say(f"growth, repeat {number + 1}: {pairs[-1][0].seconds:.2f} s, {pairs[-1][1].seconds:.2f} s")
    peak, grown_peak = (_highest([pair[which].peak_bytes for pair in pairs]) for which in (0, 1))
    return GrowthResult(
        encoder=encoder,
        growth=GROWTH,
        clips=len(small.sources),
        audio_seconds=small.seconds,
        seconds=spread([once.seconds for once, _ in pairs]),
        grown_seconds=spread([more.seconds for _, more in pairs]),
        time_ratio=spread([more.seconds / once.seconds for once, more in pairs]),
        peak_bytes=peak,
        grown_peak_bytes=grown_peak,
        peak_ratio=grown_peak / peak if peak and grown_peak else None,
    )


def in_own_process(job: Job) -> Run:
    """`run` in a process that has held nothing yet, with the environment of our commands."""
    settle_libraries()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run, job).result()


def run(job: Job) -> Run:
    """Extract once; the model is loaded before, so that its share can be told."""
    import torch

    from pipeline.encoders import load_speech_encoder

    load_speech_encoder(job.params, job.device)  # reads what imports and the disk's cache take
    started, processor = time.perf_counter(), processor_seconds()
    load_speech_encoder(job.params, job.device)
    load_seconds, load_processor = time.perf_counter() - started, processor_seconds() - processor
    root, target = job.manifest.parent, job.manifest.with_name("audio.h5")
    started, processor = time.perf_counter(), processor_seconds()
    extract_audio(job.manifest, target, job.params, root, job.channels, job.device)
    seconds, processor = time.perf_counter() - started, processor_seconds() - processor
    peak = process_peak()
    target.unlink()
    return Run(
        seconds=seconds - load_seconds,
        load_seconds=load_seconds,
        processor_seconds=processor - load_processor,
        decode_seconds=decode_seconds(job),
        peak_bytes=peak,
        gpu_peak_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None,
    )


def processor_seconds() -> float:
    """Of this process so far, and of those that it has started and that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def decode_seconds(job: Job) -> float:
    """Seconds of processor to decode and resample all files, and nothing else."""
    started = time.process_time()
    for utterance in read_manifest(job.manifest):
        recording = decode(job.manifest.parent / str(utterance.audio), job.channels)
        resample(recording.samples, recording.sample_rate, SAMPLE_RATE)
    return time.process_time() - started


def _highest(peaks: Sequence[int | None]) -> int | None:
    return max((peak for peak in peaks if peak is not None), default=None)
