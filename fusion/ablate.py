"""Train and score all rows of an ablation table with every seed: features loaded once, no finished run done again.

On a CPU several runs are done side by side (`fusion.side_by_side`); numbers do not depend on how many. That holds for
the actors of a cluster, too (`fusion.distributed`).
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from fusion.atomic import writing
from fusion.data import Split
from fusion.distributed import train_on_cluster
from fusion.errors import TrainingError
from fusion.memory import memory_for_features, within_memory
from fusion.params import EvaluateParams
from fusion.runs import Result, Run, RunFolder, train_run
from fusion.seeds import fingerprint
from fusion.side_by_side import count_jobs, side_by_side, single_thread
from fusion.split_table import SplitTable, load_splits
from fusion.tasks import Task, find_task
from fusion.train import build_split_model
from fusion.variants import Variant
from pipeline.settings import Cluster, SettingsError
from pipeline.store import Features


@dataclass(frozen=True)
class Ablation:
    """All runs of a table."""

    features: str  # hash of the feature file
    task: Task
    test: Split
    seeds: Sequence[int]
    variants: Sequence[Variant]
    results: Mapping[str, Sequence[Result]]  # by row, one a seed
    params: EvaluateParams
    device: str  # its type


def ablate(
    features: Features,
    variants: Sequence[Variant],
    params: EvaluateParams,
    folder: Path,
    device: torch.device,
    jobs: int | None = None,
    cluster: Cluster | None = None,
) -> Ablation:
    """Train every row of `variants` with every seed, or take its result from `folder`, where each is kept.

    Args:
        device: that trains, here or in the actors of the cluster.
        jobs: processes that train side by side; one for each core by default, always one on a GPU.
        cluster: where to train instead.

    Raises:
        SettingsError: a model refuses its parameters; nothing was trained.
        FeatureError: the features lack what a row needs.
        TrainingError: runs failed, after all others were done; or a process was killed.
        ClusterError: actors cannot be started.
        OutputError: a result cannot be written.
    """
    if cluster and jobs:
        raise TrainingError(f"--jobs {jobs}: with cluster.engine 'ray', set cluster.actors instead")
    jobs = 1 if cluster else count_jobs(jobs, device)
    with writing(folder):  # now, rather than after the first run
        folder.mkdir(parents=True, exist_ok=True)
    kept = RunFolder(folder)
    with single_thread(jobs) as threads:
        splits = _load_splits(features, variants, device, cluster)
        classes = len(features.label_names)
        _check_models(variants, splits, classes)
        runs = {one.name: _list_runs(features, one, device) for one in variants}
        distinct = {run.fingerprint: run for row in runs.values() for run in row}
        missing = [run for run in distinct.values() if kept.load(run) is None]
        work: AbstractContextManager[Iterator[str | None]]
        if cluster:
            memory = variants[0].recipe.train.memory
            work = nullcontext(train_on_cluster(missing, splits, classes, kept, cluster, memory))
        else:
            train = partial(_train, splits=splits, classes=classes, kept=kept)
            work = side_by_side(missing, train, jobs, threads)
        _finish(work, len(missing), len(distinct))
    return Ablation(
        features=features.digest,
        task=find_task(variants[0].recipe.train.target, classes),
        test=splits[variants[0].recipe].test,
        seeds=variants[0].recipe.train.seeds,
        variants=variants,
        results={name: [_load(kept, run) for run in row] for name, row in runs.items()},
        params=params,
        device=device.type,
    )


def _load_splits(
    features: Features, variants: Sequence[Variant], device: torch.device, cluster: Cluster | None
) -> SplitTable:
    if cluster:  # to be copied from here to its nodes, whole
        return load_splits(features, variants, torch.device("cpu"), None)
    return load_splits(features, variants, device, memory_for_features(variants[0].recipe.train.memory, device))


def _list_runs(features: Features, variant: Variant, device: torch.device) -> list[Run]:
    return [
        Run(variant.name, variant.recipe, seed, fingerprint(features, variant.recipe, seed, device))
        for seed in variant.recipe.train.seeds
    ]


def _check_models(variants: Sequence[Variant], splits: SplitTable, classes: int) -> None:
    """Build each model once, so that what one refuses shows before the first run."""
    for one in variants:
        try:
            with torch.random.fork_rng(devices=[]):
                build_split_model(splits[one.recipe].train, one.recipe, classes)
        except SettingsError as error:
            raise SettingsError(f"row '{one.name}' of ablations: {error}") from error


def _load(kept: RunFolder, run: Run) -> Result:
    result = kept.load(run)
    if result is None:
        raise TrainingError(f"{kept.path}: the result of row '{run.row}' went missing; run fusion-ablate again")
    return result


def _finish(work: AbstractContextManager[Iterator[str | None]], missing: int, total: int) -> None:
    """Do all runs that are `missing`; one that fails does not keep the others from being done."""
    failures: list[str] = []
    with (
        work as finished,  # the bar has a thread of its own, so it comes after the processes
        tqdm(total=total, initial=total - missing, desc="ablations", unit="run", disable=None) as bar,
    ):
        for failure in finished:
            failures += [failure] if failure else []
            bar.update()
    if failures:
        more = f" (and {len(failures) - 1} more runs failed)" if len(failures) > 1 else ""
        raise TrainingError(f"{failures[0]}{more}; mend or take out the row and run it again: finished runs are kept")


def _train(run: Run, splits: SplitTable, classes: int, kept: RunFolder) -> str | None:
    """Why the run failed; None if it is done."""
    try:
        within_memory(lambda: train_run(run, splits[run.recipe], classes, kept, sys.stderr), splits.held, run.name)
    except TrainingError as error:
        return str(error)
    return None
