"""What a bare machine cannot make for itself, made beforehand where the project is installed: a folder to carry there.

wheels/     packages that the machine lacks (`wheels.txt`)
demo.npz    the demo's recordings, decoded: the machine need have no decoder
meld.csv    how long MELD's utterances are, and their labels, without words; where `--meld` or ERC_SHARED has them

    scripts/gpu_check.sh --prepare gpu-check [--only PACKAGE ...] [--python 3.12]
"""

import argparse
import csv
import os
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from gpu_check.features import FIELDS
from gpu_check.packages import download
from gpu_check.sizes import SAMPLE_RATE
from pipeline.manifest import Utterance, check_utterances

ROOT = Path(__file__).parents[2]
LOUDEST = 32_767


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, and make the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="packages to take; without: all of wheels.txt")
    parser.add_argument("--python", default="3.12", help="version on the machine")
    parser.add_argument("--no-wheels", action="store_true", help="for a machine that has all packages")
    shared = Path(os.environ.get("ERC_SHARED", ROOT.parent / "shared")) / "data" / "meld"
    parser.add_argument("--meld", type=Path, default=shared, help="folder with MELD's CSVs and clips.csv")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.no_wheels:
        download(options.folder / "wheels", options.only, options.python)
    write_demo(options.folder / "demo.npz", *decode_demo(ROOT / "data" / "demo", "utterances.csv"))
    if options.meld.is_dir():
        write_lengths(options.folder / "meld.csv", options.meld)
    for path in sorted(options.folder.rglob("*")):
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path}")


def decode_demo(root: Path, table: str) -> tuple[list[Utterance], list[np.ndarray]]:
    """The utterances of a table of recordings, and their clips (samples,) int16 at the encoders' rate; needs PyAV."""
    from pipeline.media import Clips
    from pipeline.params import DatasetParams
    from pipeline.preparation import prepare

    params = DatasetParams(root=str(root), table=table)
    utterances = prepare(params).utterances
    scratch = Path(tempfile.gettempdir())
    with Clips(utterances, root, params.channels, SAMPLE_RATE, scratch, params.decode_seconds) as clips:
        samples = [clips.load(utterance).numpy() for utterance in utterances if utterance.samples]
    return utterances, [np.clip(np.round(one * LOUDEST), -LOUDEST, LOUDEST).astype("<i2") for one in samples]


def write_demo(path: Path, utterances: Sequence[Utterance], clips: Sequence[np.ndarray]) -> None:
    """A clip for each utterance that has audio; differences of neighbouring samples take less room."""
    heard = iter(clips)
    stated = [
        utterance.model_copy(update={"samples": len(next(heard)), "sample_rate": SAMPLE_RATE})
        if utterance.samples
        else utterance
        for utterance in utterances
    ]
    manifest = "\n".join(utterance.model_dump_json() for utterance in stated)
    flat = np.concatenate(clips)
    halves = np.diff(flat, prepend=flat[:1] * 0).astype("<i2").view(np.uint8).reshape(-1, 2).T
    np.savez(
        path,
        manifest=np.frombuffer(zlib.compress(manifest.encode()), np.uint8),
        lengths=np.array([len(clip) for clip in clips]),
        halves=np.frombuffer(zlib.compress(halves.tobytes()), np.uint8),
    )


def read_demo(path: Path) -> tuple[list[Utterance], dict[str, torch.Tensor]]:
    """The utterances, and the clip (samples,) float32 of each that has one, by id."""
    with np.load(path) as content:
        lines = zlib.decompress(content["manifest"].tobytes()).decode().splitlines()
        halves = np.frombuffer(zlib.decompress(content["halves"].tobytes()), np.uint8)
        lengths = content["lengths"]
    differences = np.ascontiguousarray(halves.reshape(2, -1).T).view("<i2")[:, 0]
    flat = np.cumsum(differences, dtype="<i2").astype(np.float32) / LOUDEST
    utterances = [Utterance.model_validate_json(line) for line in lines]
    check_utterances(utterances, str(path))
    heard = [utterance.id for utterance in utterances if utterance.samples]
    parts = np.split(flat, np.cumsum(lengths)[:-1])
    return utterances, {name: torch.from_numpy(part) for name, part in zip(heard, parts, strict=True)}


def write_lengths(path: Path, meld: Path) -> None:
    """A line for each utterance of MELD, in the order of a manifest."""
    from measures.spoken import read_spoken

    samples = _samples(meld / "clips.csv")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for one in read_spoken(meld):
            count, rate = samples.get(one.record.id, (0, SAMPLE_RATE))
            lengths = {"frames": one.frames, "tokens": one.tokens, "samples": count, "sample_rate": rate}
            names = {name: getattr(one.record, name) for name in ("split", "conversation", "turn", "label")}
            writer.writerow({**names, **lengths})


def _samples(table: Path) -> dict[str, tuple[int, int]]:
    """(samples, sample rate) of each clip, by the utterance's id."""
    from pipeline.datasets.meld import SPLITS

    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        f"{SPLITS[row['split']]}/{row['dialogue']}/{row['utterance']}": (int(row["samples"]), int(row["sample_rate"]))
        for row in rows
    }


if __name__ == "__main__":
    main()
