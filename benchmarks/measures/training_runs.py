"""The ways to train side by side, and one way on a growing corpus; each run in a process of its own."""

import importlib
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from fusion.params import Recipe
from measures.epochs import EpochTime, Padding, epoch_seconds, last_stage, reach, train_seconds
from measures.machine import process_peak, sampled_peak
from measures.timing import Spread, say, spread
from measures.trainer import train_ours
from measures.usual import train_usual
from pipeline.settings import count_cores
from pipeline.store import read_features

Task = TypeVar("Task")
Found = TypeVar("Found")

USUAL, POOLED, MAPPED, RESIDENT, BESIDE = WAYS = ("usual", "pooled", "mapped", "resident", "beside")
OTHERS = (USUAL, POOLED)  # what is not this project's trainer


@dataclass(frozen=True)
class Job:
    """What a process is to train."""

    variant: str
    features: Path
    recipe: Recipe
    seed: int
    device: str
    workers: int = 0  # of the usual way's DataLoader
    padding: bool = False  # whether to count it, which takes a further pass


@dataclass(frozen=True)
class Run:
    """What one process measured; imports are not in its seconds."""

    load_seconds: float
    seconds: float  # loading and all epochs
    epoch_seconds: float  # learning and validation
    train_seconds: float  # learning alone
    epochs: list[EpochTime]
    started: float  # the clock's time
    score: float  # of the trained model on validation
    utterances: int  # of train
    padding: Padding | None
    peak_bytes: int | None  # of the process, with what it maps of files
    own_peak_bytes: int | None  # without
    gpu_peak_bytes: int | None
    share: float = 1.0  # of the clock's time that counts for this run, where others ran beside it

    @property
    def last_score(self) -> float:
        """On validation, after the last epoch."""
        return self.epochs[-1].score

    @property
    def by_stage(self) -> dict[str, float]:
        """Seconds of an epoch."""
        names = dict.fromkeys(epoch.stage for epoch in self.epochs)
        return {
            name: self.share * epoch_seconds([epoch for epoch in self.epochs if epoch.stage == name]) for name in names
        }


@dataclass(frozen=True)
class VariantResult:
    """One way to train; ratios are to the first way, of the same repeat, above 1 where this one is faster."""

    name: str
    load_seconds: Spread
    epoch_seconds: Spread
    train_seconds: Spread
    validation_seconds: Spread
    times_usual: Spread
    stage_seconds: dict[str, Spread]  # of an epoch, by stage
    stage_times_usual: dict[str, Spread]
    utterances_a_second: float  # of learning
    seconds: Spread  # loading and all epochs
    scores: list[float]  # of each seed's model
    mean_score: float
    score_deviation: float | None  # of the sample; None: one seed
    reached: int  # seeds that came to the target score
    reach_seconds: Spread | None  # from before loading, of those
    reach_epochs: Spread | None
    padding: Padding | None
    peak_bytes: int | None
    own_peak_bytes: int | None
    gpu_peak_bytes: int | None


@dataclass(frozen=True)
class ModelResult:
    """All ways to train one model."""

    model: str
    utterances: int  # of train
    epochs: int
    target_score: float  # on validation, with which the usual way ends: mean over seeds of the last epoch's
    variants: list[VariantResult]


@dataclass(frozen=True)
class GrowthResult:
    """A part of the corpus, and the time for it; the ratio is to all of it, of the same repeat, each an utterance."""

    model: str
    variant: str
    share: float
    utterances: int
    epoch_seconds: Spread
    utterance_ratio: Spread
    own_peak_bytes: int | None


@dataclass(frozen=True)
class EpochResult:
    """An epoch of one model, resident, in seconds of its processor; the ratio is to the first model."""

    model: str
    stage_seconds: dict[str, Spread]
    times_first: Spread


def measure_models(
    models: Sequence[str],
    ways: Sequence[str],
    features: Path,
    recipe: Callable[[str], Recipe],
    device: str,
    seeds: int,
    workers: int,
) -> list[ModelResult]:
    """The `ways` to train each model, in turn, once for each seed; the others are compared with the first."""
    results = []
    for model in models:
        rounds: list[dict[str, Run]] = []
        for seed in range(seeds):
            rounds.append({})
            for name in ways:
                job = Job(name, features, recipe(model), seed, device, workers, padding=seed == 0)
                rounds[-1][name] = run_beside(job) if name == BESIDE else in_own_process(run, job)
                _tell(f"{model}, {name}, seed {seed}", rounds[-1][name])
        target = statistics.mean(found[ways[0]].last_score for found in rounds)
        first = rounds[0][ways[0]]
        variants = [_result(name, ways[0], rounds, target) for name in ways]
        results.append(ModelResult(model, first.utterances, len(first.epochs), target, variants))
    return results


def measure_growth(
    models: Sequence[str], corpora: Mapping[float, Path], recipe: Callable[[str], Recipe], device: str, repeats: int
) -> list[GrowthResult]:
    """The resident way on each of `corpora` (by share, the whole one last), in turn."""
    results = []
    for model in models:
        rounds: list[dict[float, Run]] = []
        for number in range(repeats):
            rounds.append({})
            for share, features in corpora.items():
                job = Job(RESIDENT, features, recipe(model), number, device)
                rounds[-1][share] = in_own_process(run, job)
                _tell(f"{model}, {share:g} of the corpus, repeat {number + 1}", rounds[-1][share])
        whole = list(corpora)[-1]
        results += [_growth(model, share, whole, rounds) for share in corpora]
    return results


def measure_epochs(
    models: Sequence[str], features: Path, recipe: Callable[[str], Recipe], device: str, repeats: int
) -> list[EpochResult]:
    """An epoch of each model, in turn, by a clock that stands still while other programs have the processor."""
    rounds: list[dict[str, list[EpochTime]]] = []
    for number in range(repeats):
        rounds.append({})
        for model in models:
            rounds[-1][model] = in_own_process(_timed, Job(RESIDENT, features, recipe(model), number, device))
            say(f"{model}, repeat {number + 1}: {epoch_seconds(rounds[-1][model]):.2f} s of the processor an epoch")
    return [
        EpochResult(
            model=model,
            stage_seconds={
                stage: spread([epoch_seconds([one for one in found[model] if one.stage == stage]) for found in rounds])
                for stage in dict.fromkeys(epoch.stage for epoch in rounds[0][model])
            },
            times_first=spread([epoch_seconds(found[model]) / epoch_seconds(found[models[0]]) for found in rounds]),
        )
        for model in models
    ]


def _timed(job: Job) -> list[EpochTime]:
    importlib.import_module("torch._dynamo")  # as in `run`
    resident = {"resident": True}
    done = train_ours(
        read_features(job.features), job.recipe, job.seed, job.device, resident, padding=False, now=time.process_time
    )
    return done.epochs


def in_own_process(function: Callable[[Task], Found], task: Task) -> Found:
    """`function` in a process that has held nothing yet; see `environment` for its threads."""
    return in_own_processes(function, [task])[0]


def run_beside(job: Job) -> Run:
    """As many seeds at once as there are cores: of each second, a run has its part."""
    cores = count_cores()
    found = in_own_processes(run, [replace(job, seed=job.seed + 1000 * number) for number in range(cores)])
    longest = max(found, key=lambda one: one.epoch_seconds)
    parts = {name: getattr(longest, name) / cores for name in ("epoch_seconds", "train_seconds")}
    return replace(longest, **parts, share=1 / cores)


def in_own_processes(function: Callable[[Task], Found], tasks: Sequence[Task]) -> list[Found]:
    """The same for several, at once."""
    before = dict(os.environ)
    os.environ.update(environment(tasks[0]))
    try:
        with ProcessPoolExecutor(len(tasks), mp_context=get_context("spawn")) as pool:
            return list(pool.map(function, tasks))
    finally:
        os.environ.clear()
        os.environ.update(before)


def environment(task: Any) -> dict[str, str]:
    """What libraries read when they are loaded; what the user has set stays.

    The usual way has torch's threads, one a core, all else one, as our commands. Threads do not wait actively: where
    anything else runs on the cores, that made the usual way ten times slower.
    """
    usual = isinstance(task, Job) and task.variant in OTHERS
    wanted = {"OMP_WAIT_POLICY": "PASSIVE"} | ({} if usual else {"OMP_NUM_THREADS": "1"})
    return {name: value for name, value in wanted.items() if name not in os.environ}


def run(job: Job) -> Run:
    """Train once."""
    importlib.import_module("torch._dynamo")  # every optimizer needs it: seconds, in no epoch's time
    features = read_features(job.features)
    with sampled_peak() as own:
        started = time.perf_counter()
        if job.variant in OTHERS:
            limit = job.recipe.model.audio_frames if job.variant == POOLED else None
            done = train_usual(features, job.recipe, job.seed, job.device, job.workers, job.padding, limit)
        else:
            resident = job.variant != MAPPED
            done = train_ours(features, job.recipe, job.seed, job.device, {"resident": resident}, job.padding)
    epochs = done.epochs
    return Run(
        load_seconds=done.loaded - started,
        seconds=epochs[-1].ended - started,
        epoch_seconds=epoch_seconds(epochs),
        train_seconds=train_seconds(epochs),
        epochs=epochs,
        started=started,
        score=done.score,
        utterances=done.utterances,
        padding=done.padding,
        peak_bytes=process_peak(),
        own_peak_bytes=own.bytes,
        gpu_peak_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None,
    )


def _result(name: str, first: str, rounds: Sequence[Mapping[str, Run]], target: float) -> VariantResult:
    runs, pairs = [found[name] for found in rounds], [(found[name], found[first]) for found in rounds]
    reached = [(found, epoch) for found in runs if (epoch := reach(found.epochs, target))]
    stages = list(runs[0].by_stage)
    scores = [found.score for found in runs]
    return VariantResult(
        name=name,
        load_seconds=spread([found.load_seconds for found in runs]),
        epoch_seconds=spread([found.epoch_seconds for found in runs]),
        train_seconds=spread([found.train_seconds for found in runs]),
        validation_seconds=spread([found.epoch_seconds - found.train_seconds for found in runs]),
        times_usual=spread([usual.epoch_seconds / own.epoch_seconds for own, usual in pairs]),
        stage_seconds={stage: spread([found.by_stage[stage] for found in runs]) for stage in stages},
        stage_times_usual={
            stage: spread([usual.by_stage[stage] / own.by_stage[stage] for own, usual in pairs]) for stage in stages
        },
        utterances_a_second=statistics.median(found.utterances / found.train_seconds for found in runs),
        seconds=spread([found.seconds for found in runs]),
        scores=scores,
        mean_score=statistics.mean(scores),
        score_deviation=statistics.stdev(scores) if len(scores) > 1 else None,
        reached=len(reached),
        reach_seconds=spread([epoch.ended - found.started for found, epoch in reached]) if reached else None,
        reach_epochs=spread([_number(found, epoch) for found, epoch in reached]) if reached else None,
        padding=runs[0].padding,
        peak_bytes=highest([found.peak_bytes for found in runs]),
        own_peak_bytes=highest([found.own_peak_bytes for found in runs]),
        gpu_peak_bytes=highest([found.gpu_peak_bytes for found in runs]),
    )


def _number(found: Run, epoch: EpochTime) -> int:
    """Of an epoch in its stage, from 1."""
    return last_stage(found.epochs).index(epoch) + 1


def _growth(model: str, share: float, whole: float, rounds: Sequence[Mapping[float, Run]]) -> GrowthResult:
    runs = [found[share] for found in rounds]
    each = [
        (found[share].epoch_seconds / found[share].utterances) / (found[whole].epoch_seconds / found[whole].utterances)
        for found in rounds
    ]
    return GrowthResult(
        model=model,
        variant=RESIDENT,
        share=share,
        utterances=runs[0].utterances,
        epoch_seconds=spread([found.epoch_seconds for found in runs]),
        utterance_ratio=spread(each),
        own_peak_bytes=highest([found.own_peak_bytes for found in runs]),
    )


def _tell(what: str, found: Run) -> None:
    say(f"{what}: {found.epoch_seconds:.2f} s an epoch, {found.seconds:.1f} s in all, score {found.score:.3f}")


def highest(peaks: Sequence[int | None]) -> int | None:
    """Of those that were told."""
    return max((peak for peak in peaks if peak is not None), default=None)
