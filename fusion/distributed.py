"""The runs of an ablation table on a cluster: each of its actors trains one at a time, this process writes them all.

Splits go into the cluster's object store once, as numpy's arrays, which the actors of a node share without a copy. No
state of an unfinished run is kept, since nodes need not share a disk: a run whose actor dies is done again from its
first epoch.
"""

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion.errors import TrainingError
from fusion.runs import Result, Run, RunFolder, compute_run
from fusion.split_table import SplitTable, move
from pipeline.settings import Cluster, ClusterError


def train_on_cluster(
    runs: Sequence[Run], splits: SplitTable, classes: int, kept: RunFolder, cluster: Cluster
) -> Iterator[str | None]:
    """Do all `runs` and keep their results as they come; why each one failed, None where it did not.

    Raises:
        ClusterError: actors cannot be started.
        OutputError: a result cannot be written.
    """
    shared = cluster.put({frames: _convert(loaded, Tensor, Tensor.numpy) for frames, loaded in splits.loaded.items()})
    work = cluster.work(runs, _make_trainer, shared, classes, cluster.device, cluster.share.threads)
    for run, result in work:
        match result:
            case Result():
                kept.save(run, result)
                kept.state(run).delete()  # of a run on this machine that was interrupted
                yield None
            case ClusterError():
                yield f"row '{run.row}' of ablations: seed {run.seed}: {result}"
            case failure:
                yield failure


def _make_trainer(shared: Mapping[int, Any], classes: int, device: str, threads: int) -> Callable[[Run], Result | str]:
    """In an actor: what trains a run, or says why it failed."""
    torch.set_num_threads(threads)
    importlib.import_module("torch._dynamo")  # every optimizer needs it: seconds, once and in no run's time
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing writes to it
        loaded = {frames: _convert(arrays, np.ndarray, torch.from_numpy) for frames, arrays in shared.items()}
    splits = SplitTable({frames: move(one, torch.device(device)) for frames, one in loaded.items()})

    def train(run: Run) -> Result | str:
        try:
            return compute_run(run, splits[run.recipe], classes, None, sys.stderr)
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
