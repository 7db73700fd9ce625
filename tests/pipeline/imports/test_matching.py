"""Which features belong to which utterance: never a neighbour's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.imports.layout import Given
from tests.pipeline.imported import by_id, in_npz, run, write_pickle

SPLITS = ("train", "validation", "test")


def table(first: int | None, turns: int = 3, **columns: Any) -> list[dict[str, Any]]:
    """Rows of three conversations, numbered from `first`; None: no column of turns."""
    return [
        {"conversation": f"c{conversation}", "split": split, "label": "joy", **columns}
        | ({} if first is None else {"turn": first + turn})
        for conversation, split in enumerate(SPLITS)
        for turn in range(turns)
    ]


def named(first: int, turns: int = 3) -> dict[str, np.ndarray]:
    """conversation/turn, numbered from `first` -> a vector that tells the turn's place."""
    return {
        f"c{conversation}/{first + turn}": np.array([conversation, turn], np.float32)
        for conversation in range(3)
        for turn in range(turns)
    }


@pytest.mark.parametrize("counted", [0, 1])
@pytest.mark.parametrize("numbered", [None, 0, 1])
def test_turns_are_counted_from_0_or_as_the_table_does(tmp_path: Path, numbered: int | None, counted: int) -> None:
    if (numbered, counted) in ((None, 1), (0, 1)):  # nothing tells that 1 is the first
        with pytest.raises(DataError, match="'c0/3' is no turn of its conversation in the table"):
            run(tmp_path, in_npz(tmp_path, named(counted)), rows=table(numbered))
        return
    _, features = run(tmp_path, in_npz(tmp_path, named(counted)), rows=table(numbered))
    for identifier, rows in by_id(features).items():
        assert rows.tolist() == [[int(identifier[1]), int(identifier[3])]]


@pytest.mark.parametrize("counted", [0, 1])
def test_a_gap_does_not_shift_turns(tmp_path: Path, counted: int) -> None:
    arrays = named(counted)
    del arrays[f"c0/{counted}"]
    del arrays[f"c1/{counted + 1}"]
    _, features = run(tmp_path, in_npz(tmp_path, arrays), rows=table(1))
    found = by_id(features)
    assert [identifier for identifier, rows in found.items() if not len(rows)] == ["c0/0", "c1/1"]
    assert found["c0/2"].tolist() == [[0, 2]]


def test_numbers_that_could_mean_two_turns_are_refused(tmp_path: Path) -> None:
    arrays = {name: array for name, array in named(1).items() if not name.endswith("/3")}
    with pytest.raises(DataError, match="may count from 0 or be those of the table, and both fit alike"):
        run(tmp_path, in_npz(tmp_path, arrays), rows=table(1))
    ids = [{**row, "id": f"{row['conversation']}/{row['turn']}"} for row in table(1)]
    _, features = run(tmp_path, in_npz(tmp_path, arrays), rows=ids)
    assert by_id(features)["c0/2"].tolist() == [[0, 1]]


@pytest.mark.parametrize("name", ["{0}-{1}", "wav/{0}-{1}.wav", "wav\\{0}-{1}.flac", "{0}-{1}.mp3"])
def test_features_are_found_by_their_recording(tmp_path: Path, name: str) -> None:
    rows = table(0)
    for row in rows:
        row["audio"] = f"wav/{row['conversation']}-{row['turn']}.wav"
    arrays = {name.format(*key.split("/")): array for key, array in named(0).items()}
    given = Given("audio", str(write_pickle(tmp_path / "x.pkl", arrays)))
    imported, features = run(tmp_path, given, rows=rows)
    assert "matched by recording" in imported.summary()
    for identifier, found in by_id(features).items():
        assert found.tolist() == [[int(identifier[1]), int(identifier[3])]]


def test_turns_that_come_unsorted_are_sorted(tmp_path: Path) -> None:
    rows = [{**row, "id": f"u{index}"} for index, row in enumerate(table(0))]
    arrays = {row["id"]: np.array([row["turn"]], np.float32) for row in rows}
    _, features = run(tmp_path, in_npz(tmp_path, arrays), rows=rows[::-1])
    assert features.audio is not None
    assert features.audio.values[:, 0].tolist() == [0, 1, 2] * 3
