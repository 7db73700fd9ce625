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
THREE = [place % 3 for place in IN_ORDER]
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
    "beside", ["label", "Emotion", "emotion_id", "sentiment", "fold", "split", "speaker", "Unnamed: 0", ""]
)
@pytest.mark.parametrize("named", [True, False])
def test_columns_that_describe_utterances_are_no_features(tmp_path: Path, beside: str, named: bool) -> None:
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


def test_a_one_for_each_label_is_refused(tmp_path: Path) -> None:
    rows = [{**row, "label": ("anger", "joy", "fear")[label]} for label, row in zip(THREE, ROWS, strict=True)]
    for classes, place in (
        (np.eye(3), "dimensions 3, 5, 6 of 6 together look"),
        (np.eye(3)[:, :2], "dimensions 3, 5 of 5 together"),
    ):
        ones = classes[THREE]
        np.save(tmp_path / "x.npy", np.column_stack([VALUES[:, :2], ones[:, 0], VALUES[:, 2], ones[:, 1:]]))
        with pytest.raises(DataError, match=f"{place}.* in all 24 utterances that have one; take them out"):
            run(tmp_path, Given("audio", str(tmp_path / "x.npy")), rows=rows)
    np.save(tmp_path / "x.npy", np.column_stack([VALUES, np.eye(3)[THREE, 0]]))  # two look the same
    run(tmp_path, Given("audio", str(tmp_path / "x.npy")), rows=rows)


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


def test_audio_is_normalised_by_the_rows_of_its_speaker(tmp_path: Path) -> None:
    rows = [{**row, "speaker": ("ann", "bob")[place % 2]} for place, row in enumerate(ROWS)]
    rows[7]["speaker"] = "guest"
    of = np.array([row["speaker"] for row in rows])
    np.save(tmp_path / "x.npy", VALUES * np.where(of == "bob", 100, 1)[:, None] + 7)
    given = Given("audio", str(tmp_path / "x.npy"))
    imported, features = run(tmp_path, given, rows=rows, normalise="speaker")
    assert (
        "audio: 1 utterances became zeros, because each is its speaker's only row (import.normalise: speaker)"
        in imported.summary()
    )
    assert features.audio is not None
    assert features.audio.identity.fields["normalise"] == "speaker"
    found = dict(zip(features.utterances.ids, features.audio.values, strict=True))
    values = np.stack([found[row["id"]] for row in rows])
    for name in ("ann", "bob"):
        own = VALUES[of == name].astype(float)
        np.testing.assert_allclose(values[of == name], (own - own.mean(0)) / own.std(0), atol=1e-4)
    assert not values[7].any()
    rows[3]["speaker"] = ""
    with pytest.raises(DataError, match=r"turn \d+ of 24, .* has no speaker; name all speakers"):
        run(tmp_path, given, rows=rows, normalise="speaker")
    with pytest.raises(DataError, match=r"import\.normalise is speaker: of audio, and there is none"):
        run(tmp_path, Given("text", str(tmp_path / "x.npy")), rows=rows, normalise="speaker")


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
    expected = f"{called} holds .*, a number for each row that is not its place.* column id"
    with pytest.raises(DataError, match=expected) as refused:
        run(tmp_path, given, rows=ROWS)
    assert (f"name the column ({given.features}:{header})" in str(refused.value)) == (header in ("index", "segment"))


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


def write_cells(path: Path, header: str, lines: Iterable[Sequence[Any]]) -> Given:
    path.write_text("\n".join([header, *(",".join(map(str, cells)) for cells in lines)]) + "\n")
    return Given("audio", str(path))


def dimensions(root: Path, given: Given, rows: Sequence[dict[str, Any]] = ROWS) -> int:
    """How many columns are features."""
    _, features = run(root, given, rows=rows)
    assert features.audio is not None
    return int(features.audio.values.shape[1])


@pytest.mark.parametrize(
    "header",
    [
        "#,%,f",  # signs are names
        "level_0,level_1,level_2",  # wavelets
        "audio,text,visual",  # scores of models to be fused
        "name,file,zoo",  # words
        "index,recognised,Level 0",
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_numbers_under_a_name_that_may_be_a_features_are_features(tmp_path: Path, header: str, named: bool) -> None:
    counts = np.random.default_rng(5).integers(0, 4, VALUES.shape)
    for values in (VALUES, counts):
        lines = [[row["id"], *cells] if named else cells for row, cells in zip(ROWS, values.tolist(), strict=True)]
        assert dimensions(tmp_path, write_cells(tmp_path / "x.csv", f"id,{header}" if named else header, lines)) == 3


@pytest.mark.parametrize("counted", ["index", "level_0", "Sr No.", "#"])
@pytest.mark.parametrize("order", [IN_ORDER, SHUFFLED, [place % 8 for place in IN_ORDER]])
def test_an_index_is_left_out_where_it_counts_rows(tmp_path: Path, counted: str, order: Sequence[int]) -> None:
    lines = [[row["id"], number, 0.5] for row, number in zip(ROWS, order, strict=True)]
    assert dimensions(tmp_path, write_cells(tmp_path / "x.csv", f"id,{counted},f0", lines)) == 1


def test_a_file_whose_columns_all_describe_utterances_is_refused_with_what_to_do(tmp_path: Path) -> None:
    given = write_cells(tmp_path / "x.csv", "id,score", ([row["id"], 0.5] for row in ROWS))
    with pytest.raises(DataError, match="a feature: id, score describe the utterance; rename those that are features"):
        run(tmp_path, given, rows=ROWS)


@pytest.mark.parametrize("written", ["{}", "{}.0"])
def test_ids_with_zeros_in_front_are_found_by_their_number(tmp_path: Path, written: str) -> None:
    for first, header in ((0, ""), (1, "no"), (1, "id")):
        rows = [{**row, "id": f"{number:03d}"} for number, row in enumerate(ROWS, start=first)]
        names = [written.format(int(row["id"])) for row in rows]
        for order in (IN_ORDER, SHUFFLED):
            check(tmp_path, write_csv(tmp_path / "x.csv", header, names, order), rows)


@pytest.mark.parametrize("ids", [range(1001, 1025), range(7, 150, 6)])
@pytest.mark.parametrize("written", ["{}", "{}.0"])
def test_an_index_that_can_only_be_the_ids_names_the_utterances(tmp_path: Path, ids: range, written: str) -> None:
    rows = [{**ROWS[place], "id": str(ids[place])} for place in SHUFFLED]
    names = [written.format(row["id"]) for row in rows]
    growing = sorted(IN_ORDER, key=lambda place: int(rows[place]["id"]))
    for header in ("", "clip"):
        summary = check(tmp_path, write_csv(tmp_path / "x.csv", header, names, growing), rows)
        assert "utterances are named by" in summary


def test_an_index_that_neither_names_nor_counts_rows_is_named(tmp_path: Path) -> None:
    for index in ([3 * place for place in SHUFFLED], [row["conversation"] for row in ROWS]):
        summary = check(tmp_path, write_csv(tmp_path / "x.csv", "", index), ROWS)
        assert "the column without a name does not count the rows, so see that they are in the order" in summary


def test_whole_numbers_behind_the_first_column_are_features(tmp_path: Path) -> None:
    """A rank, and durations in milliseconds that are like ids."""
    durations = [*range(1, 23), 40, 50]
    lines = [[0.5, rank, durations[place]] for rank, place in enumerate(SHUFFLED[::-1])]
    given = write_cells(tmp_path / "x.csv", "f0,rank,ms", ([f, SHUFFLED[rank], ms] for f, rank, ms in lines))
    assert dimensions(tmp_path, given) == 3
    given = write_cells(tmp_path / "x.csv", "f0,ms", ([f, ms] for f, _, ms in lines))
    assert dimensions(tmp_path, given, NUMBERED) == 2


@pytest.mark.parametrize("order", [IN_ORDER, SHUFFLED])
def test_ranks_written_as_floats_are_features(tmp_path: Path, order: Sequence[int]) -> None:
    given = write_cells(tmp_path / "x.csv", "rank,f0", ([float(place), 0.5] for place in order))
    assert dimensions(tmp_path, given) == 2


def test_ranks_that_may_be_the_ids_are_refused_with_what_to_do(tmp_path: Path) -> None:
    lines = [[0.5, place + 1] for place in SHUFFLED]
    given = write_cells(tmp_path / "x.csv", "f0,rank", lines)
    with pytest.raises(DataError, match=r"if these are the ids, name the column \(\S+x.csv:rank\); if not, give the"):
        run(tmp_path, given, rows=NUMBERED)
    assert dimensions(tmp_path, Given("audio", f"{given.features}:rank"), NUMBERED) == 1


def test_the_name_that_most_utterances_have_is_taken(tmp_path: Path) -> None:
    unknown = [["unknown", row["id"], "/a/all.wav", "0.5"] for row in ROWS]
    for header in ("name,id,file,f0", "name,clip,file,f0", "name,Utterance ID,file,f0"):
        assert dimensions(tmp_path, write_cells(tmp_path / "x.csv", header, unknown)) == 1
    rows = [{**row, "audio": f"wav/{row['id']}.wav"} for row in ROWS]
    counted = [[number, f"/data/{row['id']}.wav", 0.5] for number, row in enumerate(ROWS)]
    assert dimensions(tmp_path, write_cells(tmp_path / "x.csv", "id,file,f0", counted), rows) == 1


@pytest.mark.parametrize("beside", ["name", "file", "audio", "text"])
def test_a_number_for_each_utterance_is_no_feature_under_a_name_that_may_be_its(tmp_path: Path, beside: str) -> None:
    lines = [[row["id"], 1000 + place, 0.5] for row, place in zip(ROWS, SHUFFLED, strict=True)]
    assert dimensions(tmp_path, write_cells(tmp_path / "x.csv", f"id,{beside},f0", lines)) == 1


def test_one_name_in_all_rows_is_none(tmp_path: Path) -> None:
    summary = check(tmp_path, write_csv(tmp_path / "x.csv", "name", ["'unknown'"] * len(ROWS)), ROWS)
    assert "columns that are not features: name" in summary
    assert "matched by the order of the table" in summary


def test_commas_at_the_end_of_lines_are_no_columns(tmp_path: Path) -> None:
    given = write_cells(tmp_path / "x.csv", "id,f0,f1,,", ([row["id"], 0.5, 1, "", ""] for row in ROWS))
    assert dimensions(tmp_path, given) == 2


def test_turns_may_be_written_as_floats(tmp_path: Path) -> None:
    rows = [{name: cell for name, cell in row.items() if name != "id"} for row in ROWS]
    names = [f"{row['conversation']},{row['turn']}.0" for row in rows]
    check(tmp_path, write_csv(tmp_path / "x.csv", "conversation,turn", names, SHUFFLED), rows)


def test_true_and_false_are_numbers(tmp_path: Path) -> None:
    lines = [[row["id"], place % 3 == 0, "FALSE"] for place, row in enumerate(ROWS)]
    _, features = run(tmp_path, write_cells(tmp_path / "x.csv", "id,smile,cry", lines), rows=ROWS)
    assert by_id(features)[ROWS[0]["id"]].tolist() == [[1, 0]]
    assert by_id(features)[ROWS[1]["id"]].tolist() == [[0, 0]]


def test_quotes_around_a_name_are_no_part_of_it(tmp_path: Path) -> None:
    rows = [{**row, "id": f"{row['id']}'"} for row in ROWS]
    check(tmp_path, write_csv(tmp_path / "x.csv", "'clip'", [f"'{row['id']}'" for row in rows], SHUFFLED), rows)


def test_names_of_numbers_with_a_line_between_are_texts(tmp_path: Path) -> None:
    rows = [{**row, "id": f"{row['conversation'][1:]}_{row['turn']}"} for row in ROWS]
    check(tmp_path, write_csv(tmp_path / "x.csv", "", [row["id"] for row in rows], SHUFFLED), rows)
