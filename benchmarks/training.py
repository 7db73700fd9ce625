"""How fast cached features become trained models: this trainer beside what most projects do, in one run.

    python benchmarks/training.py --work /tmp/training --output /tmp/training/results.json
    python benchmarks/training.py --work /tmp/training --share 1 --device cuda --parts models growth start seeds study

Features are made (`measures/planted.py`) to MELD's real lengths, conversations, splits and labels, 768 wide in float16,
from its three CSVs and `clips.csv`, with a signal planted in them; `--share` of its conversations. They stay in the
work folder. Parts:

- models: the same model, loss, settings and batches of `train.conversations` conversations, on average: (a) the usual
  way (`measures/usual.py`: HDF5 opened for every item, padding collate, random batches, float32), which takes audio as
  it is stored; the same with this project's pooling; (b) this trainer, memory-mapped; (c) this trainer, resident, alone
  and with a run on each core, as `fusion-train` does with several seeds: the time of an epoch is then a core's part of
  the clock's. An epoch is learning and validation, without early stopping. Each run has a process of its own, with
  torch's threads for (a) and the one of `fusion-train` else; seeds are the repeats, ways take turns within each. Time
  to a score, the one that the first way has after its last epoch, counts from before loading.
- growth: 1/4, 1/2 and all of what `--share` leaves, (c).
- start: from the start of `fusion-train` to the end of its first step.
- operations: how many operations a step asks for on a GPU, by phase, counted without one (`measures/operations.py`).
- every, on request: an epoch of each model of the registry (c), in seconds of one core's processor, which other
  programs on the machine don't count in.
- seeds, on request: five seeds of the first model with `train_seeds`, until none becomes better.
- study, on request: HBAF and eleven variants of it with `ablate`, `--epochs` each, with five seeds.

The defaults take a few minutes on two quiet cores, in which no model learns much: scores are worth comparing from
`--share 1/4 --epochs 15` on.

Every parameter has the default of `fusion-train` where `--set` gives no other; `--epochs` are those of a stage. Printed
are the tables of the README; `--output` takes every number as JSON. Memory is of its own: what a process maps of files,
which the system takes back at need, stands beside it.
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

import torch
from measures.machine import describe
from measures.operations import measure_operations
from measures.planted import DIM, write_planted
from measures.spoken import Spoken, of_share, read_spoken
from measures.training_report import CorpusSize, TrainingResults, training_markdown
from measures.training_runs import OTHERS, WAYS, measure_epochs, measure_growth, measure_models
from measures.training_studies import Task, measure_seeds, measure_start, measure_study

from fusion.params import MODEL_NAMES, Recipe, read_recipe
from fusion.runtime import pick_device
from pipeline.store import read_features

PARTS = ("models", "growth", "start", "operations", "every", "seeds", "study")
MODELS = ("hbaf", "hcam", "concat")
GROWTH = (0.25, 0.5, 1.0)
SHARED = Path(os.environ.get("ERC_SHARED", Path(__file__).parents[2] / "shared")) / "data"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure the parts, print."""
    options = _parse(arguments)
    device = str(pick_device(options.device))
    spoken = read_spoken(options.meld)
    corpora = {part: of_share(spoken, options.share * part) for part in GROWTH}
    write = partial(write_planted, work=options.work, dim=options.dim)
    features = write(corpora[1.0])
    recipe = partial(_recipe, options.overrides, options.epochs)
    results = TrainingResults(
        machine=describe(device),
        corpus=_size(corpora[1.0], options.share, options.dim),
        seeds=options.seeds,
        repeats=options.repeats,
        workers=options.workers,
        threads=_threads(),
    )
    if "models" in options.parts:
        results.models = measure_models(
            options.models, options.ways, features, recipe, device, options.seeds, options.workers
        )
    if "growth" in options.parts:
        parts = {part: write(corpus) for part, corpus in corpora.items()}
        results.growth = measure_growth(options.models, parts, recipe, device, options.repeats)
    if "start" in options.parts:
        results.start = [
            measure_start(model, features, options.work, device, options.repeats) for model in options.models
        ]
    if "operations" in options.parts:
        counted = read_features(features)
        results.operations = [
            step for model in options.models for step in measure_operations(model, counted, recipe(model))
        ]
    if "every" in options.parts:
        results.every = measure_epochs(MODEL_NAMES, features, recipe, device, options.repeats)
    seeds = f"train.seeds=[{', '.join(map(str, range(options.study_seeds)))}]"
    if "seeds" in options.parts:
        converging = read_recipe(None, [*options.overrides, f"model.name={options.models[0]}", seeds])
        results.convergence = measure_seeds(Task(features, converging, options.work, device))
    if "study" in options.parts:
        study = _recipe([*options.overrides, seeds], options.epochs, "hbaf")
        results.study = measure_study(Task(features, study, options.work, device))
    if options.output:
        options.output.write_text(json.dumps(dataclasses.asdict(results), indent=2) + "\n", encoding="utf-8")
    print(training_markdown(results), end="")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the features; they stay there")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS[:4]))
    parser.add_argument("--models", nargs="+", choices=MODEL_NAMES, default=list(MODELS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="to train, compared with the first")
    parser.add_argument(
        "--meld", type=Path, default=SHARED / "meld", help="folder with its CSVs (ERC_SHARED/data/meld)"
    )
    parser.add_argument("--share", type=_share, default=1 / 16, help="of the conversations, such as 1/8")
    parser.add_argument("--dim", type=int, default=DIM, help="width of the features")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seeds", type=int, default=3, help="repeats of part models")
    parser.add_argument("--repeats", type=int, default=2, help="of parts growth and start")
    parser.add_argument("--epochs", type=int, default=4, help="of a stage")
    parser.add_argument("--workers", type=int, default=0, help="processes that load for (a)")
    parser.add_argument("--study-seeds", type=int, default=5, help="of parts seeds and study")
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[])
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    return options


def _share(text: str) -> float:
    share = float(Fraction(text))
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return share


def _recipe(overrides: Sequence[str], epochs: int, model: str) -> Recipe:
    """That of `model`, without early stopping."""
    limits = [f"train.epochs={epochs}", f"train.patience={epochs}"]
    return read_recipe(None, [*overrides, f"model.name={model}", *limits])


def _size(spoken: Sequence[Spoken], share: float, dim: int) -> CorpusSize:
    frames, tokens = sum(one.frames for one in spoken), sum(one.tokens for one in spoken)
    conversations = len({one.record.conversation for one in spoken})
    return CorpusSize(share, len(spoken), conversations, frames, tokens, 2 * dim * (frames + tokens))


def _threads() -> dict[str, int]:
    """By variant, as `training_runs.environment` gives them."""
    ours = int(os.environ.get("OMP_NUM_THREADS", 1))
    return {name: torch.get_num_threads() if name in OTHERS else ours for name in WAYS}


if __name__ == "__main__":
    main()
