"""Which features belong to which utterance: never a neighbour's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.imports.layout import Given
from tests.pipeline.imported import arrays_of, by_id, in_npz, rows_of_table, run, write_pickle

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


def numbered(first: int = 0) -> list[dict[str, Any]]:
    """Nine utterances and three conversations, all called by numbers from 0."""
    return [
        {**row, "id": str(first + place), "conversation": row["conversation"][1:]} for place, row in enumerate(table(0))
    ]


def test_numbers_of_conversations_are_not_taken_for_those_of_utterances(tmp_path: Path) -> None:
    """Three turns of conversation 1 would be three frames of utterance 1 otherwise."""
    whole = {conversation: [[conversation, turn] for turn in range(3)] for conversation in range(3)}
    _, features = run(tmp_path, Given("audio", str(write_pickle(tmp_path / "x.pkl", whole))), rows=numbered())
    assert {name: rows.tolist() for name, rows in by_id(features).items()} == {
        str(place): [[place // 3, place % 3]] for place in range(9)
    }


def test_numbers_that_may_be_conversations_or_utterances_are_refused(tmp_path: Path) -> None:
    frames = {number: np.ones((number + 1, 2)) for number in range(3)}
    with pytest.raises(DataError, match="names such as '0' are conversations of the table and its utterances, too"):
        run(tmp_path, Given("audio", str(write_pickle(tmp_path / "x.pkl", frames))), rows=numbered())


def test_numbers_of_all_utterances_are_theirs_though_conversations_are_numbered_too(tmp_path: Path) -> None:
    frames = {number: np.full((3, 2), number) for number in range(9)}
    _, features = run(tmp_path, Given("audio", str(write_pickle(tmp_path / "x.pkl", frames))), rows=numbered())
    assert by_id(features)["7"].tolist() == [[7, 7]] * 3


@pytest.mark.parametrize("first", [0, 2])
def test_ids_that_count_from_another_number_than_the_table_are_refused(tmp_path: Path, first: int) -> None:
    frames = {first + number: np.ones((1, 2)) for number in range(9)}
    given = Given("audio", str(write_pickle(tmp_path / "x.pkl", frames)))
    with pytest.raises(DataError, match=f"numbers from {first} to {first + 8}, the table's ids those from 1 to 9"):
        run(tmp_path, given, rows=numbered(1))
    frames = {number: np.ones((1, 2)) for number in range(12)}  # of which the table has some
    imported, _ = run(tmp_path, Given("audio", str(write_pickle(tmp_path / "x.pkl", frames))), rows=numbered(1))
    assert "3 of its entries are no utterance" in imported.summary()


def test_vectors_of_train_under_ids_of_other_splits_are_warned_of(tmp_path: Path) -> None:
    rows = rows_of_table()
    arrays = arrays_of(rows)
    assert "the same as one in" not in run(tmp_path, in_npz(tmp_path, arrays), rows=rows)[0].summary()
    copied = arrays | {f"u3-{turn}": arrays[f"u0-{turn}"] for turn in range(3)}  # conversation 3 is of test
    told = run(tmp_path, in_npz(tmp_path, copied), rows=rows)[0].summary()
    assert (
        "\nwarning: 3 of 3 utterances of test are the same as one in train (the same audio), the first 'u3-0' as "
        "'u0-0': scores on them are not of new data; take them out of train, or put both in the same split\n"
    ) in told
