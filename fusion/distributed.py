"""The runs of an ablation table on a cluster: each of its actors trains one at a time, this process writes them all.

Splits go into the cluster's object store once, as numpy's arrays, which the actors of a node share without a copy. Onto
a GPU each actor copies them, if they fit into its share of the memory; else every batch is gathered from the store. No
state of an unfinished run is kept, since nodes need not share a disk: a run whose actor dies is done again from its
first epoch.
"""

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion.errors import TrainingError
from fusion.memory import Memory, memory_for_features, take_share, within_memory
from fusion.runs import Result, Run, RunFolder, compute_run
from fusion.split_table import SplitTable, place_splits
from pipeline.settings import Cluster, ClusterError


@dataclass(frozen=True)
class Place:
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
    shared = cluster.put({frames: _convert(one, Tensor, Tensor.numpy) for frames, one in splits.held.here.items()})
    place = Place(cluster.device, cluster.share.gpus, cluster.share.threads, memory)
    work = cluster.work(runs, _make_trainer, shared, classes, place)
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


def _make_trainer(shared: Mapping[int, Any], classes: int, place: Place) -> Callable[[Run], Result | str]:
    """In an actor: what trains a run, or says why it failed."""
    torch.set_num_threads(place.threads)
    importlib.import_module("torch._dynamo")  # every optimizer needs it: seconds, once and in no run's time
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing writes to it
        loaded = {frames: _convert(arrays, np.ndarray, torch.from_numpy) for frames, arrays in shared.items()}
    device = torch.device(place.device)
    share = take_share(device, place.gpus)
    splits = place_splits(loaded, device, memory_for_features(place.memory, device, share))

    def train(run: Run) -> Result | str:
        def compute() -> Result:
            return compute_run(run, splits[run.recipe], classes, None, sys.stderr)

        try:
            return within_memory(compute, splits.held, run.name)
        except TrainingError as error:
            return str(error)

    return train


def _convert(record: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    """The same dataclass, whose fields of this `kind` are converted, at any depth."""
    changed = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, kind):
            changed[field.name] = convert(value)
        elif is_dataclass(value):
            changed[field.name] = _convert(value, kind, convert)
    return replace(record, **changed)
