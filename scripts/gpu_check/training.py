"""HBAF at MELD's size: milliseconds and kernels a step, how busy the GPU is, several processes on one GPU.

Every part has a process of its own, since several share the GPU and nobody else must hold a part of its memory.
"""

import multiprocessing
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measures.epochs import EpochTime
from measures.planted import write_planted
from measures.spoken import Spoken, of_share
from measures.trainer import train_ours
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from fusion.params import Recipe
from gpu_check.context import Context
from gpu_check.features import load_data, meld_spoken, recipe_of
from gpu_check.waits import counted_steps
from pipeline.store import read_features

MODEL = "hbaf"
TOGETHER_SECONDS = 120.0  # that processes wait for each other


@dataclass(frozen=True)
class Timed:
    """A run of several epochs."""

    steps: int  # of an epoch
    train_seconds: float  # of an epoch's steps; the first epoch is left out where there are others
    epoch_seconds: float  # with validation
    peak_bytes: int | None


@dataclass(frozen=True)
class Profiled:
    """What the GPU did in an epoch; on a processor, operations in place of kernels."""

    kernels: float
    copies: float
    seconds: float  # of kernels and copies together


def check_training(context: Context) -> None:
    """All of MELD by itself; a part of it profiled, and in several processes at once."""
    recipe = recipe_of(context, MODEL, f"train.epochs={context.size.epochs}")
    spoken, note = meld_spoken(context, recipe.model.audio_frames)
    part = write_planted(_part(spoken, context.size.process_share), context.work, context.size.meld.dim)
    alone = 0.0
    with context.case(f"{MODEL}, a part of MELD, profiled") as case:
        case.notes.append(note)
        timed: Timed = context.apart(_time, context, part, recipe)
        profiled: Profiled = context.apart(_profile, context, part, recipe)
        alone = timed.train_seconds / timed.steps
        case["steps"], case["ms_a_step"] = timed.steps, 1000 * alone
        case["kernels_a_step"] = profiled.kernels / timed.steps
        case["copies_a_step"] = profiled.copies / timed.steps
        case["busy_share"] = profiled.seconds / timed.epoch_seconds
        case.needs_a_gpu = not context.has_gpu
    for processes in context.size.processes:
        with context.case(f"{MODEL}, a part of MELD, {processes} at once") as case:
            runs = context.apart(_time_together, context, part, recipe, processes)
            case["ms_a_step"] = 1000 * statistics.mean(run.train_seconds / run.steps for run in runs)
            case["steps_a_second"] = sum(run.steps / run.train_seconds for run in runs)
            case["times_one"] = float(case.values["steps_a_second"] or 0) * alone
    with context.case(f"{MODEL}, all of MELD") as case:
        case.notes.append(note)
        whole = write_planted(spoken, context.work, context.size.meld.dim)
        run = context.apart(_time, context, whole, recipe)
        case["utterances"], case["steps"] = len(spoken), run.steps
        case["ms_a_step"] = 1000 * run.train_seconds / run.steps
        case["train_seconds"], case["epoch_seconds"] = run.train_seconds, run.epoch_seconds
        case["gpu_peak_gib"] = None if run.peak_bytes is None else round(run.peak_bytes / 2**30, 2)


def _part(spoken: Sequence[Spoken], share: float) -> list[Spoken]:
    """That share of the train split, with one conversation of validation: an epoch is little else than learning."""
    chosen = of_share(spoken, share)
    validation = next(one.record.conversation for one in chosen if one.record.split == "validation")
    return [one for one in chosen if one.record.split == "train" or one.record.conversation == validation]


def _time(context: Context, path: Path, recipe: Recipe, together: Any = None) -> Timed:
    features = read_features(path)
    if together is not None:
        together.wait(TOGETHER_SECONDS)
    with counted_steps() as steps:
        done = train_ours(features, recipe, 0, context.device, {}, padding=False)
    epochs: list[EpochTime] = done.epochs[1:] or done.epochs
    return Timed(
        steps=steps[0] // len(done.epochs),
        train_seconds=statistics.median(epoch.learned - epoch.began for epoch in epochs),
        epoch_seconds=statistics.median(epoch.seconds for epoch in epochs),
        peak_bytes=torch.cuda.max_memory_allocated() if context.has_gpu else None,
    )


class _Together:
    """What a worker process knows; handed over when it starts."""

    barrier: Any = None

    @classmethod
    def start(cls, barrier: Any) -> None:
        cls.barrier = barrier

    @classmethod
    def work(cls, context: Context, path: Path, recipe: Recipe) -> Timed:
        return _time(context, path, recipe, cls.barrier)


def _time_together(context: Context, path: Path, recipe: Recipe, processes: int) -> list[Timed]:
    """Of so many processes that begin at the same time."""
    start = multiprocessing.get_context(context.method)
    barrier = start.Barrier(processes)
    with ProcessPoolExecutor(processes, start, initializer=_Together.start, initargs=(barrier,)) as pool:
        futures = [pool.submit(_Together.work, context, path, recipe) for _ in range(processes)]
        return [future.result() for future in futures]


def _profile(context: Context, path: Path, recipe: Recipe) -> Profiled:
    """An epoch of learning: two epochs less one, so that what starts and ends a run is left out."""
    data = load_data(read_features(path), recipe, context.device)
    activity = ProfilerActivity.CUDA if context.has_gpu else ProfilerActivity.CPU
    found = []
    for epochs in (1, 1, 2) if context.has_gpu else (1, 2):  # the first one warms up a GPU
        shortened = recipe_of(context, MODEL, f"train.epochs={epochs}")
        with profile(activities=[activity], acc_events=True) as profiler:
            data.fit(shortened)
            context.synchronize()
        found.append(_summed(profiler.events(), context.has_gpu))
    one, two = found[-2:]
    return Profiled(two.kernels - one.kernels, two.copies - one.copies, two.seconds - one.seconds)


def _summed(events: Any, has_gpu: bool) -> Profiled:
    kind = DeviceType.CUDA if has_gpu else DeviceType.CPU
    works = [event for event in events if event.device_type == kind and not event.is_user_annotation]
    if not has_gpu:
        works = [event for event in works if event.cpu_parent is None and event.name.startswith("aten::")]
    copies = sum(event.name.startswith(("Memcpy", "Memset")) for event in works)
    microseconds = sum(event.time_range.elapsed_us() for event in works)
    return Profiled(len(works) - copies, copies, microseconds / 1e6)
