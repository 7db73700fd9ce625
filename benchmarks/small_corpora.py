"""Small corpora of real people, for cross-validation with the shipped settings beside the linear reference.

    python benchmarks/small_corpora.py SHARED_DATA WORK_FOLDER TEXT_ENCODER

writes a folder with params.yaml for each corpus, from which the ordinary commands do the rest; it prints them.

meld-vectors: 659 turns with one audio and one text vector each, five folds by conversation; and the same with the audio
    of other turns, which is worth nothing.
nemo: 204 recordings as log-mel frames, each of nine speakers left out once. Their text says nothing of the label.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROWS = {
    "meld-vectors": {"hcam": {"model.name": "hcam"}, "attends turns": {"model.hbaf.attends": "turns"}},
    "nemo": {
        "hbaf": {"model.name": "hbaf", "model.modalities": "audio"},
        "hcam": {"model.name": "hcam", "model.modalities": "audio"},
        "text": {"model.name": "text"},
    },
}


def write_params(folder: Path, params: dict[str, Any]) -> str:
    """The option that names the file."""
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(params | {"ablations": ROWS[folder.name]}, sort_keys=False), encoding="utf-8")
    return f"--params {path}"


def meld_vectors(data: Path, folder: Path) -> list[str]:
    """Commands; the vectors become arrays of their own."""
    vectors = np.load(data / "vectors.npz")
    arrays = {"audio": vectors["audio"], "shuffled": np.random.default_rng(0).permutation(vectors["audio"])}
    for name, array in {**arrays, "text": vectors["text"]}.items():
        np.save(folder / f"{name}.npy", array)
    given = write_params(folder, {"dataset": {"name": "table", "split": "conversation"}})
    commands = []
    for name in arrays:
        features = f"{folder}/{name}.h5"
        commands += [
            f"pipeline-import {given} --table {data}/turns.csv --audio {folder}/{name}.npy --text {folder}/text.npy "
            f"--output {features}",
            f"fusion-folds {given} --features {features} --all --output {folder}/{name}",
        ]
    return commands


def nemo(data: Path, folder: Path, encoder: str) -> list[str]:
    """Commands of the whole way."""
    table = {"name": "table", "root": str(data), "table": "nemo.tsv", "columns": {"audio": "file", "label": "emotion"}}
    given = write_params(
        folder,
        {
            "dataset": {**table, "split": "speaker"},
            "audio": {"encoder": "log-mel"},
            "text": {"encoder": encoder},
            "model": {"name": "audio"},
            "train": {"metric": "uar"},
            "folds": {"hold_out": "speaker", "count": "all"},
        },
    )
    manifest, audio, text, features = (folder / name for name in ("manifest.jsonl", "audio.h5", "text.h5", "feats.h5"))
    return [
        f"pipeline-prepare {given} --output {manifest}",
        f"pipeline-audio {given} --manifest {manifest} --output {audio}",
        f"pipeline-text {given} --manifest {manifest} --output {text}",
        f"pipeline-join {given} --manifest {manifest} --audio {audio} --text {text} --output {features}",
        f"fusion-folds {given} --features {features} --all --output {folder}/results",
        f"fusion-train {given} --features {features} --set model.name=hbaf --set train.metric=null "
        f"--output {folder}/first-run",  # as a new user makes it
    ]


def main(data: Path, work: Path, encoder: str) -> None:
    for name in ROWS:
        (work / name).mkdir(parents=True, exist_ok=True)
    commands = meld_vectors(data / "meld-vectors", work / "meld-vectors")
    print(*commands, *nemo(data / "nemo", work / "nemo", encoder), sep="\n")


if __name__ == "__main__":
    if len(sys.argv) <= 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), sys.argv[3])
