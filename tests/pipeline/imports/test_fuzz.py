"""Hundreds of dirty inputs: each becomes a valid feature file with every turn of the table, or an error of ours."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import ErcError
from pipeline.imports.layout import Given
from tests.pipeline.imported import run, write_pickle

EXAMPLES = max(250, settings().max_examples)  # pytest --hypothesis-profile=thorough: a thousand
VALUES = st.sampled_from([0.0, 1.0, -2.5, 1e-9, 65_504.0, 1e5, 1e39, 1e308, float("nan"), float("inf"), -float("inf")])
CLEAN = st.sampled_from([0.0, 1.0, -2.5, 0.1])
DTYPES = st.sampled_from(["<f2", "<f4", "<f8", ">f4", "i1", "i8", "u2", "?"])
ODD = st.sampled_from(
    [
        *(
            None,
            0,
            1.5,
            "",
            "text",
            b"bytes",
            [],
            [[]],
            [[], []],
            [1, 2, 3],
            [[1, 2, 3]],
            [[1], [1, 2]],
            {},
            (),
            [None],
        ),
        *(np.zeros(0), np.zeros((0, 3)), np.zeros((0, 4)), np.zeros((2, 0)), np.zeros((1, 2, 3)), np.zeros((2, 2, 3))),
        *(np.array("text"), np.array([None]), np.zeros(3, complex), np.zeros((1,) * 9), np.array(["a", "b", "c"])),
        *(2**70, -1, float("nan"), {"a": [1, 2, 3]}, {1}, np.float32(1), np.array([[1, 2, 3]], object)),
    ]
)
SELDOM = st.sampled_from([False, False, False, False, False, True])
LABELS = st.sampled_from(["joy", "joy", "anger", "", "fear", "\x85", "\x00", "é"])
SPLITS = st.sampled_from(["train", "validation", "test", "dev", "", "tset"])


@st.composite
def arrays(draw: st.DrawFn, values: st.SearchStrategy[float], dims: list[int]) -> np.ndarray:
    """(rows, dim) of one of the `dims`."""
    rows, dim = draw(st.integers(0, 4)), draw(st.sampled_from(dims))
    numbers = draw(st.lists(values, min_size=rows * dim, max_size=rows * dim))
    dtype = np.dtype(draw(DTYPES))
    with np.errstate(all="ignore"):
        return np.array(numbers, np.float64).reshape(rows, dim).astype(dtype)


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of conversations in all splits; now and then something is wrong with one."""
    rows: list[dict[str, Any]] = []
    for conversation in range(draw(st.integers(3, 5))):
        split = ("train", "validation", "test")[conversation % 3]
        rows += [
            {"id": f"u{conversation}-{turn}", "conversation": f"c{conversation}", "turn": turn, "split": split}
            for turn in range(draw(st.integers(1, 3)))
        ]
    for row in rows:
        row["label"] = "joy"
    for _ in range(draw(st.integers(1, 2)) if draw(SELDOM) else 0):
        row = draw(st.sampled_from(rows))
        column = draw(st.sampled_from(["id", "conversation", "turn", "split", "label"]))
        row[column] = draw(
            {
                "id": st.sampled_from(["", "u0-0", "a/b", "\x01", "ü", "x" * 300]),
                "conversation": st.sampled_from(["c0", "c1", "", "new"]),
                "turn": st.sampled_from(["", "0", "1.5", "nan", "x", "-1"]),
                "split": SPLITS,
                "label": LABELS,
            }[column]
        )
    return draw(st.permutations(rows))


def to_npz(root: Path, named: dict[str, Any]) -> Path:
    np.savez(root / "x.npz", **{name: np.asarray(value) for name, value in named.items()})  # type: ignore[arg-type]
    return root / "x.npz"


def to_pickle(root: Path, named: dict[str, Any]) -> Path:
    return write_pickle(root / "x.pkl", named, protocol=2)


def to_list(root: Path, named: dict[str, Any]) -> Path:
    return write_pickle(root / "x.p", list(named.values()))


def to_conversations(root: Path, named: dict[str, Any]) -> Path:
    tree: dict[str, list[Any]] = {}
    for name, value in named.items():
        tree.setdefault(f"c{name[1:2]}", []).append(value)
    ids = {name: [f"{name}{turn}" for turn in range(len(values))] for name, values in tree.items()}
    labels = {name: [0] * len(values) for name, values in tree.items()}
    names = sorted(tree)
    return write_pickle(root / "x.pkl", (ids, ids, labels, tree, tree, tree, ids, names[:-1], names[-1:]))


def to_splits(root: Path, named: dict[str, Any]) -> Path:
    values, names = list(named.values()), list(named)
    splits = {
        split: {"audio": values[place::3], "id": names[place::3]}
        for place, split in enumerate(("train", "valid", "test"))
    }
    return write_pickle(root / "x.pkl", splits)


def to_hdf5(root: Path, named: dict[str, Any]) -> Path:
    with h5py.File(root / "x.h5", "w") as file:
        for name, value in named.items():
            file[name] = value
    return root / "x.h5"


def to_csv(root: Path, named: dict[str, Any]) -> Path:
    lines = [f"{name},{','.join(map(str, np.ravel(value)[:3]))}" for name, value in named.items()]
    (root / "x.csv").write_text("\n".join(["id,a,b,c", *lines]), errors="replace")
    return root / "x.csv"


def to_folder(root: Path, named: dict[str, Any]) -> Path:
    for old in (root / "x").glob("*.npy"):
        old.unlink()
    (root / "x").mkdir(exist_ok=True)
    for name, value in named.items():
        np.save(root / "x" / f"{name}.npy", value)
    return root / "x"


NAMED = (to_npz, to_pickle, to_list, to_conversations, to_splits, to_hdf5, to_csv, to_folder)


def damage(path: Path, draw: st.DrawFn) -> None:
    """Cut the file, or change bytes; HDF5 is only cut: its library can crash the process on changed bytes."""
    content = bytearray(path.read_bytes())
    if draw(st.booleans()):
        content = content[: draw(st.integers(0, len(content)))]
    elif path.suffix != ".h5":
        for _ in range(draw(st.integers(1, 3))):
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    path.write_bytes(content)


def draw_named(draw: st.DrawFn, root: Path, rows: list[dict[str, Any]], values: st.SearchStrategy[float]) -> Given:
    """A source with an entry an utterance, in one of the forms."""
    write: Callable[[Path, dict[str, Any]], Path] = draw(st.sampled_from(NAMED))
    names = list(dict.fromkeys(f"u{row['conversation'][1:]}-{row['turn']}" for row in rows))
    dims = [3, 2] if draw(SELDOM) else [3]
    named: dict[str, Any] = {name: draw(arrays(values, dims)) for name in names}
    for _ in range(draw(st.integers(1, 2)) if draw(SELDOM) else 0):
        named[draw(st.sampled_from([*names, "nobody", "c0", ""]))] = draw(ODD)
    if draw(SELDOM):
        named.pop(draw(st.sampled_from(list(named))))
    with suppress(TypeError, ValueError, OSError):  # what numpy or HDF5 cannot write, no user has
        return Given("audio", str(write(root, named)))
    return Given("audio", str(to_pickle(root, named)))


def draw_array(draw: st.DrawFn, root: Path, rows: list[dict[str, Any]], values: st.SearchStrategy[float]) -> Given:
    """A source of one array, with lengths, a mask or neither."""
    count, positions = len(rows) + (draw(st.sampled_from([1, -1])) if draw(SELDOM) else 0), draw(st.integers(0, 3))
    lengths = draw(st.lists(st.integers(0, positions), min_size=count, max_size=count))
    if draw(SELDOM):
        lengths = draw(
            st.sampled_from([lengths, [float(n) for n in lengths], [-1, *lengths], ["1"] * count, [1.5], []])
        )
    beside = draw(st.sampled_from(["n", "n", "m", "m", "", "nm"]))
    flat = "m" not in beside and draw(st.booleans())
    total = sum(n for n in lengths if isinstance(n, int) and n > 0)
    shape = (total, 3) if flat else (count, positions, 3)
    number = int(np.prod(shape))
    array = np.array(draw(st.lists(values, min_size=number, max_size=number))).reshape(shape)
    mask = np.arange(positions) < np.array(draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)))[:, None]
    mask = mask ^ np.array(
        draw(st.lists(st.booleans(), min_size=positions, max_size=positions)) if draw(SELDOM) else 0, bool
    )
    np.savez(root / "a.npz", x=array, n=np.array(lengths), m=mask.astype(draw(DTYPES)))
    path = root / "a.npz"
    return Given("audio", f"{path}:x", f"{path}:n" if "n" in beside else None, f"{path}:m" if "m" in beside else None)


@pytest.fixture(scope="module")
def tally() -> dict[str, int]:
    return {"files": 0, "refused": 0}


@pytest.mark.soak
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.data())
def test_dirty_input_becomes_a_whole_file_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, tally: dict[str, int], data: st.DataObject
) -> None:
    root = tmp_path_factory.getbasetemp() / "dirty"
    root.mkdir(exist_ok=True)
    (root / "out.h5").unlink(missing_ok=True)
    rows = data.draw(tables())
    values = data.draw(st.sampled_from([CLEAN, CLEAN, VALUES]))
    given_ = data.draw(st.sampled_from([draw_named, draw_named, draw_array]))(data.draw, root, rows, values)
    path = Path(given_.features.removesuffix(":x"))
    if path.is_file() and data.draw(SELDOM):
        damage(path, data.draw)
    params = {
        "dtype": data.draw(st.sampled_from(["auto", "auto", "float16", "float32"])),
        "not_finite": data.draw(st.sampled_from(["refuse", "zero"])),
        "padding": data.draw(st.sampled_from(["refuse", "zeros", "keep"])),
        "holes": data.draw(st.sampled_from(["refuse", "close"])),
    }
    table = None if data.draw(SELDOM) else rows
    try:
        _, features = run(root, given_, rows=table, strict=data.draw(SELDOM), **params)
    except ErcError as error:
        tally["refused"] += 1
        assert str(error).strip()  # noqa: PT017
        assert not list(root.glob("out.h5*"))
        return
    tally["files"] += 1
    assert features.audio is not None
    assert np.isfinite(features.audio.values).all()
    features.audio.check()
    if table is not None:
        assert len(features.utterances) == len(table)
        assert {row["id"].strip() for row in table} - {""} <= set(features.utterances.ids)


@pytest.mark.soak
def test_both_outcomes_were_common(tally: dict[str, int]) -> None:
    """Runs after the test above, in its process."""
    assert min(tally.values()) > EXAMPLES // 5, tally
