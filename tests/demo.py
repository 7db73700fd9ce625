"""Pieces of the embedded corpus, without decoding the rest of it."""

import csv
from collections.abc import Collection, Mapping
from pathlib import Path

from pipeline.manifest import Utterance
from pipeline.params import DatasetParams
from pipeline.preparation import prepare

DEMO = Path(__file__).parents[1] / "data" / "demo"


def conversations() -> dict[str, list[str]]:
    """The names of each split's conversations, sorted."""
    names: dict[str, set[str]] = {}
    for row in _rows():
        names.setdefault(row["split"], set()).add(row["conversation"])
    return {split: sorted(found) for split, found in names.items()}


def prepared(chosen: Collection[str], folder: Path) -> list[Utterance]:
    """The utterances of the `chosen` conversations; their table is written to `folder`."""
    _write_table(folder, chosen)
    return prepare(DatasetParams(root=str(DEMO), table=str(folder / "utterances.csv"))).utterances


def _rows() -> list[dict[str, str]]:
    with (DEMO / "utterances.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_piece(folder: Path, counts: Mapping[str, int]) -> None:
    """Make `folder` a corpus like the embedded one, of the first so many conversations of each split."""
    folder.mkdir(parents=True)
    (folder / "audio").symlink_to(DEMO / "audio")
    _write_table(folder, {name for split, count in counts.items() for name in conversations()[split][:count]})


def _write_table(folder: Path, chosen: Collection[str]) -> None:
    rows = [row for row in _rows() if row["conversation"] in chosen]
    with (folder / "utterances.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
