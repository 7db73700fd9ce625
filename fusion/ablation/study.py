"""Train and score all rows of an ablation table with every seed: features loaded once, no finished run done again.

On a CPU several runs are done side by side (`fusion.runtime.processes`); numbers do not depend on how many. That holds
for the actors of a cluster, too (`fusion.ablation.study`).

On a cluster each actor trains one run at a time, and this process writes them all.
Splits go into the cluster's object store once, as numpy's arrays, which the actors of a node share without a copy. Onto
a GPU each actor copies them, if they fit into its share of the memory; else every batch is gathered from the store. No
state of an unfinished run is kept, since nodes need not share a disk: a run whose actor dies is done again from its
first epoch.
"""

import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fusion.ablation.folds import make_folds, number_units, pool_results, pool_splits
from fusion.ablation.single_run import (
    Place,
    Result,
    Run,
    RunFolder,
    Splits,
    SplitTable,
    compute_run,
    fit_reference,
    load_splits,
    place_splits,
    train_run,
)
from fusion.ablation.variants import Variant
from fusion.data import Split, refuse_learned
from fusion.errors import TrainingError
from fusion.models import model_source
from fusion.objective import METRICS, Task, find_task
from fusion.params import EvaluateParams, FoldParams
from fusion.runtime import (
    Memory,
    count_jobs,
    memory_for_features,
    side_by_side,
    single_thread,
    take_share,
    within_memory,
    writing,
)
from fusion.training import build_split_model, fingerprint
from pipeline.settings import Cluster, ClusterError, SettingsError
from pipeline.store import MODALITIES, Contents, Features, fold_copies, split_copies

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Actor:
    """What an actor works with."""

    device: str  # cpu | cuda
    gpus: float  # a share of one, or several
    threads: int
    memory: Memory


def train_on_cluster(
    runs: Sequence[Run], splits: SplitTable, classes: int, kept: RunFolder, cluster: Cluster, memory: Memory
) -> Iterator[str | None]:
    """Do all `runs` and keep their results as they come; why each one failed, None where it did not.

    Args:
        memory: GB of a GPU that the features of an actor may take; auto: half of what is free of its share.

    Raises:
        ClusterError: actors cannot be started.
        OutputError: a result cannot be written.
    """
    convert = _once(Tensor.numpy)
    shared = cluster.put({place: convert_all(one, Tensor, convert) for place, one in splits.held.here.items()})
    actor = Actor(cluster.device, cluster.share.gpus, cluster.share.threads, memory)
    sources = {run.recipe.model.name: model_source(run.recipe.model.name) for run in runs}
    work = cluster.work(runs, make_trainer, shared, classes, actor, sources)
    for run, result in work:
        match result:
            case Result():
                kept.save(run, result)
                kept.state(run).delete()  # of a run on this machine that was interrupted
                yield None
            case ClusterError():
                yield f"{run.name}: {result}"
            case failure:
                yield failure


def make_trainer(
    shared: Mapping[Place, Any], classes: int, actor: Actor, sources: Mapping[str, str | None]
) -> Callable[[Run], Result | str]:
    """In an actor: what trains a run, or says why it failed; `sources` is what `model_source` says of each model."""
    for name, source in sources.items():
        if model_source(name) != source:
            raise ClusterError(f"the code of model {name} is another here: put the same on every node")
    torch.set_num_threads(actor.threads)
    importlib.import_module("torch._dynamo")  # every optimizer needs it: seconds, once and in no run's time
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing writes to it
        convert = _once(torch.from_numpy)
        loaded = {place: convert_all(arrays, np.ndarray, convert) for place, arrays in shared.items()}
    device = torch.device(actor.device)
    share = take_share(device, actor.gpus)
    splits = place_splits(loaded, device, memory_for_features(actor.memory, device, share))

    def train(run: Run) -> Result | str:
        def compute() -> Result:
            return compute_run(run, splits, classes, None, sys.stderr)

        try:
            return within_memory(compute, splits.held, run.name)
        except TrainingError as error:
            return str(error)

    return train


def _once(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Converts a value that is met again, as rows that folds share are, to the same object."""
    met: dict[int, tuple[Any, Any]] = {}

    def converted(value: Any) -> Any:
        if id(value) not in met:
            met[id(value)] = value, convert(value)  # the value, so that no other one takes its id
        return met[id(value)][1]

    return converted


def convert_all(record: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    """The same dataclass, whose fields of this `kind` are converted, at any depth."""
    changed = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, kind):
            changed[field.name] = convert(value)
        elif is_dataclass(value):
            changed[field.name] = convert_all(value, kind, convert)
    return replace(record, **changed)


@dataclass(frozen=True)
class Ablation:
    """All runs of a table."""

    features: str  # hash of the feature file
    task: Task
    test: Split  # or the test splits of all folds, one behind the other
    seeds: Sequence[int]
    variants: Sequence[Variant]
    results: Mapping[str, Sequence[Result]]  # by row, one a seed, of all folds together
    params: EvaluateParams
    device: str  # its type
    linear: Result  # the linear reference of the base row, of all folds together
    floors: Mapping[str, float]  # of `train.metric`, by what gives them
    units: np.ndarray  # (conversations of test,) the number of the unit that each is drawn with, see `number_units`
    folds: FoldParams | None = None  # how they were made
    count: int = 1  # of the folds
    copies: Sequence[str] = ()  # a sentence where what is tested is also learned from


def ablate(
    features: Features,
    variants: Sequence[Variant],
    params: EvaluateParams,
    folder: Path,
    device: torch.device,
    jobs: int | None = None,
    cluster: Cluster | None = None,
    folds: FoldParams | None = None,
) -> Ablation:  # eight: what is trained on what, where, and over which folds; no caller has them as one thing
    """Train every row of `variants` with every seed, or take its result from `folder`, where each is kept.

    With `folds` that is done on each of them, and what the models answer on all test splits is one result.

    Args:
        device: that trains, here or in the actors of the cluster.
        jobs: processes that train side by side; one for each core by default, always one on a GPU.
        cluster: where to train instead.

    Raises:
        SettingsError: a model refuses its parameters; nothing was trained.
        FeatureError: the features lack what a row needs, or cannot be divided into such folds, or their encoder was
            fine-tuned on what would be tested.
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
    _refuse_learned(features, variants, folds)
    with single_thread(jobs) as threads:
        parts = make_folds(features, folds, variants[0].recipe.train.target) if folds else [features]
        copies = _find_copies(features, parts)
        for line in copies:
            log.warning("%s: %s", features.path, line)
        splits = _load_splits(parts, variants, device, cluster)
        classes = len(features.label_names)
        _check_models(variants, splits, classes)
        runs = {one.name: _list_runs(parts, one, device) for one in variants}
        distinct = {run.fingerprint: run for row in runs.values() for seed in row for run in seed}
        missing = [run for run in distinct.values() if kept.load(run) is None]
        work: AbstractContextManager[Iterator[str | None]]
        if cluster:
            memory = variants[0].recipe.train.memory
            work = nullcontext(train_on_cluster(missing, splits, classes, kept, cluster, memory))
        else:
            train = partial(_train, splits=splits, classes=classes, kept=kept)
            work = side_by_side(missing, train, jobs, threads)
        _finish(work, len(missing), len(distinct))
        base = variants[0].recipe
        given = [splits.find(base, fold) for fold in range(len(parts))]
        references = [fit_reference(base, splits, classes, fold) for fold in range(len(parts))]
        notes = {one.note for one in references}
        linear = replace(pool_results(references), note=notes.pop() if len(notes) == 1 else "another in each fold")
    task, test = find_task(base.train.target, classes), pool_splits([one.test for one in given])
    return Ablation(
        features=features.digest,
        task=task,
        test=test,
        seeds=base.train.seeds,
        variants=variants,
        results={
            name: [pool_results([_load(kept, run) for run in seed]) for seed in row] for name, row in runs.items()
        },
        params=params,
        device=device.type,
        linear=linear,
        floors=_floors(task, given, base.train.metric),
        units=number_units(features, test, folds),
        folds=folds,
        count=len(parts),
        copies=copies,
    )


def _refuse_learned(features: Features, variants: Sequence[Variant], folds: FoldParams | None) -> None:
    """Over folds every utterance is tested."""
    wanted = {one.recipe.model.modalities for one in variants}
    given = [name for name in MODALITIES if wanted & {name, "both"}]
    if folds:
        fix = "make folds from the encoder as it was before, or compare on the split that it learned with fusion-ablate"
        refuse_learned(features, given, np.ones(len(features.utterances), bool), fix)
    else:
        tested = np.array(features.utterances.splits) == "test"
        refuse_learned(features, given, tested, "fine-tune it again on this split, then encode again")


def _find_copies(features: Features, parts: Sequence[Features]) -> list[str]:
    """Between folds, or of the test split."""
    contents = Contents.of(features)
    if len(parts) == 1:
        return split_copies(contents, features.utterances.splits, ["test"])
    tested = {
        name: fold
        for fold, part in enumerate(parts)
        for name, split in zip(part.utterances.conversations, part.utterances.splits, strict=True)
        if split == "test"
    }
    return fold_copies(contents, [tested[name] for name in contents.conversations])


def _floors(task: Task, folds: Sequence[Splits], metric: str) -> dict[str, float]:
    """The constant answer and chance, each from the train split of its fold, scored on all test splits as one."""
    constant, chance = [], []
    for one in folds:
        known, train = (task.truth(split).numpy() for split in (one.test, one.train))
        answers = np.tile(task.constant(train), (len(known), 1))
        constant.append(task.tally(known, answers, np.array([0, len(known)]))[0])
        chance.append(task.chance(known, train))
    return {
        f"always {task.floor_is}": float(METRICS[metric](np.sum(constant, axis=0))),
        task.chance_is: float(METRICS[metric](np.sum(chance, axis=0))),
    }


def _load_splits(
    folds: Sequence[Features], variants: Sequence[Variant], device: torch.device, cluster: Cluster | None
) -> SplitTable:
    if cluster:  # to be copied from here to its nodes, whole
        return load_splits(folds, variants, torch.device("cpu"), None)
    return load_splits(folds, variants, device, memory_for_features(variants[0].recipe.train.memory, device))


def _list_runs(folds: Sequence[Features], variant: Variant, device: torch.device) -> list[list[Run]]:
    """By seed, one for each fold."""
    recipe = variant.recipe
    return [
        [
            Run(variant.name, recipe, seed, fingerprint(one, recipe, seed, device), fold if len(folds) > 1 else None)
            for fold, one in enumerate(folds)
        ]
        for seed in recipe.train.seeds
    ]


def _check_models(variants: Sequence[Variant], splits: SplitTable, classes: int) -> None:
    """Build each model once, so that what one refuses shows before the first run."""
    for one in variants:
        try:
            with torch.random.fork_rng(devices=[]):
                build_split_model(splits.find(one.recipe).train, one.recipe, classes)
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
        raise TrainingError(f"{failures[0]}{more}; fix or take out the row and run it again: finished runs are kept")


def _train(run: Run, splits: SplitTable, classes: int, kept: RunFolder) -> str | None:
    """Why the run failed; None if it is done."""
    try:
        within_memory(lambda: train_run(run, splits, classes, kept, sys.stderr), splits.held, run.name)
    except TrainingError as error:
        return str(error)
    return None
