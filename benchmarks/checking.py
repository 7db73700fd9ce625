"""What it costs that every utterance is compared with its checksum before its first use.

    python benchmarks/checking.py --work /tmp/checking

Features are those of `benchmarks/training.py`, about 800 MB by default. Measured with and without the comparison, in
turns, the files in the disk's cache: epochs of a training run in seconds of a core, the first and the median of the
others, with features that are resident and features that stay in the file; with `--start`, which takes minutes more,
also from the start of `fusion-train` to the end of its first step.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from measures.planted import write_planted
from measures.spoken import of_share, read_spoken
from measures.timing import say, spread
from measures.trainer import train_ours
from measures.training_studies import FIRST_STEP, first_step
from training import SHARED

from fusion.params import read_recipe
from pipeline.store import read_features

UNCHECKED = "from pipeline.store.guard import Guard\nGuard.check = lambda *_: None\n"  # before the command


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the features; they stay there")
    parser.add_argument("--meld", type=Path, default=SHARED / "meld", help="folder with its CSVs")
    parser.add_argument("--share", type=float, default=0.22, help="of the conversations")
    parser.add_argument("--model", default="concat", help="the faster it is, the more the comparison weighs")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--start", action="store_true", help="measure the start of fusion-train, too")
    options = parser.parse_args(arguments)
    path = write_planted(of_share(read_spoken(options.meld), options.share), options.work)
    size = sum(part.size for part in (read_features(path).audio, read_features(path).text) if part)
    print(f"{size / 1e6:.0f} MB, model {options.model}\n\n| | checked, s | not checked, s | × |\n|---|--:|--:|--:|")
    if options.start:
        programs = (FIRST_STEP, UNCHECKED + FIRST_STEP)
        started = [
            [first_step(options.model, path, options.work / "started", "cpu", program) for program in programs]
            for _ in range(options.repeats)
        ]
        _print("start of `fusion-train` to its first step", started)
    for where, resident in (("resident", True), ("in the file", False)):
        runs = [
            [_epochs(path, options.model, options.epochs, resident, guarded) for guarded in (True, False)]
            for _ in range(options.repeats)
        ]
        _print(f"first epoch, {where}", [[epochs[0] for epochs in pair] for pair in runs])
        _print(f"a later epoch, {where}", [[statistics.median(epochs[1:]) for epochs in pair] for pair in runs])


def _epochs(path: Path, model: str, epochs: int, resident: bool, guarded: bool) -> list[float]:
    """Seconds of a core of each epoch, validation included."""
    features = read_features(path)
    if not guarded:
        parts = {name: replace(getattr(features, name), guard=None) for name in ("audio", "text")}
        features = replace(features, **parts)
    limits = [f"train.epochs={epochs}", f"train.patience={epochs}", "model.linear_path=false"]
    recipe = read_recipe(None, [f"model.name={model}", *limits])
    found = train_ours(features, recipe, 0, "cpu", {"resident": resident}, False, time.process_time)
    say(f"{'checked' if guarded else 'not checked'}, {'resident' if resident else 'in the file'}")
    return [epoch.seconds for epoch in found.epochs]


def _print(what: str, pairs: Sequence[Sequence[float]]) -> None:
    checked, unchecked = zip(*pairs, strict=True)
    ratios = [one / other for one, other in pairs]
    print(f"| {what} | {spread(checked)} | {spread(unchecked)} | {spread(ratios)} |", flush=True)


if __name__ == "__main__":
    main()
