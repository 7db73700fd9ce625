"""Corpora that had no part in choosing a setting, with the shipped settings beside the linear reference.

    python benchmarks/other_corpora.py CORPORA WORK_FOLDER TEXT_ENCODER

CORPORA holds what their publishers give, one or more of these folders; the script writes tables and parameters for
each, from which the ordinary commands do the rest, and prints them.

emodb/wav: the Berlin Database of Emotional Speech, 535 recordings of ten speakers as 03a01Fa.wav (speaker 03, sentence
    a01, emotion F, version a). Log-mel frames, five folds by speaker.
emorynlp: emorynlp_train_final.csv, emorynlp_dev_final.csv and emorynlp_test_final.csv. Text alone, the official split.
iemocap: iemocap.pkl, as COSMIC publishes it: the words, labels and speakers of IEMOCAP's conversations and their split,
    which tests on the fifth session. Text alone, with the three hidden states that were chosen on MELD.
mosi: transcripts.csv, text_train.csv, text_test.csv (their first columns count lines of transcripts.csv),
    audio_train0.csv, audio_test0.csv. A vector of openSMILE's functionals a segment beside its words; 62 and 31 videos.
"""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.imports.unpickle import load as load_pickle

EMODB = {"W": "anger", "L": "boredom", "E": "disgust", "A": "fear", "F": "happiness", "T": "sadness", "N": "neutral"}
IEMOCAP = ("happy", "sad", "neutral", "angry", "excited", "frustrated")
SPLITS = {"train": "train", "dev": "validation", "test": "test"}
AUDIO = {"model.modalities": "audio"}
TEXT = {"model.modalities": "text"}


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_params(folder: Path, dataset: dict[str, Any], rows: dict[str, Any], **sections: Any) -> str:
    """The option that names the file."""
    table = {"name": "table", "table": str(folder / "turns.csv"), "root": str(folder)}
    params = {"dataset": table | dataset, **sections}
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(params | {"ablations": rows}, sort_keys=False), encoding="utf-8")
    return f"--params {path}"


def encode(given: str, folder: Path) -> list[str]:
    """The commands from recordings and words to `feats.h5`."""
    manifest, audio, text = (folder / name for name in ("manifest.jsonl", "audio.h5", "text.h5"))
    return [
        f"pipeline-prepare {given} --output {manifest}",
        f"pipeline-audio {given} --manifest {manifest} --output {audio}",
        f"pipeline-text {given} --manifest {manifest} --output {text}",
        f"pipeline-join {given} --manifest {manifest} --audio {audio} --text {text} --output {folder}/feats.h5",
    ]


def emodb(data: Path, folder: Path, encoder: str) -> list[str]:
    wav = sorted((data / "wav").glob("*.wav"))
    rows = [{"audio": path.name, "speaker": path.stem[:2], "label": EMODB[path.stem[5]]} for path in wav]
    write_table(folder / "turns.csv", rows)
    given = write_params(
        folder,
        {"split": "speaker", "root": str(data / "wav")},
        {"hbaf": {"model.name": "hbaf", **AUDIO}, "hcam": {"model.name": "hcam", **AUDIO}},
        audio={"encoder": "log-mel"},
        model={"name": "audio"},
        train={"metric": "uar"},
        folds={"hold_out": "speaker", "count": 5},
    )
    return [*encode(given, folder), study(given, folder, "fusion-folds --all")]


def emorynlp(data: Path, folder: Path, encoder: str) -> list[str]:
    rows = []
    for name, split in SPLITS.items():
        with (data / f"emorynlp_{name}_final.csv").open(encoding="utf-8", newline="") as file:
            rows += [
                {
                    "split": split,
                    "conversation": f"s{row['Season']}e{row['Episode']}c{row['Scene_ID']}",
                    "turn": row["Utterance_ID"],
                    "speaker": row["Speaker"].strip("[]'\""),
                    "label": row["Emotion"],
                    "text": row["Utterance"],
                }
                for row in csv.DictReader(file)
            ]
    write_table(folder / "turns.csv", rows)
    given = write_params(
        folder,
        {"split": "given"},
        {"text": {"model.name": "text"}, "hcam": {"model.name": "hcam", **TEXT}},
        text={"encoder": encoder},
        model={"name": "hbaf", "modalities": "text"},
    )
    return [*encode(given, folder), study(given, folder, "fusion-ablate")]


def iemocap(data: Path, folder: Path, encoder: str) -> list[str]:
    with (data / "iemocap.pkl").open("rb") as file:
        people, labels, words, *splits = load_pickle(file, str(data / "iemocap.pkl"))
    rows = [
        {
            "split": split,
            "conversation": name,
            "turn": str(turn),
            "speaker": f"{name[:5]} {people[name][turn]}",  # each session has two people of its own
            "label": IEMOCAP[labels[name][turn]],
            "text": text,
        }
        for split, names in zip(("train", "test", "validation"), splits, strict=True)
        for name in sorted(names)
        for turn, text in enumerate(words[name])
    ]
    write_table(folder / "turns.csv", rows)
    given = write_params(
        folder,
        {"split": "given"},
        {"text": {"model.name": "text"}, "hcam": {"model.name": "hcam", **TEXT}},
        text={"encoder": encoder, "layers": [2, 4, 6], "mix": "stack"},
        model={"name": "hbaf", "modalities": "text"},
    )
    return [*encode(given, folder), study(given, folder, "fusion-ablate")]


def read_plain(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def mosi(data: Path, folder: Path, encoder: str) -> list[str]:
    transcripts = read_plain(data / "transcripts.csv")
    rows, vectors = [], []
    for split in ("train", "test"):
        for line in read_plain(data / f"text_{split}.csv"):
            name, words, _, label = transcripts[int(line[0])]
            conversation, turn = name.rsplit("_", 1)
            row = {
                "id": name,
                "conversation": conversation,
                "turn": turn,
                "split": split,
                "label": label,
                "text": words,
            }
            rows.append(row)
        vectors += [line[:-1] for line in read_plain(data / f"audio_{split}0.csv")]  # the last column is the label
    write_table(folder / "turns.csv", rows)
    np.save(folder / "audio.npy", np.asarray(vectors, dtype=np.float32))
    variants = {name: {"model.name": name} for name in ("hcam", "concat", "audio", "text")}
    given = write_params(folder, {"split": "given"}, variants, text={"encoder": encoder})
    prepare, _, text, join = encode(given, folder)
    imported = (
        f"pipeline-import {given} --table {folder}/turns.csv --audio {folder}/audio.npy --output {folder}/audio.h5"
    )
    return [prepare, imported, text, join, study(given, folder, "fusion-ablate")]


def study(given: str, folder: Path, command: str) -> str:
    return f"{command} {given} --features {folder}/feats.h5 --output {folder}/results"


CORPORA = {"emodb": emodb, "emorynlp": emorynlp, "iemocap": iemocap, "mosi": mosi}


def main(data: Path, work: Path, encoder: str) -> None:
    for name, commands in CORPORA.items():
        if (data / name).is_dir():
            (work / name).mkdir(parents=True, exist_ok=True)
            print(*commands(data / name, work / name, encoder), sep="\n")


if __name__ == "__main__":
    if len(sys.argv) <= 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), sys.argv[3])
