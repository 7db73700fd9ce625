"""A thousand dirty tables, without recordings: each becomes a manifest with every turn, or one error of ours."""

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from pipeline.datasets import read_corpus
from pipeline.errors import ErcError
from pipeline.manifest import check_utterances, read_manifest, write_manifest
from pipeline.params import DatasetParams
from pipeline.preparation import prepare, summary
from pipeline.preparation.stage import Prepared
from tests.pipeline.releases.meld import HEADER, LINES, write_table

ODD = st.sampled_from(
    [
        *["", " ", "\u200b", "\ufeff", "\x85", "\x92", "\x00", "\n", '"', "'", ",", "\t", ";", "\\", "\u2028"],
        *["nan", "-inf", "-1", "1e400", "1_0", "٣", "0x10", "1,5", "00:01:02", "9" * 400, "null", "true", "😀"],
        *["../x.wav", "/etc/passwd", "x" * 300, "a/b", "\ud83d"],
    ]
)
NAMES = ["id", "conversation", "turn", "speaker", "split", "label", "score", "text"]
NAMES += ["recognised", "start", "end", "audio"]
USUAL: dict[str, st.SearchStrategy[Any]] = {
    "id": st.integers(0, 99).map(str),
    "conversation": st.sampled_from(["a", "b", "c"]),
    "turn": st.integers(0, 9) | st.floats(0, 9),
    "split": st.sampled_from(["train", "dev", "test"]),
    "label": st.sampled_from(["joy", "anger"]),
    "score": st.floats(-3, 3) | st.just(""),
    "start": st.floats(0, 2) | st.just(""),
    "end": st.floats(2, 4) | st.just(""),
    "audio": st.just(""),
}
WORDS = st.text(max_size=6)


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows that are mostly sound, so that many get as far as the manifest; a few cells hold anything."""
    names = draw(st.lists(st.sampled_from([*NAMES, "extra one", " "]), unique=True, max_size=8))
    if draw(st.integers(0, 9)):
        names = sorted({*names, "text", "conversation", "split"} - {"id"}, key=str)
    rows = []
    for number in range(draw(st.integers(0, 6))):
        row = {name: draw(USUAL.get(name, WORDS)) for name in names}
        if "split" in row:
            split = ["train", "dev", "test"][number % 3]
            row |= {"split": split} | ({"conversation": split} if "conversation" in row else {})
        rows.append(row)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2]))):
        if rows and names:
            row = draw(st.sampled_from(rows))
            row[draw(st.sampled_from(names))] = draw(
                ODD | WORDS | st.none() | st.booleans() | st.lists(WORDS, max_size=1)
            )
    return rows


def as_text(value: Any) -> str:
    return ("" if value is None else str(value)).encode("utf-8", "replace").decode()


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, names, delimiter=delimiter, restval="")
    writer.writeheader()
    writer.writerows({name: as_text(value) for name, value in row.items()} for row in rows)
    return file.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    """Columns of mixed types become texts, as a writer of Parquet demands."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        one = len({type(value) for value in values} - {type(None)}) < 2 and not any(isinstance(v, str) for v in values)
        columns[name] = values if one else [None if value is None else as_text(value) for value in values]
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


WRITERS = {
    ".csv": as_csv,
    ".tsv": lambda rows: as_csv(rows, "\t"),
    ".jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    ".parquet": as_parquet,
}


def prepared_or_refused(params: DatasetParams, root: Path, rows: int | None) -> Prepared | None:
    """The outcome of a table: a manifest that can be read again, with `rows` turns, or None for an error of ours."""
    try:
        prepared = prepare(params)
    except ErcError:
        return None
    turns = read_corpus(params).turns
    assert len(prepared.utterances) == len(turns)
    if rows is not None:
        assert len(turns) == rows
    check_utterances(prepared.utterances, "manifest")
    write_manifest(root / "manifest.jsonl", prepared.utterances)
    assert read_manifest(root / "manifest.jsonl") == prepared.utterances
    summary(prepared).encode("utf-8")
    return prepared


def dirty(examples: int) -> settings:
    """No shrinking by time: a loaded machine is no failure."""
    return settings(
        max_examples=max(examples, settings().max_examples), deadline=None, suppress_health_check=list(HealthCheck)
    )


def test_a_dirty_table_is_a_manifest_or_our_error(tmp_path: Path) -> None:
    outcomes: Counter[bool] = Counter()

    @given(rows=tables(), kind=st.sampled_from(list(WRITERS)), split=st.sampled_from(["given", "conversation"]))
    @example([{"text": "x", "conversation": s, "split": s} for s in ("train", "dev", "test")], ".parquet", "given")
    @dirty(200)
    def holds(rows: list[dict[str, Any]], kind: str, split: Any) -> None:
        (tmp_path / f"dirty{kind}").write_bytes(WRITERS[kind](rows))
        params = DatasetParams(name="table", root=str(tmp_path), table=f"dirty{kind}", split=split)
        if kind in (".csv", ".tsv"):  # where a line of empty cells is no turn
            rows = [row for row in rows if any(as_text(value).strip() for value in row.values())]
        outcomes[prepared_or_refused(params, tmp_path, len(rows)) is not None] += 1

    holds()
    assert min(outcomes[True], outcomes[False]) > 0, outcomes  # how often is up to the generator


SOUND = [
    {"conversation": split, "turn": turn, "split": split, "text": f"it’s {turn}", "label": "joy", "note": "é"}
    for split in ("train", "dev", "test")
    for turn in range(3)
]


def test_a_table_with_broken_bytes_is_a_manifest_or_our_error(tmp_path: Path) -> None:
    intact = {kind: write(SOUND) for kind, write in WRITERS.items()}
    outcomes: Counter[bool] = Counter()

    @given(
        kind=st.sampled_from(list(WRITERS)),
        changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
        kept=st.just(1.0) | st.floats(0, 1),
    )
    @dirty(200)
    def holds(kind: str, changes: list[tuple[float, int]], kept: float) -> None:
        content = bytearray(intact[kind])
        for where, byte in changes:
            content[int(where * len(content))] = byte
        (tmp_path / f"dirty{kind}").write_bytes(content[: int(kept * len(content))])
        params = DatasetParams(name="table", root=str(tmp_path), table=f"dirty{kind}")
        outcomes[prepared_or_refused(params, tmp_path, None) is not None] += 1

    holds()
    assert min(outcomes[True], outcomes[False]) > 0, outcomes  # how often is up to the generator


MELD_CELLS = st.sampled_from([*HEADER.split(","), "Joy", "0", "3", "-1", "2.0", "99999999999", "\ud83d\ude00", "’"])


def test_dirty_csvs_of_meld_are_a_manifest_or_our_error(tmp_path: Path) -> None:
    """Cells, names of columns and bytes changed; rows repeated, removed and cut."""
    for split in ("train", "dev", "test"):
        write_table(tmp_path / f"{split}_sent_emo.csv", [line for line in LINES if line.split == split])
    path = tmp_path / "train_sent_emo.csv"
    intact = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    outcomes: Counter[bool] = Counter()

    @given(
        cells=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 10), ODD | MELD_CELLS), max_size=2),
        repeated=st.none() | st.integers(1, 7),
        removed=st.none() | st.integers(0, 10),
        byte=st.none() | st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
        target=st.sampled_from([None, "emotion", "sentiment"]),
    )
    @dirty(200)
    def holds(
        cells: list[tuple[int, int, str]],
        repeated: int | None,
        removed: int | None,
        byte: tuple[float, int] | None,
        target: str | None,
    ) -> None:
        lines = [list(line) for line in intact]
        for row, column, cell in cells:
            lines[row][column] = as_text(cell)
        if repeated is not None:
            lines.append(lines[repeated])
        if removed is not None:
            lines = [line[:removed] + line[removed + 1 :] for line in lines]
        file = io.StringIO(newline="")
        csv.writer(file).writerows(lines)
        content = bytearray(file.getvalue().encode())
        if byte is not None:
            content[int(byte[0] * len(content))] = byte[1]
        path.write_bytes(content)
        expected = len(LINES) + (repeated is not None) if byte is None else None
        params = DatasetParams(name="meld", root=str(tmp_path), target=target)
        outcomes[prepared_or_refused(params, tmp_path, expected) is not None] += 1

    holds()
    assert min(outcomes[True], outcomes[False]) > 0, outcomes  # how often is up to the generator
