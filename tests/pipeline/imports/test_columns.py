"""Which columns of a CSV name the utterances, which are features, and which are neither."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.imports.layout import Given
from tests.pipeline.imported import by_id, rows_of_table, run

ROWS = rows_of_table(conversations=8)  # 24, three a conversation
VALUES = np.random.default_rng(0).normal(size=(len(ROWS), 3)).astype(np.float32)
NUMBERED = [{**row, "id": str(number)} for number, row in enumerate(ROWS, start=1)]
SHUFFLED = [int(place) for place in np.random.default_rng(1).permutation(len(ROWS))]
IN_ORDER = list(range(len(ROWS)))
LABELS = [("anger", "joy").index(row["label"]) for row in ROWS]


def write_csv(path: Path, header: str, names: Sequence[Any], order: Iterable[int] = IN_ORDER) -> Given:
    """Rows of `VALUES` in an order, each led by its name or by several cells."""
    lines = [",".join(map(str, [names[place], *VALUES[place].tolist()])) for place in order]
    path.write_text("\n".join([f"{header},f0,f1,f2", *lines]) + "\n")
    return Given("audio", str(path))


def check(root: Path, given: Given, rows: Sequence[dict[str, Any]], **columns: str) -> str:
    """Import; every utterance of `rows` has its own row of `VALUES`, and nothing else."""
    imported, features = run(root, given, rows=rows, columns=columns)
    found = by_id(features)
    assert len(found) == len(rows)
    names = [row.get("id", f"{row.get('conversation')}/{row.get('turn')}") for row in rows]
    for name, expected in zip(names, VALUES, strict=True):
        np.testing.assert_array_equal(found[name], expected[None])
    return imported.summary()


@pytest.mark.parametrize(
    "beside", ["label", "Emotion", "emotion_id", "sentiment", "fold", "split", "speaker", "Unnamed: 0", "", "file"]
)
@pytest.mark.parametrize("named", [True, False])
def test_columns_that_describe_utterances_are_no_features(tmp_path: Path, beside: str, named: bool) -> None:
    if beside == "file" and not named:
        return  # which then names them
    names = [f"{row['id']},{label}" if named else f"{label}" for row, label in zip(ROWS, LABELS, strict=True)]
    summary = check(tmp_path, write_csv(tmp_path / "x.csv", f"id,{beside}" if named else beside, names), ROWS)
    assert f"columns that are not features: {beside or '(a column without a name)'}" in summary


def test_columns_called_as_those_of_the_table_are_no_features(tmp_path: Path) -> None:
    rows = [{**row, "feeling": row["label"]} for row in ROWS]
    for row in rows:
        del row["label"]
    names = [f"{row['id']},{label}" for row, label in zip(ROWS, LABELS, strict=True)]
    summary = check(tmp_path, write_csv(tmp_path / "x.csv", "id,feeling", names), rows, label="feeling")
    assert "columns that are not features: feeling" in summary


def test_a_dimension_that_is_the_label_is_refused_in_every_form(tmp_path: Path) -> None:
    names = [f"{row['id']},{label}" for row, label in zip(ROWS, LABELS, strict=True)]
    np.save(tmp_path / "x.npy", np.column_stack([VALUES, np.array(LABELS) * -3 + 1]))
    for given, place in (
        (write_csv(tmp_path / "x.csv", "id,y", names), "dimension 1 of 4"),
        (Given("audio", str(tmp_path / "x.npy")), "dimension 4 of 4"),
    ):
        with pytest.raises(DataError, match=f"{place} looks like the label: .* in all 24 utterances"):
            run(tmp_path, given, rows=ROWS)
    assert not (tmp_path / "out.h5").exists()


def test_a_dimension_that_is_the_score_is_refused(tmp_path: Path) -> None:
    scores = np.random.default_rng(4).uniform(-3, 3, len(ROWS))
    rows = [{**row, "label": "", "score": score} for row, score in zip(ROWS, scores, strict=True)]
    np.save(tmp_path / "x.npy", np.column_stack([VALUES, scores.astype(np.float32)]))
    with pytest.raises(DataError, match="dimension 4 of 4 looks like the score: it is equal to it in all 24"):
        run(tmp_path, Given("audio", str(tmp_path / "x.npy")), rows=rows)
    np.save(tmp_path / "x.npy", np.column_stack([VALUES, scores + 0.01]))
    run(tmp_path, Given("audio", str(tmp_path / "x.npy")), rows=rows)


def test_a_dimension_that_is_nearly_the_label_or_a_constant_is_a_feature(tmp_path: Path) -> None:
    nearly = np.array(LABELS)
    nearly[5] = 1 - nearly[5]
    np.save(tmp_path / "x.npy", np.column_stack([nearly, np.ones(len(ROWS)), VALUES]))
    _, features = run(tmp_path, Given("audio", str(tmp_path / "x.npy")), rows=ROWS)
    assert features.audio is not None
    assert features.audio.values.shape == (24, 5)


@pytest.mark.parametrize(
    "header", ["clip", "segment", "utt", "video_id", "Sr No.", "wav_id", "utterance id", "ID ", "", "Unnamed: 0"]
)
def test_a_column_that_holds_the_ids_names_the_utterances_whatever_it_is_called(tmp_path: Path, header: str) -> None:
    for rows in (NUMBERED, ROWS):
        names = [row["id"] for row in rows]
        check(tmp_path, write_csv(tmp_path / "x.csv", header, names, SHUFFLED), rows)


def test_the_column_that_was_taken_for_the_names_is_said(tmp_path: Path) -> None:
    given = write_csv(tmp_path / "x.csv", "clip", [row["id"] for row in NUMBERED], SHUFFLED)
    assert f"note: {tmp_path / 'x.csv'}: utterances are named by column 'clip'" in check(tmp_path, given, NUMBERED)


def test_a_column_that_holds_the_recordings_names_the_utterances(tmp_path: Path) -> None:
    rows = [{**row, "audio": f"wav/{number}.wav"} for number, row in enumerate(ROWS, start=100)]
    names = [row["audio"].removeprefix("wav/").removesuffix(".wav") for row in rows]
    check(tmp_path, write_csv(tmp_path / "x.csv", "clip", names, SHUFFLED), rows)


def test_conversation_and_turn_name_the_utterance_together(tmp_path: Path) -> None:
    rows = [{"dialogue": row["conversation"], "utt": row["turn"], "split": row["split"]} for row in ROWS]
    names = [f"{row['dialogue']},{row['utt']}" for row in rows]
    given = write_csv(tmp_path / "x.csv", "dialogue,utt", names, SHUFFLED)
    _, features = run(tmp_path, given, rows=rows, columns={"conversation": "dialogue", "turn": "utt"})
    found = by_id(features)
    for row, expected in zip(rows, VALUES, strict=True):
        np.testing.assert_array_equal(found[f"{row['dialogue']}/{row['utt']}"], expected[None])


def test_conversations_of_other_names_than_the_tables_are_refused(tmp_path: Path) -> None:
    names = [f"{row['conversation'][1:]},{row['turn']}" for row in ROWS]
    given = write_csv(tmp_path / "x.csv", "conversation,turn", names, SHUFFLED)
    with pytest.raises(DataError, match=r"none of its 24 names, such as '\d/\d'"):
        run(tmp_path, given, rows=ROWS)


@pytest.mark.parametrize("header", ["", "Unnamed: 0", "index", "segment"])
@pytest.mark.parametrize("first", [0, 1])
def test_rows_that_were_shuffled_are_refused(tmp_path: Path, header: str, first: int) -> None:
    given = write_csv(tmp_path / "x.csv", header, [first + place for place in IN_ORDER], SHUFFLED)
    called = f"column '{header}'" if header else "the column without a name"
    with pytest.raises(DataError, match=f"{called} holds .*, a number for each row that is not its place.* column id"):
        run(tmp_path, given, rows=ROWS)


@pytest.mark.parametrize("header", ["", "Unnamed: 0", "segment"])
@pytest.mark.parametrize("first", [0, 1])
def test_a_column_that_counts_the_rows_is_no_feature(tmp_path: Path, header: str, first: int) -> None:
    check(tmp_path, write_csv(tmp_path / "x.csv", header, [first + place for place in IN_ORDER]), ROWS)


def test_the_index_of_rows_that_were_chosen_or_put_together_is_no_feature(tmp_path: Path) -> None:
    chosen, parts = [3 * place for place in IN_ORDER], [place % 8 for place in IN_ORDER]
    for index in (chosen, parts):
        check(tmp_path, write_csv(tmp_path / "x.csv", "", index), ROWS)


def test_an_index_that_may_count_rows_or_hold_the_ids_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not certain which row belongs to which utterance"):
        run(tmp_path, write_csv(tmp_path / "x.csv", "", range(1, 25)), rows=NUMBERED[::-1])


def test_a_column_of_most_of_the_ids_is_refused(tmp_path: Path) -> None:
    rows = [{**row, "id": str(number)} for number, row in enumerate(ROWS, start=31)]
    names = [*(row["id"] for row in rows[:22]), "90", "91"]
    with pytest.raises(DataError, match=r"column 'clip' holds .* a column id with the ids of the table"):
        run(tmp_path, write_csv(tmp_path / "x.csv", "clip", names, SHUFFLED), rows=rows)


def test_whole_numbers_that_name_nothing_are_features(tmp_path: Path) -> None:
    counts = np.random.default_rng(2).integers(0, 5, len(ROWS))
    large = np.random.default_rng(3).choice(10_000, len(ROWS), replace=False)
    lines = [f"{count},{other}" for count, other in zip(counts, large, strict=True)]
    (tmp_path / "x.csv").write_text("\n".join(["words,pitch", *lines]) + "\n")
    _, features = run(tmp_path, Given("audio", str(tmp_path / "x.csv")), rows=ROWS)
    assert by_id(features)[ROWS[0]["id"]].tolist() == [[counts[0], large[0]]]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_decimal_commas_are_named(tmp_path: Path, delimiter: str) -> None:
    lines = [delimiter.join([row["id"], "0,5", "1,25"]) for row in ROWS]
    (tmp_path / "x.csv").write_text("\n".join([delimiter.join(["name", "f0", "f1"]), *lines]))
    with pytest.raises(DataError, match="line 2: 'f0' is '0,5', it seems with a decimal comma; write"):
        run(tmp_path, Given("audio", str(tmp_path / "x.csv")), rows=ROWS)
