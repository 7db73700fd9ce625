"""The same features in every form: the values, their order and their lengths come through, to the same bytes."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from pipeline.imports.layout import Given
from tests.pipeline.imported import (
    DIM,
    FORMS,
    arrays_of,
    by_id,
    in_folder,
    in_npz,
    pad,
    rows_of_table,
    run,
    write_pickle,
)

Form = Callable[[Path, Mapping[str, np.ndarray]], Given]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The feature file of the first form."""
    root = tmp_path_factory.mktemp("reference")
    rows = rows_of_table()
    run(root, in_folder(root, arrays_of(rows)), rows=rows)
    return (root / "out.h5").read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_values_order_and_lengths_round_trip_exactly(tmp_path: Path, form: Form, reference: bytes) -> None:
    rows = rows_of_table()
    arrays = arrays_of(rows)
    columns = {"id": "recording"} if form.__name__ == "in_folder_of_npz" else {}
    if columns:  # found by the file's name, whatever folder it lies in
        rows = [{**row, "recording": f"deep/{row['id']}"} for row in rows]
        for row in rows:
            del row["id"]
    _, features = run(tmp_path, form(tmp_path, arrays), rows=rows, columns=columns)
    found = by_id(features)
    assert list(zip(features.utterances.splits, features.utterances.turns.tolist(), strict=True)) == [
        (split, turn) for split in ("train", "train", "validation", "test") for turn in range(3)
    ]
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[f"deep/{name}" if columns else name], array)
    if not columns:
        assert (tmp_path / "out.h5").read_bytes() == reference


def test_the_identity_is_that_of_the_values_however_turns_are_split(tmp_path: Path) -> None:
    rows = rows_of_table()
    arrays = arrays_of(rows)
    elsewhere = {"train": "train", "validation": "test", "test": "validation"}
    moved = [{**row, "split": elsewhere[str(row["split"])]} for row in rows]
    negative = {name: -array for name, array in arrays.items()}
    first, again, other = (
        run(tmp_path, in_npz(tmp_path, given), rows=table)[1]
        for given, table in ((arrays, rows), (arrays, moved), (negative, rows))
    )
    assert first.utterances.ids != again.utterances.ids
    assert first.audio is not None
    assert again.audio is not None
    assert other.audio is not None
    assert first.audio.identity == again.audio.identity != other.audio.identity


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.int8, np.uint16, bool])
def test_numbers_of_every_kind_keep_their_value(tmp_path: Path, dtype: object) -> None:
    rows = rows_of_table()
    arrays = {name: array.astype(dtype) for name, array in arrays_of(rows).items()}
    _, features = run(tmp_path, in_npz(tmp_path, arrays), rows=rows)
    assert features.audio is not None
    assert features.audio.values.dtype == (np.float16 if dtype is np.float16 else np.float32)
    for name, array in by_id(features).items():
        np.testing.assert_array_equal(array, arrays[name].astype(np.float32))


def test_vectors_are_sequences_of_length_one(tmp_path: Path) -> None:
    rows = rows_of_table()
    vectors = {row["id"]: np.arange(DIM, dtype=np.float32) + index for index, row in enumerate(rows)}
    np.save(tmp_path / "all.npy", np.stack(list(vectors.values())))
    _, features = run(tmp_path, Given("text", str(tmp_path / "all.npy")), rows=rows)
    assert {name: array.tolist() for name, array in by_id(features, "text").items()} == {
        name: [vector.tolist()] for name, vector in vectors.items()
    }
    assert features.audio is None


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_of_vectors_is_read_as_opensmile_writes_it(tmp_path: Path, delimiter: str) -> None:
    rows = rows_of_table()
    header = delimiter.join(["name", "frameTime", "pcm_max", "pcm_min"])
    lines = [delimiter.join([f"'{row['id']}.wav'", "0.0", "0.25", f"{-index}"]) for index, row in enumerate(rows)]
    (tmp_path / "smile.csv").write_text("\n".join([header, *lines]) + "\n")
    rows = [{**row, "audio": f"wav/{row['id']}.flac"} for row in rows]
    imported, features = run(tmp_path, Given("audio", str(tmp_path / "smile.csv")), rows=rows)
    expected = {row["id"]: [[0.25, -float(index)]] for index, row in enumerate(rows)}
    assert {name: array.tolist() for name, array in by_id(features).items()} == expected
    assert "columns that are not features: frameTime" in imported.summary()
    assert "matched by recording's file name" in imported.summary()


VECTORS = np.arange(12 * DIM).reshape(12, DIM) / 7


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def cells_of(delimiter: str, number: int | None = None) -> list[str]:
    """The vectors as text, perhaps with the number of each row in front, counted from `number`."""
    counted = [[] if number is None else [number + row] for row in range(len(VECTORS))]
    return [delimiter.join(map(repr, [*own, *row])) for own, row in zip(counted, VECTORS.tolist(), strict=True)]


CSV_IN_TABLE_ORDER = {
    "as numpy writes it": lambda path: np.savetxt(path, VECTORS),
    "as numpy writes it with commas": lambda path: np.savetxt(path, VECTORS, delimiter=","),
    "with a header": lambda path: write_lines(path, "a;b;c;d", *cells_of(";")),
    "with a header of numbers": lambda path: write_lines(path, "0,1,2,3", *cells_of(",")),
    "as pandas writes it": lambda path: write_lines(path, ",0,1,2,3", *cells_of(",", 0)),
    "with rows counted from 1": lambda path: write_lines(path, "\ta\tb\tc\td", *cells_of("\t", 1)),
}


@pytest.mark.parametrize("form", CSV_IN_TABLE_ORDER)
def test_a_csv_of_vectors_in_the_order_of_the_table_is_read_as_the_same_array(tmp_path: Path, form: str) -> None:
    rows = rows_of_table()
    CSV_IN_TABLE_ORDER[form](tmp_path / "all.csv")
    np.save(tmp_path / "all.npy", VECTORS.astype(np.float32))
    written = []
    for name in ("all.csv", "all.npy"):
        run(tmp_path, Given("audio", str(tmp_path / name)), rows=rows)
        written.append((tmp_path / "out.h5").read_bytes())
    assert written[0] == written[1]


def test_float16_is_kept_and_a_parameter_changes_that(tmp_path: Path) -> None:
    rows = rows_of_table()
    arrays = arrays_of(rows, np.float16)
    given = in_npz(tmp_path, arrays)
    short = (run(tmp_path, given, rows=rows)[1]).audio
    long = (run(tmp_path, given, rows=rows, dtype="float32")[1]).audio
    assert short is not None
    assert long is not None
    assert (short.values.dtype, long.values.dtype) == (np.float16, np.float32)
    np.testing.assert_array_equal(np.asarray(short.values, np.float32), long.values)


def test_the_identity_says_imported_with_a_hash_of_the_values(tmp_path: Path) -> None:
    rows = rows_of_table()
    arrays = arrays_of(rows)
    first = run(tmp_path, in_npz(tmp_path, arrays), rows=rows)[1].audio
    arrays["u0-0"] = arrays["u0-0"] + 1
    other = run(tmp_path, in_npz(tmp_path, arrays), rows=rows)[1].audio
    assert first is not None
    assert other is not None
    assert first.identity.fields["model"] == "imported"
    assert len(first.identity.fields["values"]) == 64
    assert first.identity != other.identity


def test_a_manifest_is_a_table(tmp_path: Path) -> None:
    from pipeline.imports import import_features
    from pipeline.manifest import Utterance, write_manifest
    from pipeline.params import DatasetParams, ImportParams
    from pipeline.store import read_features

    records = [
        Utterance(id=f"{split}/0/0", conversation=f"{split}/0", turn=0, split=split, label="joy")  # type: ignore[arg-type]
        for split in ("train", "validation", "test")
    ]
    write_manifest(tmp_path / "manifest.jsonl", records)
    np.savez(tmp_path / "x.npz", **{record.id: np.ones((2, 3)) for record in records})  # type: ignore[arg-type]
    np.save(tmp_path / "x.npy", np.ones((3, 3)))  # without names, so their order is all there is
    for name in ("x.npz", "x.npy"):
        imported = import_features(
            tmp_path / "manifest.jsonl",
            [Given("text", str(tmp_path / name))],
            tmp_path / f"{name}.h5",
            ImportParams(),
            DatasetParams(),
        )
        assert read_features(tmp_path / f"{name}.h5").utterances.ids == [record.id for record in records]
        assert ("which is sorted by split, conversation and turn" in imported.summary()) == (name == "x.npy")


def test_padding_of_zeros_at_both_ends_is_taken_off_when_asked_for(tmp_path: Path) -> None:
    rows = rows_of_table()
    arrays = {name: np.abs(array) + 1 for name, array in arrays_of(rows).items()}
    arrays["u0-0"] = np.stack([np.ones(DIM), np.zeros(DIM), np.ones(DIM)]).astype(np.float32)
    for front in (False, True):
        values, _ = pad(list(arrays.values()), front=front)
        np.save(tmp_path / "padded.npy", values)
        found = by_id(run(tmp_path, Given("audio", str(tmp_path / "padded.npy")), rows=rows, padding="zeros")[1])
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
    kept = by_id(run(tmp_path, Given("audio", str(tmp_path / "padded.npy")), rows=rows, padding="keep")[1])
    assert {len(array) for array in kept.values()} == {values.shape[1]}


def test_holes_of_a_mask_are_closed_when_asked_for(tmp_path: Path) -> None:
    rows = rows_of_table()
    values = np.arange(len(rows) * 3 * DIM, dtype=np.float32).reshape(len(rows), 3, DIM)
    mask = np.array([[1, 0, 1]] * len(rows))
    np.savez(tmp_path / "x.npz", values=values, mask=mask)
    given = Given("audio", f"{tmp_path / 'x.npz'}:values", mask=f"{tmp_path / 'x.npz'}:mask")
    found = by_id(run(tmp_path, given, rows=rows, holes="close")[1])
    np.testing.assert_array_equal(found[rows[0]["id"]], values[0, [0, 2]])


def test_values_behind_the_length_are_told(tmp_path: Path) -> None:
    rows = rows_of_table()
    np.savez(tmp_path / "x.npz", values=np.ones((len(rows), 3, DIM)), lengths=np.full(len(rows), 2))
    given = Given("audio", f"{tmp_path / 'x.npz'}:values", lengths=f"{tmp_path / 'x.npz'}:lengths")
    imported, _ = run(tmp_path, given, rows=rows)
    assert f"{len(rows)} entries hold values behind their length" in imported.summary()


def test_utterances_without_features_stay_and_features_without_utterance_are_counted(tmp_path: Path) -> None:
    rows = rows_of_table()
    arrays = arrays_of(rows)
    del arrays["u0-0"]
    arrays["nobody"] = np.ones((1, DIM), np.float32)
    imported, features = run(tmp_path, in_npz(tmp_path, arrays), rows=rows)
    assert sorted(features.utterances.ids) == sorted(row["id"] for row in rows)
    assert len(by_id(features)["u0-0"]) == 0
    assert "audio: 1 utterances are not in it, their audio is empty: 'u0-0'" in imported.summary()
    assert "audio: 1 utterances are there with nothing in them: 'u3-1'" in imported.summary()
    assert "audio: 1 of its entries are no utterance: 'nobody'" in imported.summary()


def test_one_file_may_hold_both_modalities(tmp_path: Path) -> None:
    rows = rows_of_table()
    audio, text = arrays_of(rows), arrays_of(rows, seed=1)
    path = write_pickle(tmp_path / "both.pkl", {"a": audio, "t": {"b": text}})
    _, features = run(tmp_path, Given("audio", f"{path}:a"), Given("text", f"{path}:t/b"), rows=rows)
    for name in audio:
        np.testing.assert_array_equal(by_id(features)[name], audio[name])
        np.testing.assert_array_equal(by_id(features, "text")[name], text[name])
