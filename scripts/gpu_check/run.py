"""Run the checks in their order, each in a process of its own, and report.

Exit status: 0 all passed; 1 something failed; 3 nothing failed, but time ran out before all was run.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_check.results import CHECK_ENDED, Results, Row, counts, write_report
from gpu_check.running import EndedEarlyError, Method, in_process
from pipeline.settings import settle_libraries

CHECK_NAMES = (
    "machine", "models", "encoders", "demo", "agreement", "repeats", "memory", "waits", "graphs", "training",
    "extraction",
)  # fmt: skip
SHORTEST = 5.0  # seconds that a check needs at least, to be begun


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, check, report."""
    options = _parse(arguments)
    settle_libraries()
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking whether there is a GPU must not start it here
    deadline = time.monotonic() + options.seconds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    options.output.mkdir(parents=True, exist_ok=True)
    results = Results(options.output / "results.jsonl")
    results.path.unlink(missing_ok=True)
    modules: set[str] = set()
    try:
        with tempfile.TemporaryDirectory(prefix="gpu-check-", dir=options.work) as work:
            _run(options, results, Path(work), deadline, modules)
    finally:
        facts = {"size": "toy" if options.dry_run else "full", "modules": sorted(modules)}
        print(write_report(results, options.output, facts), end="")
        found = counts(results.rows())
        print(", ".join(f"{count} {status}" for status, count in found.items()), file=sys.stderr)
    return 1 if found["failed"] else 3 if found["not run"] and not options.dry_run else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu-check-results"), help="folder for the results")
    parser.add_argument("--kit", type=Path, help="folder that --prepare made")
    parser.add_argument("--features", type=Path, help="data/feats.h5 of the demo, where the kit has no demo.npz")
    parser.add_argument("--seconds", type=float, default=480.0, help="after which no more is run")
    parser.add_argument("--checks", nargs="+", choices=CHECK_NAMES, default=CHECK_NAMES)
    parser.add_argument("--dry-run", action="store_true", help="at toy size on the processor")
    parser.add_argument("--work", type=Path, help="folder for files of the run, up to 6 GB; they are removed")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace, results: Results, work: Path, deadline: float, modules: set[str]) -> None:
    from gpu_check.checks import CHECKS  # loads every library once, for all processes that are forked
    from gpu_check.context import Context
    from gpu_check.sizes import FULL, TOY

    _load_what_is_loaded_late()
    here: tuple[Method, str] = ("fork", "cpu")
    method, device = here if options.dry_run else _find_device(results)
    size = TOY if options.dry_run else FULL
    context = Context(device, size, work, options.kit, options.features, results, method)
    for name in options.checks:
        left, check = deadline - time.monotonic(), CHECKS[name]
        if device == "none":
            continue
        if left < SHORTEST:
            results.add(Row(name, CHECK_ENDED, "not run", note="no time was left"))
            continue
        print(f"{name} ..", file=sys.stderr, flush=True)
        allowed = min(left, check.seconds if not options.dry_run else left)
        until = replace(context.of(name), deadline=time.monotonic() + allowed)
        _run_check(name, until, allowed, cut=allowed == left, modules=modules)


def _run_check(name: str, context: Any, seconds: float, cut: bool, modules: set[str]) -> None:
    started = time.monotonic()
    try:
        modules |= in_process(context.method, seconds, check_here, name, context)
        row = Row(name, CHECK_ENDED, "measured")
    except EndedEarlyError as error:
        out_of_time = cut and "stopped after" in str(error)
        row = Row(name, CHECK_ENDED, "not run" if out_of_time else "failed", note=str(error))
    context.results.add(replace(row, values={"seconds": round(time.monotonic() - started, 1)}))


def check_here(name: str, context: Any) -> set[str]:
    """The check itself, in this process; returns the packages that are loaded behind it."""
    from gpu_check.checks import CHECKS

    CHECKS[name].run(context)
    return {module.partition(".")[0] for module in sys.modules}


def _load_what_is_loaded_late() -> None:
    """Or every process would load it anew."""
    import importlib

    import transformers

    transformers.utils.logging.disable_progress_bar()
    for name in ("AutoConfig", "AutoModel", "AutoTokenizer", "Wav2Vec2Model", "HubertModel", "WavLMModel"):
        getattr(transformers, name)
    for name in ("Data2VecAudioModel", "BertModel", "BertTokenizer", "Wav2Vec2FeatureExtractor"):
        getattr(transformers, name)
    for name in ("torch._dynamo", "torchaudio", "scipy.stats", "scipy.optimize", "sklearn.metrics"):
        importlib.import_module(name)


def _find_device(results: Results) -> tuple[Method, str]:
    """How processes are started that can use the GPU; `none` where none can, which is a failure."""
    methods: tuple[Method, ...] = ("fork", "spawn")
    for method in methods:
        try:
            name = in_process(method, 60, _touch_gpu)
        except EndedEarlyError as error:
            reason = str(error).splitlines()[-1]
            continue
        results.add(Row("machine", "a GPU is there", "passed", {"gpu": name, "processes": method}))
        return method, "cuda"
    results.add(Row("machine", "a GPU is there", "failed", note=f"{reason}; --dry-run needs none"))
    return "fork", "none"


def _touch_gpu() -> str:
    import torch

    torch.ones(8, device="cuda").sum().item()
    return torch.cuda.get_device_name()
