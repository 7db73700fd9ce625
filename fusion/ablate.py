"""Train and score all rows of an ablation table with every seed: features loaded once, no finished run done again.

On a CPU several processes work side by side. They are forked after the splits were loaded, so that they share the rows
without a copy, however many there are; shared memory would need as much of /dev/shm, which containers keep at 64 MB.
No thread of torch may live when a process forks, so this one computes with a single thread until then. Numbers do not
depend on how many processes there are: each run has its own seed and as many threads as torch would have here. That
holds for the actors of a cluster, too (`fusion.distributed`).
"""

import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from fusion.atomic import writing
from fusion.data import Split
from fusion.distributed import train_on_cluster
from fusion.errors import TrainingError
from fusion.params import EvaluateParams
from fusion.runs import Result, Run, RunFolder, train_run
from fusion.seeds import fingerprint
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
    jobs = _count_jobs(jobs, device, cluster)
    with writing(folder):  # now, rather than after the first run
        folder.mkdir(parents=True, exist_ok=True)
    kept = RunFolder(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if jobs > 1 else threads)
    try:
        splits = load_splits(features, variants, torch.device("cpu") if cluster else device)
        classes = len(features.label_names)
        _check_models(variants, splits, classes)
        runs = {one.name: _list_runs(features, one, device) for one in variants}
        distinct = {run.fingerprint: run for row in runs.values() for run in row}
        missing = [run for run in distinct.values() if kept.load(run) is None]
        work: AbstractContextManager[Iterator[str | None]]
        if cluster:
            work = nullcontext(train_on_cluster(missing, splits, classes, kept, cluster))
        else:
            work = _train_here(missing, splits, classes, kept, min(jobs, len(missing)), threads)
        _finish(work, len(missing), len(distinct))
    finally:
        torch.set_num_threads(threads)
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


def _count_jobs(asked: int | None, device: torch.device, cluster: Cluster | None) -> int:
    if cluster:
        if asked:
            raise TrainingError(f"--jobs {asked}: with cluster.engine 'ray', set cluster.actors instead")
        return 1
    if device.type == "cpu":
        return asked or len(os.sched_getaffinity(0))
    if asked not in (None, 1):
        raise TrainingError(
            f"--jobs {asked}: on {device.type} one process trains; leave --jobs out, or use --device cpu"
        )
    return 1


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


def _train_here(
    runs: Sequence[Run], splits: SplitTable, classes: int, kept: RunFolder, jobs: int, threads: int
) -> AbstractContextManager[Iterator[str | None]]:
    """Why each of the `runs` failed, None where it did not, as they finish."""
    if runs:
        importlib.import_module("torch._dynamo")  # every optimizer needs it: seconds, once and in no run's time
    train = partial(_train, splits=splits, classes=classes, kept=kept)
    torch.set_num_threads(1 if jobs > 1 else threads)
    return _side_by_side(runs, jobs, _Worker(train, threads)) if jobs > 1 else nullcontext(map(train, runs))


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
        train_run(run, splits[run.recipe], classes, kept, sys.stderr)
    except TrainingError as error:
        return str(error)
    return None


class _Worker:
    """What a forked process does; it is handed over by the fork, without a copy."""

    current: "_Worker"

    def __init__(self, train: partial[str | None], threads: int) -> None:
        self.train, self.threads = train, threads

    def start(self) -> None:
        _Worker.current = self
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it, without a word
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        threading.Thread(target=_die_with_parent, daemon=True).start()
        torch.set_num_threads(self.threads)

    @staticmethod
    def work(run: Run) -> str | None:
        return _Worker.current.train(run)


def _die_with_parent() -> None:
    """A killed parent cannot end its processes: they end themselves, and what was running goes on the next time."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _side_by_side(runs: Sequence[Run], jobs: int, worker: _Worker) -> Iterator[Iterator[str | None]]:
    """What `worker` makes of the `runs`, as they finish; the processes are gone when the context is left."""
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), initializer=worker.start) as executor:
        try:
            with _ctrl_c_waits():  # a process that is just being forked would tell of it at length
                futures: Iterable[Future[str | None]] = [executor.submit(_Worker.work, run) for run in runs]
            yield (future.result() for future in as_completed(futures))
        except BaseException as error:  # Ctrl-C, too: what is running is not waited for
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            executor.shutdown(cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise TrainingError(
                    "a training process was killed, for want of memory perhaps; finished runs are kept: "
                    "run it again, with fewer --jobs"
                ) from error
            raise
