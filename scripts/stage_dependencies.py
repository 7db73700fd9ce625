"""Writes the source files that each stage of dvc.yaml depends on: the import closure of what the stage runs.

    python scripts/stage_dependencies.py            # rewrites dvc.yaml
    python scripts/stage_dependencies.py --check    # exit status 1 where it would

A room whose files a stage needs one and all is named as a folder, others file by file. Dependencies that are no source
files (data, weights, templates) stay as they stand.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.settings.closure import closure

ROOT = Path(__file__).parents[1]
DVC = ROOT / "dvc.yaml"

DECODER = "pipeline.media.decoder_process:main"  # which is started by a command
# What the commands of the stages call. Not the commands themselves, whose help decides no file, nor what works on a
# cluster, which gives the same files.
STAGES: dict[str, tuple[str, ...]] = {
    "corpus": (),  # a link, which no code decides
    "prepare": ("pipeline.preparation:prepare", "pipeline.manifest:write_manifest", DECODER),
    "finetune-audio": ("pipeline.finetuning:finetune_audio", "pipeline.finetuning:turn_off", DECODER),
    "finetune-text": ("pipeline.finetuning:finetune_text", "pipeline.finetuning:turn_off"),
    "audio": ("pipeline.extraction:extract_audio", DECODER),
    "text": ("pipeline.extraction:extract_text",),
    "degrade": ("pipeline.degradation:degrade", DECODER),
    "features": ("pipeline.join:join", "pipeline.datasets:describe_corpus"),
    "train": ("fusion.training:train_seeds", "fusion.params:read_recipe"),
    "evaluate": ("fusion.evaluation:evaluate_all", "fusion.evaluation:write_report"),
    "report": ("fusion.report:write_page",),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check dvc.yaml; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 where dvc.yaml is outdated")
    check = parser.parse_args(arguments).check
    before = DVC.read_text(encoding="utf-8")
    after = rewritten(before)
    if check:
        if before != after:
            print("dvc.yaml is outdated: run python scripts/stage_dependencies.py", file=sys.stderr)
        return int(before != after)
    DVC.write_text(after, encoding="utf-8")
    return 0


def rewritten(content: str) -> str:
    """`content` of dvc.yaml with the source files of every stage."""
    for stage, entries in STAGES.items():
        if not entries:
            continue
        pattern = re.compile(rf"(?ms)^  {re.escape(stage)}:\n.*?^    deps:\n((?:      - [^\n]*\n)+)")
        found = pattern.search(content)
        if not found:
            raise LookupError(f"dvc.yaml has no stage '{stage}' with deps")
        kept = [line.strip()[2:] for line in found[1].splitlines()]
        kept = [path for path in kept if not _is_source(path)]
        lines = "".join(f"      - {path}\n" for path in sorted({*kept, *dependencies(entries)}))
        content = content[: found.start(1)] + lines + content[found.end(1) :]
    return content


def dependencies(entries: Sequence[str]) -> list[str]:
    """Source files that the entries need, relative to the root; a room that they need as a whole by its folder."""
    files = set(closure(*entries))
    names = set()
    for path in files:
        room = path.parent
        whole = room.parent != ROOT and set(room.glob("*.py")) - {room / "__init__.py"} <= files
        names.add((room if whole else path).relative_to(ROOT).as_posix())
    return sorted(names)


def _is_source(path: str) -> bool:
    place = ROOT / path
    return path.startswith(("pipeline/", "fusion/")) and (path.endswith(".py") or any(place.glob("*.py")))


if __name__ == "__main__":
    sys.exit(main())
