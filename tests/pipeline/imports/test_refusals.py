"""What cannot be imported is refused with one line that says what, where and how to fix it, and leaves no file."""

import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.cli import import_app, inspect_app
from pipeline.errors import DataError, StoreError
from pipeline.imports.layout import Given
from tests.pipeline.imported import DIM, arrays_of, by_id, in_npz, rows_of_table, run, write_pickle
from tests.pipeline.made import write_params, write_rows
from tests.pipeline.test_bad_input import done, refusal

ROWS = rows_of_table()
COUNT = len(ROWS)


def arrays(**changed: np.ndarray | None) -> dict[str, Any]:
    made = {**arrays_of(ROWS), **{name.replace("_", "-"): array for name, array in changed.items()}}
    return {name: array for name, array in made.items() if array is not None}


def with_values(*values: float, dtype: Any = np.float32) -> np.ndarray:
    array = np.ones((3, DIM), dtype)
    array.flat[: len(values)] = values
    return array


def test_imported_features_are_replaced_only_where_that_is_said(tmp_path: Path) -> None:
    first, _ = run(tmp_path, in_npz(tmp_path, arrays()), rows=ROWS)
    written = (tmp_path / "out.h5").stat().st_mtime_ns
    assert run(tmp_path, in_npz(tmp_path, arrays()), rows=ROWS, overwrite=False)[0].digest == first.digest
    with pytest.raises(StoreError, match=r"out.h5: holds other features or labels; name another file .* --overwrite"):
        run(tmp_path, in_npz(tmp_path, arrays(u0_0=with_values(2.0))), rows=ROWS, overwrite=False)
    assert (tmp_path / "out.h5").stat().st_mtime_ns == written


def test_nan_and_infinite_values_are_counted_and_refused(tmp_path: Path) -> None:
    bad = arrays(u0_0=with_values(np.nan, np.nan, np.inf), u2_2=with_values(-np.inf))
    with pytest.raises(DataError, match=r"2 NaN and 2 infinite values in 2 utterances \('u0-0', 'u2-2'\)") as error:
        run(tmp_path, in_npz(tmp_path, bad), rows=ROWS)
    assert "--set import.not_finite=zero" in str(error.value)
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_they_are_zeros_where_that_is_asked_for(tmp_path: Path, dtype: Any) -> None:
    bad = {name: array.astype(dtype) for name, array in arrays_of(ROWS).items()}
    bad["u0-0"] = with_values(np.nan, 5.0, -np.inf, dtype=dtype)
    imported, features = run(tmp_path, in_npz(tmp_path, bad), rows=ROWS, not_finite="zero")
    assert by_id(features)["u0-0"][0].tolist() == [0, 5, 0, 1]
    assert features.audio is not None
    assert features.audio.identity.fields["not_finite"] == "zero"
    assert "zeros in place of 1 NaN and 1 infinite values in 1 utterances ('u0-0')" in imported.summary()
    np.testing.assert_array_equal(by_id(features)["u2-0"], bad["u2-0"].astype(np.float32))


def test_padding_that_is_not_finite_is_no_concern(tmp_path: Path) -> None:
    values = np.ones((COUNT, 3, DIM))
    values[:, 2] = np.nan
    np.savez(tmp_path / "x.npz", values=values, lengths=np.full(COUNT, 2))
    run(tmp_path, Given("audio", f"{tmp_path}/x.npz:values", lengths=f"{tmp_path}/x.npz:lengths"), rows=ROWS)


@pytest.mark.parametrize(
    ("array", "params", "expected"),
    [
        (with_values(1e39, dtype=np.float64), {}, r"'u0-0' holds 1e\+39, more than float32 can hold.*scale"),
        (
            with_values(-70_000),
            {"dtype": "float16"},
            r"'u0-0' holds -70000.0, more than float16.*import\.dtype: float32",
        ),
        (with_values(2**24 + 1, dtype=np.int64), {}, "'u0-0' holds integers beyond 16777216"),
        (np.ones((3, DIM + 1)), {}, r"'u\d-\d' has \d dimensions, but 'u\d-\d' has \d"),
        (np.ones((2, 3, DIM)), {}, r"'u0-0': expected \(rows, dim\) or a vector, found an array of shape \(2, 3, 4\)"),
        (np.array(1.0), {}, "found an array of shape"),
        (np.ones((2, 0)), {}, "2 rows without a dimension"),
        (np.array([["a"] * DIM]), {}, "expected numbers of at most 64 bits, found <U1"),
        (np.ones((2, DIM), complex), {}, "expected numbers, found complex128"),
        (np.zeros(2, [("a", "f4")]), {}, "expected numbers"),
        (np.zeros((2, DIM), np.longdouble), {}, "expected numbers of at most 64 bits"),
        (np.array([[1, 2], [3]], object), {}, "not an array of numbers"),
        (np.array(["2020-01-01"], "M8[D]"), {}, "expected numbers"),
    ],
)
def test_an_array_that_cannot_be_stored_is_named(
    tmp_path: Path, array: np.ndarray, params: dict[str, Any], expected: str
) -> None:
    with pytest.raises(DataError, match=expected):
        run(tmp_path, in_npz(tmp_path, arrays(u0_0=array)), rows=ROWS, **params)
    assert not list(tmp_path.glob("out.h5*"))


def test_values_that_float16_cannot_hold_apart_from_zero_are_refused_or_said(tmp_path: Path) -> None:
    tiny, some, few = (np.ones((3, 100)) for _ in range(3))
    tiny[:], some[:, :30], few[0, 0] = 1e-8, 1e-8, 1e-8
    zeros = np.where(np.arange(100) < 90, 0, tiny)
    for values in (tiny, zeros):
        with pytest.raises(DataError, match=r"audio: \d+ of \d+ values .* float16 rounds to zero .*: float32"):
            run(tmp_path, in_npz(tmp_path, dict.fromkeys(arrays(), values)), rows=ROWS, dtype="float16")
        run(tmp_path, in_npz(tmp_path, dict.fromkeys(arrays(), values)), rows=ROWS)  # float32
    for values, count in ((some, 1080), (few, 0), (np.zeros((3, 100)) + 1, 0)):
        imported, _ = run(tmp_path, in_npz(tmp_path, dict.fromkeys(arrays(), values)), rows=ROWS, dtype="float16")
        assert (f"note: audio: {count} of 3600 values" in imported.summary()) == bool(count)


def test_a_batch_of_one_is_one_utterance(tmp_path: Path) -> None:
    array = np.arange(3.0 * DIM).reshape(1, 3, DIM)
    _, features = run(tmp_path, in_npz(tmp_path, arrays(u0_0=array)), rows=ROWS)
    np.testing.assert_array_equal(by_id(features)["u0-0"], array[0])


def test_strict_refuses_what_does_not_fit_both_ways(tmp_path: Path) -> None:
    full = {name: np.ones((1, DIM)) for name in arrays()}
    run(tmp_path, in_npz(tmp_path, full), rows=ROWS, strict=True)
    with pytest.raises(DataError, match="1 entries are no utterance: 'nobody'; or leave --strict out"):
        run(tmp_path, in_npz(tmp_path, {**full, "nobody": np.ones((1, DIM))}), rows=ROWS, strict=True)
    with pytest.raises(DataError, match="1 utterances have no features: 'u3-1'; or leave --strict out"):
        run(tmp_path, in_npz(tmp_path, arrays()), rows=ROWS, strict=True)


def test_nothing_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of its 1 names, such as 'x', is an utterance, such as 'u0-0'"):
        run(tmp_path, in_npz(tmp_path, {"x": np.ones((1, DIM))}), rows=ROWS)
    with pytest.raises(DataError, match="no utterance has any features"):
        run(tmp_path, in_npz(tmp_path, {name: array[:0] for name, array in arrays().items()}), rows=ROWS)
    with pytest.raises(DataError, match="nothing to import"):
        run(tmp_path, rows=ROWS)


def test_groups_of_one_utterance_each_are_named_by_the_key_that_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "groups.h5"
    with h5py.File(path, "w") as file:
        for name, array in arrays().items():
            file[f"audio/{name}/features"] = array
    with pytest.raises(DataError, match="none of its") as error:
        run(tmp_path, Given("audio", f"{path}:audio"), rows=ROWS)
    key = str(error.value).rpartition(" ")[2]
    assert key == f"{path}:audio/*/features"
    _, features = run(tmp_path, Given("audio", key), rows=ROWS)
    assert by_id(features).keys() == {row["id"] for row in ROWS}


def test_the_key_of_groups_in_groups_is_named_too(tmp_path: Path) -> None:
    """As in .csd files."""
    path = tmp_path / "COVAREP.csd"
    with h5py.File(path, "w") as file:
        file["COVAREP/metadata/creator"] = [b"x"]
        for name, array in arrays().items():
            file[f"COVAREP/data/{name}/features"] = array
            file[f"COVAREP/data/{name}/intervals"] = np.zeros((len(array), 2))
    with pytest.raises(DataError, match="none of its") as error:
        run(tmp_path, Given("audio", str(path)), rows=ROWS)
    assert str(error.value).endswith(f" is named by {path}:COVAREP/data/*/features")


@pytest.mark.parametrize("name", ["arr_0", "features"])
def test_the_only_array_of_an_npz_is_taken_where_numpy_named_it_and_advised_otherwise(
    tmp_path: Path, name: str
) -> None:
    vectors = np.random.default_rng(0).normal(size=(COUNT, DIM)).astype(np.float32)
    path = save(tmp_path / "x.npz", **{name: vectors})
    if name != "arr_0":
        with pytest.raises(DataError, match=rf"a vector for each utterance, name it: {path}:{name}; if"):
            run(tmp_path, Given("audio", path), rows=ROWS)
        path = f"{path}:{name}"
    found = by_id(run(tmp_path, Given("audio", path), rows=ROWS)[1])
    for row, vector in zip(ROWS, vectors, strict=True):
        np.testing.assert_array_equal(found[row["id"]], vector[None])


def save(path: Path, **content: Any) -> str:
    np.savez(path, **content)
    return str(path)


@pytest.mark.parametrize(
    ("content", "lengths", "mask", "expected"),
    [
        ({"x": np.ones((COUNT + 1, DIM))}, None, None, f"{COUNT + 1} utterances, but the table has {COUNT} rows"),
        ({"x": np.ones((9, DIM)), "n": [1] * COUNT}, "n", None, f"add up to {COUNT} rows, but it has 9"),
        ({"x": np.ones((9, DIM)), "n": [-1] * COUNT}, "n", None, r"-1 \(number 1\) is no length"),
        ({"x": np.ones((9, DIM)), "n": [0.5] * COUNT}, "n", None, "0.5 .* is no length"),
        ({"x": np.ones((9, DIM)), "n": [np.nan] * COUNT}, "n", None, "nan .* is no length"),
        ({"x": np.ones((9, DIM)), "n": ["a"] * COUNT}, "n", None, "expected lengths, found texts such as 'a'"),
        ({"x": np.ones((9, DIM)), "n": np.ones((2, 2))}, "n", None, "expected one length an utterance"),
        ({"x": np.ones((COUNT, 2, DIM)), "n": [3] * COUNT}, "n", None, "number 1 is 3 long, but there are 2 positions"),
        ({"x": np.ones((COUNT, 2, DIM)), "n": [1]}, "n", None, f"1 lengths for {COUNT} utterances"),
        ({"x": np.ones((COUNT, 2, DIM)), "n": [1], "m": [1]}, "n", "m", "are both given"),
        (
            {"x": np.ones((COUNT, 2, DIM)), "m": np.ones((COUNT, 3))},
            None,
            "m",
            r"the mask is \(12, 3\), expected \(12, 2\)",
        ),
        ({"x": np.ones((COUNT, 2, DIM)), "m": np.ones((1, 2))}, None, "m", f"1 mask for {COUNT} utterances"),
        ({"x": np.ones((COUNT, 2, DIM)), "m": np.full((COUNT, 2), 2)}, None, "m", "other values than 0 and 1"),
        ({"x": np.ones((COUNT, 3, DIM)), "m": [[1, 0, 1]] * COUNT}, None, "m", "12 masks have holes, such as number 1"),
        ({"x": np.ones((COUNT, DIM)), "m": np.ones((COUNT, 2))}, None, "m", "a mask is for"),
        ({"x": np.ones((COUNT, 2, DIM))}, None, None, "is padded, and nothing says where utterances end"),
        ({"x": np.ones((COUNT, 2, 3, DIM))}, None, None, "several layers are not read"),
        ({"x": np.ones(COUNT)}, None, None, "one array of shape"),
    ],
)
def test_lengths_and_masks_must_fit(
    tmp_path: Path, content: dict[str, Any], lengths: str | None, mask: str | None, expected: str
) -> None:
    path = save(tmp_path / "x.npz", **content)
    given = Given("audio", f"{path}:x", lengths and f"{path}:{lengths}", mask and f"{path}:{mask}")
    with pytest.raises(DataError, match=expected):
        run(tmp_path, given, rows=ROWS)


@pytest.mark.parametrize("modality", ["audio", "text"])
@pytest.mark.parametrize(("key", "ids"), [(":x", False), ("", False), (":x", True)])
def test_rows_of_all_utterances_without_lengths_are_told_which_flag_is_missing(
    tmp_path: Path, modality: str, key: str, ids: bool
) -> None:
    """With and without the array's name in its file, and with ids beside it."""
    path = save(tmp_path / "x.npz", x=np.ones((5 * COUNT, DIM)))
    (tmp_path / "ids.txt").write_text("\n".join(row["id"] for row in ROWS))
    given = Given(modality, f"{path}{key}", ids=str(tmp_path / "ids.txt") if ids else None)
    with pytest.raises(DataError, match=f"holds the rows of all utterances, give --{modality}-lengths$"):
        run(tmp_path, given, rows=ROWS)


def test_the_flag_for_lengths_is_named_only_where_it_can_help(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", x=np.ones((3, 2, DIM)), n=[2, 2, 2], a=np.ones((2, DIM)))
    for given in (Given("audio", f"{path}:x", lengths=f"{path}:n"), Given("audio", path)):
        with pytest.raises(DataError, match=r"in the same order$|\(dataset\.columns\.id\)$"):
            run(tmp_path, given, rows=ROWS)


@pytest.mark.parametrize("name", ["x.npz", "x.csv", "x.pkl"])
@pytest.mark.parametrize("what", ["lengths", "mask", "ids"])
def test_what_describes_one_array_is_refused_beside_an_array_for_each_utterance(
    tmp_path: Path, name: str, what: str
) -> None:
    """Even where that file does not exist."""
    save(tmp_path / "x.npz", **arrays())
    write_pickle(tmp_path / "x.pkl", arrays())
    text(tmp_path, "x.csv", "\n".join(["id,a", *(f"{row['id']},0.5" for row in ROWS)]))
    given = Given("text", str(tmp_path / name), **{what: str(tmp_path / "nowhere.npy")})
    with pytest.raises(DataError, match=f"{name}: holds an array for each utterance.* leave --text-{what} out"):
        run(tmp_path, given, rows=ROWS)


@pytest.mark.parametrize(
    ("ids", "expected"), [("u0-0\n" * COUNT, "id 'u0-0' is given twice"), ("u0-0\n", f"1 ids for {COUNT} utterances")]
)
def test_ids_must_be_unique_and_complete(tmp_path: Path, ids: str, expected: str) -> None:
    (tmp_path / "ids.txt").write_text(ids)
    path = save(tmp_path / "x.npz", x=np.ones((COUNT, DIM)))
    with pytest.raises(DataError, match=expected):
        run(tmp_path, Given("audio", f"{path}:x", ids=str(tmp_path / "ids.txt")), rows=ROWS)


def cut_npz(root: Path) -> str:
    path = Path(save(root / "cut.npz", **arrays()))
    path.write_bytes(path.read_bytes()[:-40])
    return str(path)


def damaged_member(root: Path) -> str:
    path = Path(save(root / "crc.npz", **arrays()))
    content = bytearray(path.read_bytes())
    content[200] ^= 255
    path.write_bytes(content)
    return str(path)


def linked(root: Path) -> str:
    with h5py.File(root / "x.h5", "w") as file:
        file["u0-0"] = h5py.ExternalLink("/etc/passwd", "/")
    return str(root / "x.h5")


def stored_elsewhere(root: Path) -> str:
    secret = root / "secret.bin"
    secret.write_bytes(bytes(64))
    with h5py.File(root / "x.h5", "w") as file:
        file.create_dataset("u0-0", (2, 4), "f4", external=[(str(secret), 0, 32)])
    return str(root / "x.h5")


def virtual(root: Path) -> str:
    with h5py.File(root / "secret.h5", "w") as file:
        file["x"] = np.zeros((2, 4), "f4")
    layout = h5py.VirtualLayout((2, 4), "f4")
    layout[:] = h5py.VirtualSource(str(root / "secret.h5"), "x", (2, 4))
    with h5py.File(root / "x.h5", "w") as file:
        file.create_group("deep").create_virtual_dataset("u0-0", layout)
    return str(root / "x.h5")


def looped(root: Path) -> str:
    with h5py.File(root / "x.h5", "w") as file:
        file.create_group("a")["b"] = file["/"]
    return str(root / "x.h5")


def packed(root: Path) -> str:
    """300 MB of zeros in a third of one."""
    with zipfile.ZipFile(root / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("u0-0.npy", "w") as file:
        np.lib.format.write_array(file, np.zeros((75_000_000, 1), "f4"))
    return str(root / "x.npz")


def claimed(root: Path) -> str:
    with h5py.File(root / "x.h5", "w") as file:
        file.create_dataset("u0-0", (1 << 28, 5), "f4", chunks=(1 << 16, 5), compression="gzip")
    return str(root / "x.h5")


def folder_of(root: Path, *names: str) -> str:
    for name in names:
        (root / "made" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "made" / name).write_text("x")
    return str(root / "made")


def text(root: Path, name: str, content: str) -> str:
    (root / name).write_text(content)
    return str(root / name)


BAD_FILES: dict[str, tuple[Any, str]] = {
    "missing": (lambda root: str(root / "x.npz"), "no such file or folder"),
    "unknown ending": (lambda root: text(root, "x.mat", ""), r"not a kind of file that is read: \.npy"),
    "text as npy": (lambda root: text(root, "x.npy", "hello"), "cannot be read"),
    "text as npz": (lambda root: text(root, "x.npz", "hello"), "cannot be read"),
    "text as h5": (lambda root: text(root, "x.h5", "hello"), "cannot be read"),
    "text as pickle": (lambda root: text(root, "x.pkl", "hello"), "not a readable pickle"),
    "text as tensors": (lambda root: text(root, "x.pt", "hello"), "cannot be read|holds more than tensors"),
    "empty pickle": (lambda root: text(root, "x.pkl", ""), "not a readable pickle, truncated or damaged"),
    "cut npz": (cut_npz, "cannot be read"),
    "damaged member": (damaged_member, "cannot be read"),
    "empty folder": (lambda root: folder_of(root, ".hidden"), "no file of .npy"),
    "folder of text": (
        lambda root: folder_of(root, "a.csv", "b.csv", "c.txt"),
        r"no file of \.npy.* it holds 2 of \.csv, 1 of \.txt: convert these",
    ),
    "a list of dicts": (
        lambda root: str(write_pickle(root / "x.pkl", [{"id": row["id"], "audio": [1.0]} for row in ROWS])),
        "is a list of 12 dicts with 'id', 'audio'; .* save a dict instead, from the id of each to its array",
    ),
    "folder with a name twice": (lambda root: folder_of(root, "a.npy", "a.pt"), "'a' is there twice"),
    "folder with text as npy": (lambda root: folder_of(root, "u0-0.npy"), "cannot be read"),
    "links": (linked, "'/u0-0' is a link, which is not followed"),
    "external storage": (stored_elsewhere, "'/u0-0' takes its bytes from other files"),
    "virtual data sets": (virtual, "'/deep/u0-0' takes its bytes from other files"),
    "packed zeros": (packed, r"x\.npz: 0\.3 GB that take 0\.3 MB in the file, so it is almost empty"),
    "rows that are nowhere": (claimed, r"'/u0-0': 5\.4 GB that take 0\.0 MB in the file"),
    "a huge number": (lambda root: str(write_pickle(root / "x.pkl", 1 << 99_999)), r"holds int\(\.\.\), no features"),
    "a huge name": (lambda root: str(write_pickle(root / "x.pkl", {1 << 99_999: [1]})), r"int\(\.\.\) is no name"),
    "a circle": (looped, "groups lie more than 16 deep"),
    "a number": (lambda root: str(write_pickle(root / "x.pkl", 7)), "holds 7, no features"),
    "a key that is not there": (lambda root: f"{save(root / 'x.npz', a=[1])}:b", "there is no 'b'; it has a"),
    "names alike": (lambda root: str(write_pickle(root / "x.pkl", {1: [1], "1": [1]})), "two arrays are called '1'"),
    "a name that is none": (lambda root: str(write_pickle(root / "x.pkl", {(1, 2): [1]})), r"\(1, 2\) is no name"),
    "deep dicts": (lambda root: str(write_pickle(root / "x.pkl", deep())), "more than 16 deep"),
    "csv without names": (lambda root: text(root, "x.csv", "a,b\n1,2\n"), r"1 utterances, but the table has \d+ rows"),
    "csv with names in a column of its own": (
        lambda root: text(root, "x.csv", "clip,b\nu0-0,2\n"),
        r"'clip' is 'u0-0', not a number; name the column that names the utterances \(.*:COLUMN\)",
    ),
    "csv without names with short rows": (lambda root: text(root, "x.csv", "1,2\n1\n"), "line 2: 1 cells, expected 2"),
    "csv without numbers": (
        lambda root: text(root, "x.csv", "id\nu0-0\n"),
        "no column is left that is a feature: id desc",
    ),
    "csv with words": (lambda root: text(root, "x.csv", "id,a\nu0-0,b\n"), "line 2: 'a' is 'b', not a number"),
    "csv with short rows": (lambda root: text(root, "x.csv", "id,a,b\nu0-0,1\n"), "line 2: 2 cells, expected 3"),
    "csv with a name twice": (lambda root: text(root, "x.csv", "id,a\nu,1\nu,2\n"), "line 3: 'u' is given twice"),
    "csv with a column twice": (lambda root: text(root, "x.csv", "id,a,a\nu,1,2\n"), "'a' is given twice"),
    "csv with an open quote": (lambda root: text(root, "x.csv", 'id,a\n"u,1\n'), "quote is not closed"),
    "csv with an empty name": (lambda root: text(root, "x.csv", "id,a\n,1\n"), "column 'id' is empty"),
    "csv without anything": (lambda root: text(root, "x.csv", ""), "holds no rows"),
    "csv with an empty cell": (lambda root: text(root, "x.csv", "id,a\nu0-0,\n"), "1 NaN and 0 infinite"),
}


def deep() -> dict[str, Any]:
    made: dict[str, Any] = {"x": [1]}
    for _ in range(20):
        made = {"x": made}
    return made


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    make, expected = BAD_FILES[name]
    with pytest.raises(DataError, match=expected) as error:
        run(tmp_path, Given("audio", make(tmp_path)), rows=ROWS)
    assert str(tmp_path) in str(error.value) or name == "csv with an empty cell"


def test_two_utterances_cannot_share_features(tmp_path: Path) -> None:
    rows = [{**row, "id": "", "audio": "one.wav"} for row in ROWS]
    with pytest.raises(DataError, match=r"'one\.npy'|'one' would belong to 12 utterances"):
        run(tmp_path, in_npz(tmp_path, {"one": np.ones((1, DIM))}), rows=rows)


def project(root: Path) -> list[str]:
    write_rows(root / "table.csv", ROWS)
    write_params(root / "params.yaml", dataset={"split": "given"})
    return ["--params", str(root / "params.yaml"), "--table", str(root / "table.csv"), "--output", str(root / "out.h5")]


def test_the_command_prints_what_it_found_and_inspect_reads_its_file(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", **arrays())
    printed = done(import_app, [*project(tmp_path), "--audio", path])
    assert printed.splitlines()[-1].startswith(f"{tmp_path / 'out.h5'}: {COUNT} utterances, digest ")
    told = done(inspect_app, [str(tmp_path / "out.h5"), "--verify"])
    assert "every utterance matches its checksum" in told
    assert "model: imported" in told
    assert str(tmp_path) not in told


def test_the_command_refuses_with_one_line(tmp_path: Path) -> None:
    arguments = project(tmp_path)
    path = save(tmp_path / "x.npz", **arrays())
    assert "nothing to import" in refusal(import_app, arguments)
    assert "give --text too" in refusal(import_app, [*arguments, "--audio", path, "--text-lengths", path])
    assert "name another --output" in refusal(import_app, [*arguments, "--audio", path, "--output", path])
    assert "did you mean 'zero'?" in refusal(
        import_app, [*arguments, "--audio", path, "--set", "import.not_finite=zeros"]
    )


@pytest.mark.parametrize(
    ("table", "expected"),
    [("nowhere.csv", "nowhere.csv: no such table; fix --table"), ("x.npz", "x.npz: a table must end in .csv, .tsv")],
)
def test_a_table_that_is_none_is_blamed_on_its_flag(tmp_path: Path, table: str, expected: str) -> None:
    arguments = [*project(tmp_path), "--audio", save(tmp_path / "x.npz", **arrays())]
    line = refusal(import_app, [*arguments, "--table", str(tmp_path / table)])
    assert expected in line
    assert "dataset.table" not in line


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_tries_to_run_code_is_refused_by_the_command(tmp_path: Path, protocol: int) -> None:
    import os

    from tests.pipeline.imports.test_unpickle import Asks

    path = write_pickle(tmp_path / "x.pkl", {"u0-0": Asks(os.mkdir, str(tmp_path / "MARK"))}, protocol)
    line = refusal(import_app, [*project(tmp_path), "--audio", str(path)])
    assert "x.pkl: it asks for posix.mkdir, which is not admitted" in line
    assert not (tmp_path / "MARK").exists()


def test_objects_in_npy_npz_and_tensors_run_no_code_either(tmp_path: Path) -> None:
    import os

    import torch

    from tests.pipeline.imports.test_unpickle import Asks

    objects = np.array([Asks(os.mkdir, str(tmp_path / "MARK"))], object)
    np.save(tmp_path / "x.npy", objects)
    np.savez(tmp_path / "x.npz", **{"u0-0": objects})
    torch.save({"u0-0": objects[0]}, tmp_path / "x.pt")
    for name in ("x.npy", "x.npz", "x.pt"):
        with pytest.raises(DataError, match=r"asks for posix\.mkdir"):
            run(tmp_path, Given("audio", str(tmp_path / name)), rows=ROWS)
    assert not (tmp_path / "MARK").exists()
