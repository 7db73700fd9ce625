"""Disturbs every writing command on a tiny project, runs it again, and compares what it wrote with an undisturbed run.

    python scripts/chaos.py --minutes 20 --seed 7            # exit status 1 where there was a fault
    python scripts/chaos.py --minutes 60 --only train        # one command; --only is repeatable
    python scripts/chaos.py --minutes 30 --repro             # kills of a whole `dvc repro`, each a minute or more

A try copies the project, takes the command's output away or puts one of other parameters there, and disturbs a run:

    kill, terminate, hang-up, interrupt    a signal at a random moment (SIGKILL, SIGTERM, SIGHUP, SIGINT)
    stop          SIGSTOP for a while, then SIGCONT: the run must go on
    full          no file may grow beyond a random size, as on a disk that is full (RLIMIT_FSIZE)
    flip, cut     one bit of an input, or its end, is lost: refused in a line, or of no consequence
    leftover      as kill, then a bit of what was left behind is flipped before the next run
    race          two runs at once: one is refused, or both are done

Whatever happens, the older output or the new one is there, whole; an error is one line, with exit status 2; and after
one more run every byte is that of an undisturbed run, and no other file is there. The choice of tries depends on the
seed alone; how many there are, and where in its work a signal meets a process, on the machine.
"""

import argparse
import csv
import hashlib
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).parents[1]
CONVERSATIONS = {"train": 4, "validation": 2, "test": 2}
PARAMS: dict[str, dict[str, Any]] = {
    "dataset": {"root": str(ROOT / "data" / "demo")},
    "model": {"dim": 8, "heads": 2, "audio_frames": 8},
    "train": {"epochs": 3, "seeds": [0, 1], "patience": 3},
    "evaluate": {
        "resamples": 20, "permutations": 20, "missing": [0.5], "degrade": {"word_errors": [0.3], "noise": []},
    },
    "text": {"finetune": {"learning_rate": 0.001}},
    "folds": {"count": 2},
    "ablations": {"no gate": {"model.hbaf.gate": False}},
}  # fmt: skip
LIBRARIES = ("torch._dynamo", "sklearn.metrics", "transformers.trainer", "transformers.models.bert", "altair",
             "vl_convert", "torchaudio", "scipy.stats", "scipy.optimize", "accelerate", "tokenizers")  # fmt: skip
RESULTS = tuple(f"results/{name}" for name in ("metrics.json", "details.json", "predictions.csv", "confusion.csv",
                                               "curves.csv", "table.md", "robustness"))  # fmt: skip
SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "hang-up": signal.SIGHUP, "interrupt": signal.SIGINT}
KINDS = (*SIGNALS, "stop", "full", "flip", "cut", "leftover", "race")
PATIENCE = 300.0  # seconds that a run may take


@dataclass(frozen=True)
class Command:
    """A command that writes."""

    name: str
    arguments: str
    other: str  # arguments that make another output
    outputs: tuple[str, ...]  # there as they were or as they will be, whatever happens
    inputs: tuple[str, ...] = ()  # that have hashes
    kept: tuple[str, ...] = ()  # what may stay for the next run, and differs with time
    overwrite: bool = True
    together: bool = True  # whether the outputs appear at once


FEATURES = "--features data/feats.h5"
COMMANDS = {
    one.name.partition("-")[2]: one
    for one in (
        Command("pipeline-prepare", "", "--set dataset.split=conversation",
                ("data/manifest.jsonl", "data/recordings.jsonl", "data/texts.jsonl"), overwrite=False, together=False),
        Command("pipeline-audio", "--manifest data/recordings.jsonl --device cpu", "--set audio.dtype=float32",
                ("data/audio.h5",)),
        Command("pipeline-text", "--manifest data/texts.jsonl --device cpu", "--set text.dtype=float32",
                ("data/text.h5",)),
        Command("pipeline-degrade", "--device cpu", "--set evaluate.degrade.seed=1", ("data/degraded",),
                kept=("data/degraded.kept",)),
        Command("pipeline-finetune", "--modality text --set text.finetune.epochs=2 --output tuned --device cpu",
                "--set text.finetune.epochs=1", ("tuned",)),
        Command("pipeline-join", "", "--copy", ("data/feats.h5",), ("data/audio.h5", "data/text.h5")),
        Command("pipeline-import", "--table turns.csv --text rows.npz --output imported.h5",
                "--set import.dtype=float32", ("imported.h5",)),
        Command("fusion-train", f"{FEATURES} --device cpu --jobs 2", "--set train.epochs=2", ("models/hbaf",),
                ("data/feats.h5", "data/audio.h5", "data/text.h5")),
        Command("fusion-evaluate", f"{FEATURES} --device cpu", "--set evaluate.resamples=10", RESULTS,
                ("data/feats.h5", "data/audio.h5", "models/hbaf", "data/degraded")),
        Command("fusion-report", f"{FEATURES} --device cpu", "--split train", ("results/report",),
                ("data/text.h5", "models/hbaf", "results"), overwrite=False),
        Command("fusion-ablate", f"{FEATURES} --device cpu --jobs 2 --output tables", "--set train.epochs=2",
                tuple(f"tables/ablations.{kind}" for kind in ("csv", "tex", "svg", "png", "md", "json")),
                ("data/audio.h5",), kept=("tables/ablations",)),
        Command("fusion-folds", f"{FEATURES} --device cpu --jobs 2 --output folds", "--set train.epochs=2",
                tuple(f"folds/ablations.{kind}" for kind in ("csv", "tex", "svg", "png", "md", "json")),
                ("data/text.h5",), kept=("folds/ablations",)),
        Command("fusion-export", "models/hbaf/seed-0 --output shared --results results", "models/hbaf/seed-1",
                ("shared",), ("models/hbaf/seed-0",)),
        Command("fusion-predict", f"--model models/hbaf {FEATURES} --split test --output said.csv --device cpu",
                "--split train", ("said.csv",), ("models/hbaf", "data/feats.h5", "data/audio.h5")),
    )
}  # fmt: skip


@dataclass
class Ended:
    """How a process ended."""

    status: int  # negative: the signal
    stderr: str
    seconds: float

    def said(self) -> str:
        """For a report of a fault."""
        return f"status {self.status}, stderr: {self.stderr[-2000:]}"


class Running:
    """A command in a fork of this process, which has its libraries loaded."""

    def __init__(self, project: Path, words: Sequence[str], limit: int | None = None) -> None:
        self.began = time.monotonic()
        self.stderr, written = os.pipe()  # no file, whose size would be limited, too
        self.process = os.fork()
        if self.process == 0:
            _be(project, words, written, limit)
        os.close(written)
        os.set_blocking(self.stderr, False)

    def signal(self, number: int, all_of_them: bool = False) -> None:
        """Send a signal; to all that it started, too, as a terminal does."""
        with suppress(ProcessLookupError):
            (os.killpg if all_of_them else os.kill)(self.process, number)

    def wait(self) -> Ended:
        """Until it and all that it started are gone."""
        status: int | None = None
        while status is None:
            found, word = os.waitpid(self.process, os.WNOHANG)
            status = os.waitstatus_to_exitcode(word) if found else None
            if status is None and time.monotonic() - self.began > PATIENCE:
                self.signal(signal.SIGKILL, all_of_them=True)
            time.sleep(0.002)
        seconds = time.monotonic() - self.began
        for _ in range(1000):  # what a killed process started ends itself
            try:
                os.killpg(self.process, 0)
            except ProcessLookupError:
                break
            time.sleep(0.01)
        said = b""
        with suppress(BlockingIOError):
            while block := os.read(self.stderr, 1 << 16):
                said += block
        os.close(self.stderr)
        return Ended(status, said.decode(errors="replace"), seconds)


def _be(project: Path, words: Sequence[str], stderr: int, limit: int | None) -> None:
    """Be the command; does not return."""
    status: object = 1
    try:
        os.setsid()
        os.dup2(stderr, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        for number in SIGNALS.values():
            if number != signal.SIGKILL:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.chdir(project)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        package, name = words[0].split("-")
        sys.argv = list(words)
        getattr(import_module(f"{package}.cli"), f"{name}_app")()
        status = 0
    except SystemExit as done:
        status = done.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


def words_of(command: Command, other: bool = False) -> list[str]:
    """Its command line; `other`: that makes another output of the same name."""
    words = command.arguments.split()
    if other:
        given = command.other.split()
        if given[0] in words:  # the option is given with another value
            words[words.index(given[0]) + 1] = given[1]
        elif command.name == "fusion-export":
            words[0] = given[0]
        else:
            words += given
    return [command.name, *words, *(["--overwrite"] if command.overwrite else [])]


def files_in(project: Path, places: Sequence[str]) -> Iterator[Path]:
    for place in places:
        path = project / place
        yield from (one for one in sorted(path.rglob("*")) if one.is_file()) if path.is_dir() else [path]


def look(project: Path, places: Sequence[str]) -> dict[str, str]:
    """Hashes of the files there are, by name."""
    return {path.relative_to(project).as_posix(): _hash(path) for path in files_in(project, places) if path.is_file()}


def _hash(path: Path) -> str:
    """Of what does not depend on the clock: training takes other seconds each time, and tables say how many."""
    content = path.read_bytes()
    if path.name == "ablations.csv":
        rows = [row[:-1] for row in csv.reader(io.StringIO(content.decode()))]
        content = "\n".join(map(str, rows)).encode()
    elif path.name in ("ablations.md", "ablations.json"):
        content = b""
    return hashlib.sha256(content).hexdigest()


def remove(project: Path, places: Sequence[str]) -> None:
    for place in places:
        path = project / place
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@dataclass
class Whole:
    """The project with all that undisturbed runs made, and their outputs with other parameters."""

    folder: Path
    older: dict[str, Path] = field(default_factory=dict)  # by command
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def project(self) -> Path:
        """Every command's output."""
        return self.folder / "whole"


def make_whole(folder: Path) -> Whole:
    """Run every command without a disturbance."""
    whole = Whole(folder)
    _make_project(whole.project)
    for name, command in COMMANDS.items():
        whole.seconds[name] = _succeed(Running(whole.project, words_of(command)), command).seconds
        if name == "text":
            _write_rows(whole.project)
    return whole


def older_output(whole: Whole, name: str) -> Path:
    """The project with the output that the command makes with other parameters; made when it is first asked for."""
    command = COMMANDS[name]
    if name not in whole.older:
        project = whole.folder / f"older-{name}"
        shutil.copytree(whole.project, project, symlinks=True)
        _succeed(Running(project, words_of(command, other=True)), command)
        if look(project, command.outputs) == look(whole.project, command.outputs):
            raise AssertionError(f"{name}: the other parameters make no other output")
        whole.older[name] = project
    return whole.older[name]


def _succeed(run: Running, command: Command) -> Ended:
    ended = run.wait()
    if ended.status != 0:
        raise RuntimeError(f"{command.name} does not even run undisturbed: {ended.said()}")
    return ended


def _make_project(project: Path) -> None:
    """A params.yaml and a table of a few conversations of the demo."""
    project.mkdir(parents=True)
    with (ROOT / "data" / "demo" / "utterances.csv").open(encoding="utf-8", newline="") as file:
        rows = [{"id": f"{row['conversation']}-{row['turn']}", **row} for row in csv.DictReader(file)]
    chosen = {
        name
        for split, count in CONVERSATIONS.items()
        for name in sorted({row["conversation"] for row in rows if row["split"] == split})[:count]
    }
    with (project / "turns.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row for row in rows if row["conversation"] in chosen)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for section, values in PARAMS.items():
        for key, value in values.items():
            before = params[section].get(key)
            params[section][key] = before | value if isinstance(before, dict) and isinstance(value, dict) else value
    params["ablations"] = PARAMS["ablations"]
    params["dataset"]["table"] = str(project.parent / "turns.csv")
    shutil.copy(project / "turns.csv", project.parent / "turns.csv")
    (project / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def _write_rows(project: Path) -> None:
    """Features of others, for `pipeline-import`: random ones."""
    generator = np.random.default_rng(0)
    with (project / "turns.csv").open(encoding="utf-8", newline="") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    np.savez(project / "rows.npz", **{name: generator.normal(size=(3, 5)).astype(np.float16) for name in ids})  # type: ignore[arg-type]


class FaultError(Exception):
    """Something that must not happen."""


def attempt(whole: Whole, name: str, kind: str, chance: random.Random) -> str:
    """One try; returns its outcome.

    Raises:
        FaultError: what was found.
    """
    command, project, over = COMMANDS[name], whole.folder / "try", chance.random() < 0.5
    shutil.rmtree(project, ignore_errors=True)
    shutil.copytree(older_output(whole, name) if over else whole.project, project, symlinks=True)
    if not over:
        remove(project, [*command.outputs, *command.kept])
    before, after = look(project, command.outputs), look(whole.project, command.outputs)
    moment, share = chance.random() * whole.seconds[name] * 1.1, chance.random()
    words, outcome = words_of(command), ""
    if kind in ("flip", "cut"):
        return _damaged(whole, project, command, kind, chance)
    if kind == "race":
        first, second = Running(project, words), Running(project, words)
        time.sleep(moment / 10)
        ended = [first.wait(), second.wait()]
        for one in ended:
            _check_end(one, (0, 2))
        busy = [one for one in ended if one.status == 2]
        if len(busy) == 2 or any("another process is writing it" not in one.stderr for one in busy):
            raise FaultError(f"two at once: {' / '.join(one.said() for one in ended)}")
        outcome = "one refused" if busy else "both done"
    elif kind == "full":
        largest = max((path.stat().st_size for path in files_in(whole.project, command.outputs)), default=1)
        ended = [Running(project, words, limit=int(largest**share)).wait()]
        _check_end(ended[0], (0, 2))
        outcome = "refused" if ended[0].status else "it was enough"
    else:
        run = Running(project, words)
        time.sleep(moment)
        if kind == "stop":
            run.signal(signal.SIGSTOP, all_of_them=True)
            time.sleep(0.2 * share)
            run.signal(signal.SIGCONT, all_of_them=True)
            _check_end(run.wait(), (0,))
            outcome = "went on"
        else:
            number = SIGNALS.get(kind, signal.SIGKILL)
            run.signal(number, all_of_them=number in (signal.SIGHUP, signal.SIGINT))
            one = run.wait()
            _check_end(one, (0, -number, 130) if number == signal.SIGINT else (0, -number))
            outcome = "ended" if one.status else "was done before"
    now = look(project, command.outputs)
    if command.together and now not in (before, after) and not any(project.rglob("*.new")):
        raise FaultError(f"neither the older output nor the new one is there: {_differ(now, before, after)}")
    if kind == "leftover":
        outcome += ", " + _spoil_leftover(whole, project, chance)
    _run_again(whole, project, command)
    return outcome


def _damaged(whole: Whole, project: Path, command: Command, kind: str, chance: random.Random) -> str:
    """Spoil an input, run, put it back, run again."""
    paths = [path for path in files_in(project, command.inputs) if path.stat().st_size and path.suffix != ".md"]
    path = chance.choice(paths)
    content = path.read_bytes()
    _spoil(path, kind, chance)
    ended = Running(project, words_of(command)).wait()
    where = path.relative_to(project)
    try:
        _check_end(ended, (0, 2))
    except FaultError as error:
        raise FaultError(f"{kind} of {where}: {error}") from None
    if ended.status == 0 and look(project, command.outputs) != look(whole.project, command.outputs):
        raise FaultError(f"{kind} of {where}: used in silence")
    path.write_bytes(content)
    _run_again(whole, project, command)
    return "refused" if ended.status else "of no consequence"


def _spoil(path: Path, kind: str, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    if kind == "cut":
        del content[place:]
    else:
        content[place] ^= 1 << chance.randrange(8)
    path.unlink()  # a hard link elsewhere stays as it is
    path.write_bytes(content)


def _spoil_leftover(whole: Whole, project: Path, chance: random.Random) -> str:
    """Flip a bit in a file that no undisturbed run has; its kind says what the next run makes of it."""
    known = look(whole.project, ["."])
    left = [path for path in files_in(project, ["."]) if path.relative_to(project).as_posix() not in known]
    left = [path for path in left if path.stat().st_size and path.suffix != ".lock"]
    if not left:
        return "nothing left behind"
    path = chance.choice(left)
    _spoil(path, "flip", chance)
    return f"flipped in {path.suffix or path.name}"


def _run_again(whole: Whole, project: Path, command: Command) -> None:
    """The undisturbed run after it, which must end as if nothing had happened."""
    ended = Running(project, words_of(command)).wait()
    if ended.status != 0:
        raise FaultError(f"the next run fails: {ended.said()}")
    found, expected = look(project, command.outputs), look(whole.project, command.outputs)
    if found != expected:
        raise FaultError(f"after the next run: {_differ(found, expected)}")
    left = look(project, ["."]).keys() - look(whole.project, ["."]).keys()
    if left := {path for path in left if not path.startswith(command.kept)}:
        raise FaultError(f"left behind: {', '.join(sorted(left)[:5])}")


def _check_end(ended: Ended, accepted: Sequence[int]) -> None:
    if ended.status not in accepted or "Traceback" in ended.stderr:
        raise FaultError(ended.said())
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    if ended.status == 2 and len(errors) != 1:
        raise FaultError(f"not one line: {ended.said()}")


def _differ(found: dict[str, str], *others: dict[str, str]) -> str:
    return " / ".join(
        ", ".join(sorted(name for name in found.keys() | one.keys() if found.get(name) != one.get(name))[:5]) or "same"
        for one in others
    )


def repro(whole: Whole, chance: random.Random) -> str:
    """Kill `dvc repro` at a random moment, up to its last stage, and run it again."""
    project = whole.folder / "repro"
    stages = ["metrics.json", "predictions.csv", "table.md", "details.json", "report/index.html"]
    places = [f"results/{name}" for name in stages] + ["models/hbaf", "data/feats.h5", "data/audio.h5", "data/degraded"]
    fresh = not project.exists()
    if fresh:
        _make_dvc_project(whole, project)
    began = time.monotonic()
    if "repro" not in whole.seconds:
        _repro(project)
        whole.seconds["repro"] = time.monotonic() - began
        whole.older["repro"] = Path(shutil.copytree(project, whole.folder / "reproduced", symlinks=True))
    expected = look(whole.older["repro"], places)
    remove(project, ["data/manifest.jsonl", "models", "results", "data/degraded", "data/degraded.kept", "dvc.lock"])
    remove(project, [".dvc/cache", ".dvc/tmp", *(f"data/{name}.h5" for name in ("audio", "text", "feats"))])
    process = subprocess.Popen(["dvc", "repro"], cwd=project, env=_environment(project), start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    time.sleep(chance.random() * whole.seconds["repro"])
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _repro(project)
    if (found := look(project, places)) != expected:
        raise FaultError(f"after a killed dvc repro: {_differ(found, expected)}")
    return "ended"


def _make_dvc_project(whole: Whole, project: Path) -> None:
    for name in ("pipeline", "fusion"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / ".dvc", project / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, project / name)
    shutil.copy(whole.project / "params.yaml", project / "params.yaml")
    identity = ["-c", "user.name=c", "-c", "user.email=c@example.org"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=project, check=True)


def _repro(project: Path) -> None:
    done = subprocess.run(["dvc", "repro"], cwd=project, env=_environment(project), capture_output=True, text=True,
                          check=False)  # fmt: skip
    if done.returncode != 0:
        raise FaultError(f"dvc repro: {done.stdout[-500:]} {done.stderr[-1500:]}")


def _environment(project: Path) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Try until the time is over; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=COMMANDS, help="a command; repeatable, all by default")
    parser.add_argument("--kind", action="append", choices=KINDS, help="a disturbance; repeatable, all by default")
    parser.add_argument("--repro", action="store_true", help="kill dvc repro instead")
    options = parser.parse_args(arguments)
    os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    for name in (*LIBRARIES, "pipeline.cli", "fusion.cli"):
        import_module(name)
    import_module("torch").set_num_threads(1)
    chance, found, faults = random.Random(options.seed), Counter[tuple[str, str, str]](), list[str]()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        whole = Whole(Path(folder)) if options.repro else make_whole(Path(folder))
        if options.repro:
            _make_project(whole.project)
        until = time.monotonic() + 60 * options.minutes
        while time.monotonic() < until:
            name = "dvc repro" if options.repro else chance.choice(options.only or list(COMMANDS))
            kind = "kill" if options.repro else chance.choice(options.kind or kinds_for(COMMANDS[name]))
            try:
                outcome = repro(whole, chance) if options.repro else attempt(whole, name, kind, chance)
            except FaultError as error:
                outcome = "FAULT"
                faults.append(f"{name}, {kind}, try {found.total() + 1}: {error}")
                print(faults[-1], file=sys.stderr, flush=True)
            found[name, kind, outcome] += 1
    print("\n".join(table(found)))
    print(f"{found.total()} tries, seed {options.seed}: {len(faults)} faults")
    return int(bool(faults))


def kinds_for(command: Command) -> list[str]:
    """Inputs without hashes, such as a table, are the user's own: other content is other work."""
    return [kind for kind in KINDS if command.inputs or kind not in ("flip", "cut")]


def table(found: Counter[tuple[str, str, str]]) -> list[str]:
    """A row for each command and disturbance, with what came of it."""
    lines = ["| command | disturbance | tries | outcomes |", "|---|---|---:|---|"]
    for name, kind in sorted({key[:2] for key in found}):
        outcomes = {key[2]: count for key, count in found.items() if key[:2] == (name, kind)}
        said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        lines.append(f"| {name} | {kind} | {sum(outcomes.values())} | {said} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
