"""MELD's official annotation files as one table of turns, for text-only runs of this pipeline.

    python benchmarks/meld_text.py MELD_CSV_FOLDER WORK_FOLDER TEXT_ENCODER [PAST_TURNS ..]

writes WORK_FOLDER/turns.csv and params.yaml (from benchmarks/meld_text.yaml), from which the ordinary commands do the
rest; it prints them. The folder holds train_sent_emo.csv, dev_sent_emo.csv and test_sent_emo.csv. With PAST_TURNS, such
as 0 1 3 8, each text is also read with so many turns before it, with the names of the speakers and without.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

SPLITS = {"train": "train", "dev": "validation", "test": "test"}
COLUMNS = ["conversation", "turn", "speaker", "split", "label", "text"]


def turns(folder: Path) -> list[dict[str, str]]:
    """A row for every utterance of the three splits."""
    rows = []
    for name, split in SPLITS.items():
        with (folder / f"{name}_sent_emo.csv").open(encoding="utf-8", newline="") as file:
            rows += [
                {
                    "conversation": f"{split}-{row['Dialogue_ID']}",
                    "turn": row["Utterance_ID"],
                    "speaker": row["Speaker"],
                    "split": split,
                    "label": row["Emotion"],
                    "text": row["Utterance"],
                }
                for row in csv.DictReader(file)
            ]
    return rows


def main(meld: Path, work: Path, encoder: str, past_turns: Sequence[str]) -> None:
    """Write what the commands need, and print them."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "turns.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(turns(meld))
    params = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    params["dataset"]["root"] = str(work)
    params["text"]["encoder"] = encoder
    (work / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    given = f"--params {work}/params.yaml"
    print(f"pipeline-prepare {given} --output {work}/manifest.jsonl")
    print(f"pipeline-audio {given} --manifest {work}/manifest.jsonl --output {work}/audio.h5")
    print_commands(work, given, "", "")
    for turns_before in past_turns:
        for name, speakers in (("", "false"), ("-speakers", "true")):
            if (turns_before, speakers) == ("0", "false"):
                continue  # that is the one above
            context = f" --set text.past_turns={turns_before} --set text.speakers={speakers}"
            print_commands(work, given, f"-past-{turns_before}{name}", context)


def print_commands(work: Path, given: str, name: str, context: str) -> None:
    """From the manifest to scores, in files that end in `name`."""
    parts = f"--audio {work}/audio.h5 --text {work}/text{name}.h5"
    features = f"{given} --features {work}/feats{name}.h5"
    print(f"pipeline-text {given}{context} --manifest {work}/manifest.jsonl --output {work}/text{name}.h5")
    print(f"pipeline-join {given} --manifest {work}/manifest.jsonl {parts} --output {work}/feats{name}.h5")
    for model in ("hbaf", "hcam", "text"):
        print(f"fusion-train {features} --set model.name={model} --output {work}/{model}{name}")
        places = f"--models {work}/{model}{name} --output {work}/results-{model}{name}"
        print(f"fusion-evaluate {features} {places}")


if __name__ == "__main__":
    if len(sys.argv) <= 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
