"""The unpickler: plain containers and numpy come through, and nothing that a pickle asks for is run."""

import collections
import io
import os
import pickle
import pickletools
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.imports.unpickle import load

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def unpickle(content: bytes) -> Any:
    return load(io.BytesIO(content), "x.pkl")


class Asks:
    """Pickles to a call."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.asked = (call, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.asked


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_containers_come_through(protocol: int) -> None:
    content = {
        "texts": ["a", "é", b"bytes", b"", ""],
        7: (1, -(2**70), 0.5, float("inf"), True, None),
        "sets": [{1, 2}, frozenset([3]), set()],
        (1, "a"): {"deep": [[[]]]},
    }
    assert unpickle(pickle.dumps(content, protocol)) == content
    ordered = collections.OrderedDict([("b", 1), ("a", 2)])
    default = collections.defaultdict(list, {"x": [1]})
    assert unpickle(pickle.dumps([ordered, default], protocol)) == [dict(ordered), dict(default)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.arange(6.0).reshape(2, 3).T,
        np.arange(3, dtype=">f8"),
        np.arange(4, dtype=np.float16)[::2],
        np.array([True, False]),
        np.array(["a", "longer", "é"]),
        np.array([b"a", b"bytes"]),
        np.empty((0, 4), np.int64),
        np.array(3.5),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_come_through(array: np.ndarray, protocol: int) -> None:
    found, shared, again = unpickle(pickle.dumps([array, (shared := np.arange(3)), shared], protocol))
    assert (found.dtype.newbyteorder("="), found.shape) == (array.dtype.newbyteorder("="), array.shape)
    np.testing.assert_array_equal(found, array)
    assert shared is again


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scalars_and_arrays_of_objects_come_through(protocol: int) -> None:
    objects = np.array([None, "a", np.ones(2, np.float32)], object)
    found, number, text = unpickle(pickle.dumps([objects, np.float32(0.1), np.str_("a")], protocol))
    assert found.dtype == object
    assert found[:2].tolist() == [None, "a"]
    np.testing.assert_array_equal(found[2], np.ones(2))
    assert (number, number.dtype, text) == (np.float32(0.1), np.float32, "a")


def test_names_of_numpy_1_and_python_2_come_through() -> None:
    new = pickle.dumps({"a": np.arange(3.0), "b": {1}}, 2)
    old = new.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    found = unpickle(old)
    assert b"__builtin__" in old
    np.testing.assert_array_equal(found["a"], np.arange(3.0))
    # Python 2's bytes are its strings: a name, and the content of an array
    python2 = (
        b"\x80\x02}U\x04caf\xe9cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08" + struct.pack("<2f", 1.5, -2.0) + b"tbs."
    )
    assert {name: array.tolist() for name, array in unpickle(python2).items()} == {"café": [1.5, -2.0]}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("call", "arguments", "named"),
    [
        (os.system, ("touch MARK",), f"{os.name}.system"),
        (eval, ("open('MARK', 'w')",), "eval"),
        (exec, ("open('MARK', 'w')",), "exec"),
        (open, ("MARK", "w"), "io.open"),
        (getattr, ("", "join"), "getattr"),
        (os.mkdir, ("MARK",), "mkdir"),
        (np.load, ("x.npy",), "numpy.load"),
        (Path, ("x",), "Path"),
        (collections.Counter, (), "Counter"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_pickle_that_asks_for_code_is_refused_without_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Any, arguments: Any, named: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps({"features": [np.ones(3), Asks(call, *arguments)]}, protocol)
    with pytest.raises(DataError, match="it asks for .*" + named.rpartition(".")[2] + ".*nothing was run"):
        unpickle(content)
    assert list(tmp_path.iterdir()) == []


def test_the_pickle_would_have_run_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Asks(os.mkdir, "MARK")))
    assert (tmp_path / "MARK").is_dir()


def test_a_class_of_another_project_is_named() -> None:
    content = pickle.dumps(Asks(collections.Counter), 0).replace(b"collections\nCounter", b"cogmen.Sample\nSample")
    with pytest.raises(DataError, match=r"it asks for cogmen\.Sample\.Sample, which is not admitted"):
        unpickle(content)


FORGED = {
    "a dtype of objects that says it holds none": b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb",
    "a structured dtype": b"cnumpy\ndtype\n(S'V8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb",
}


@pytest.mark.parametrize("name", FORGED)
def test_bytes_are_never_taken_for_objects(name: str) -> None:
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\nt"
    content = array + FORGED[name] + b"I0\nS'AAAAAAAA'\ntb."
    pickletools.dis(content, io.StringIO())  # it is a pickle
    with pytest.raises(DataError, match="it holds an array"):
        unpickle(content)


@pytest.mark.parametrize(
    ("shape", "content"), [("(I4\nt", "ab"), ("(I-1\nt", ""), ("(I1000000000000\nt", ""), ("N", ""), ("(F1.5\nt", "a")]
)
def test_an_array_must_be_as_large_as_it_says(shape: str, content: str) -> None:
    head = "cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n"
    dtype = "cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
    with pytest.raises(DataError, match="it holds an array"):
        unpickle(f"{head}{shape}{dtype}I0\nS'{content}'\ntb.".encode())


def test_what_a_pickle_asked_for_cannot_be_changed_by_it() -> None:
    with pytest.raises(DataError, match="changes a name that it asked for"):
        unpickle(b"cbuiltins\nset\n}S'_make'\nI1\nsb.")
    assert unpickle(pickle.dumps({1})) == {1}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_pickle_is_an_error_of_ours_or_still_plain(data: st.DataObject) -> None:
    content = bytearray(pickle.dumps({"a": [np.arange(3.0), "text", {1: 2.0}]}, data.draw(st.sampled_from(PROTOCOLS))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(DataError):
        unpickle(bytes(content[: data.draw(st.integers(1, len(content)))]))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_an_error_of_ours_or_plain(content: bytes) -> None:
    with suppress(DataError):
        unpickle(content)
