"""What users wait for: the first step of `fusion-train`, several seeds to convergence, and a study of many models."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from fusion.ablation import ablate, read_variants
from fusion.params import EvaluateParams, Recipe
from fusion.runtime import partial_folder
from fusion.training import train_seeds
from measures.timing import Spread, say, spread
from measures.training_runs import environment, in_own_process
from pipeline.store import read_features

STUDY: Mapping[str, Mapping[str, Any]] = {  # rows beside the base row, HBAF with a part less
    "context none": {"model.hbaf.context": "none"},
    "context text": {"model.hbaf.context": "text"},
    "context conversation": {"model.hbaf.context": "conversation"},
    "level raw": {"model.hbaf.levels": "raw"},
    "level context": {"model.hbaf.levels": "context"},
    "no self-attention": {"model.hbaf.self_attention": False},
    "no cross-attention": {"model.hbaf.cross_attention": False},
    "no gate": {"model.hbaf.gate": False},
    "no relevance": {"model.hbaf.relevance": False},
    "no residual": {"model.hbaf.residual": False},
    "no conversation encoder": {"model.conversation_encoder": "none"},
}
FIRST_STEP = """
import os, signal, sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook
command = os.getpid()
def stop(*_):
    os.write(1, f"{time.perf_counter()}\\n".encode())  # a line at once: seeds of several processes may write
    os.kill(command, signal.SIGKILL)  # with the processes that train
    time.sleep(60)
register_optimizer_step_post_hook(stop)
from fusion.cli import train_app
sys.argv = ["fusion-train", *sys.argv[1:]]
train_app()
"""


@dataclass(frozen=True)
class StartResult:
    """From the start of the command to the end of its first step, the files in the disk's cache."""

    model: str
    utterances: int  # of all splits
    seconds: Spread


@dataclass(frozen=True)
class SeedsResult:
    """Several seeds of one model through `train_seeds`, with early stopping."""

    model: str
    seeds: int
    epochs: int  # of all seeds together
    seconds: float  # with loading, without imports
    mean_score: float


@dataclass(frozen=True)
class StudyResult:
    """A table of variants through `ablate`: every row trained with every seed and scored on the test split."""

    variants: int
    seeds: int
    epochs: int  # of all runs together
    seconds: float  # with loading, without imports


@dataclass(frozen=True)
class Task:
    """What a process is to do."""

    features: Path
    recipe: Recipe
    work: Path
    device: str


def measure_start(model: str, features: Path, work: Path, device: str, repeats: int) -> StartResult:
    """`fusion-train` in a new process, ended after its first step."""
    seconds = []
    for number in range(repeats):
        seconds.append(first_step(model, features, work / "started", device))
        say(f"{model}, start to first step, repeat {number + 1}: {seconds[-1]:.2f} s")
    return StartResult(model, len(read_features(features).utterances), spread(seconds))


def first_step(model: str, features: Path, output: Path, device: str, program: str = FIRST_STEP) -> float:
    """Seconds from the start of a new process to the end of its first step."""
    command = [sys.executable, "-c", program, "--features", str(features.absolute()), "--output", str(output)]
    options = ["--device", device, "--set", f"model.name={model}"]
    started = time.perf_counter()  # one clock for all processes of a system
    found = subprocess.run(
        [*command, *options],
        cwd=features.parent,  # where no params.yaml lies
        env=os.environ | environment(None),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if not found.stdout:
        raise RuntimeError(f"fusion-train ended before its first step, with exit status {found.returncode}")
    shutil.rmtree(partial_folder(output), ignore_errors=True)
    output.with_name(f"{output.name}.lock").unlink(missing_ok=True)  # of a process that ended amid its work
    return float(found.stdout.splitlines()[0]) - started


def measure_seeds(task: Task) -> SeedsResult:
    """All seeds of the recipe until none becomes better."""
    found = in_own_process(run_seeds, task)
    say(f"{found.seeds} seeds of {found.model}: {found.seconds:.1f} s")
    return found


def run_seeds(task: Task) -> SeedsResult:
    """Train them into a folder that is deleted again."""
    output = task.work / "seeds"
    for left in (output, partial_folder(output)):
        shutil.rmtree(left, ignore_errors=True)
    started = time.perf_counter()
    trained = train_seeds(read_features(task.features), task.recipe, output, torch.device(task.device))
    seconds = time.perf_counter() - started
    metric = task.recipe.train.metric
    epochs = sum(len(json.loads(path.read_text(encoding="utf-8"))) for path in output.glob("*/history.json"))
    shutil.rmtree(output)
    scores = [seed.validation["fused"][metric] for seed in trained]
    return SeedsResult(task.recipe.model.name, len(trained), epochs, seconds, sum(scores) / len(scores))


def measure_study(task: Task) -> StudyResult:
    """HBAF and `STUDY`, with the seeds and epochs of the recipe."""
    found = in_own_process(run_study, task)
    say(f"{found.variants} variants x {found.seeds} seeds: {found.seconds:.1f} s")
    return found


def run_study(task: Task) -> StudyResult:
    """Train them into a folder that is deleted again."""
    params, output = task.work / "study.yaml", task.work / "study"
    sections = {name: getattr(task.recipe, name).model_dump(mode="json") for name in ("model", "loss", "train")}
    content = sections | {"ablations": {name: dict(row) for name, row in STUDY.items()}}
    params.write_text(yaml.safe_dump(content), encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    variants = read_variants(params)
    started = time.perf_counter()
    done = ablate(read_features(task.features), variants, EvaluateParams(), output, torch.device(task.device))
    seconds = time.perf_counter() - started
    shutil.rmtree(output)
    epochs = sum(result.epochs for row in done.results.values() for result in row)
    return StudyResult(len(variants), len(done.seeds), epochs, seconds)
