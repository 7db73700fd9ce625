"""Pickles, read without running what they ask for.

A pickle is a program: it may name any function of any module and have it called. This reader knows a literal table of
names, which it meets with functions of its own: plain containers, and numpy's arrays, dtypes and scalars. Any other
name is refused before anything is called. Not even numpy's own functions are lent: a forged dtype could make them take
plain bytes for addresses of objects, so dtypes are made anew from their code letters, and sizes are checked first.

Python 2 wrote many published files: its strings are read as Latin-1, as numpy's documentation advises.
"""

import math
import pickle
import re
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from pipeline.errors import DataError

NUMBERS = re.compile(r"(?:[fiub][1248]|[?])")  # codes of dtypes that are admitted, as numpy writes them ...
OTHERS = re.compile(r"O8?|O4|[US][0-9]{1,6}")  # ... and of objects, texts and bytes
STEP = "save it as plain lists, dicts and numpy arrays, or as .npz"


class Refused(pickle.UnpicklingError):
    """What the pickle asks for is not admitted."""


def load(file: BinaryIO, where: str) -> Any:
    """The object in an open pickle.

    Raises:
        DataError: it asks for a class or function that is not admitted (which is named, and was not called), or is
            damaged.
    """
    try:
        return _Unpickler(file, encoding="latin1").load()
    except Refused as refused:
        raise DataError(f"{where}: {refused}") from None
    except Exception as error:  # whatever damaged bytes lead to
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{where}: not a readable pickle, truncated or damaged ({reason}); copy it anew") from None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        admitted = ADMITTED.get((_modern(module), name))
        if admitted is None:
            raise Refused(
                f"it asks for {module}.{name}, which is not admitted: pickles can run code, so only numpy arrays and "
                f"plain containers are read, and nothing was run; {STEP}"
            )
        return _Admitted(admitted)


def _modern(module: str) -> str:
    """Python 3's name of a module of Python 2, and numpy 2's of one of numpy 1."""
    return {"__builtin__": "builtins"}.get(module, module.replace("numpy.core.", "numpy._core."))


class _Admitted:
    """Stands for a name of the pickle: it can be called, and nothing else can be done to it."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise Refused(f"it changes a name that it asked for; {STEP}")


class _Dtype:
    """A dtype of numbers, texts or objects; its state beyond the byte order is not looked at."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any) -> None:
        code = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not (NUMBERS.fullmatch(code) or OTHERS.fullmatch(code)):
            raise Refused(f"it holds an array of dtype {code!r:.40}; expected numbers or texts")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        order = order.decode("latin1") if isinstance(order, bytes) else order
        if order not in ("<", ">", "|", "="):
            raise Refused("it holds a dtype without a byte order")
        self.order = order

    def real(self) -> np.dtype:
        """The dtype itself."""
        code = "O" if self.code.startswith("O") else self.code
        return np.dtype(code) if code == "O" else np.dtype(code).newbyteorder(self.order)  # type: ignore[arg-type]


class _Array(np.ndarray):
    """An array whose content follows."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise Refused("it holds an array of another make than numpy's")
        shape, dtype, fortran, content = state[-4:]
        shape = _shape(shape)
        real = _real(dtype)
        if real.hasobject:
            if not isinstance(content, list) or len(content) != math.prod(shape):
                raise Refused("it holds an array whose objects are not as many as its shape says")
        else:
            content = _content(content, real, shape)
        super().__setstate__((1, shape, real, bool(fortran), content))  # type: ignore[arg-type]


def _reconstruct(*_: Any) -> np.ndarray:
    return np.ndarray.__new__(_Array, (0,))


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> np.ndarray:
    shape, real = _shape(shape), _real(dtype)
    if real.hasobject:
        raise Refused("it holds objects in a buffer")
    flat = np.frombuffer(_content(buffer, real, shape), real)
    return flat.reshape(shape, order="F" if order == "F" else "C").view(_Array)


def _scalar(dtype: Any, content: Any = b"", *_: Any) -> Any:
    real = _real(dtype)
    if real.hasobject:
        raise Refused("it holds an object as a number")
    return np.frombuffer(_content(content, real, ()), real)[0]


def _real(dtype: Any) -> np.dtype:
    if not isinstance(dtype, _Dtype):
        raise Refused("it holds an array without a dtype")
    return dtype.real()


def _shape(shape: Any) -> tuple[int, ...]:
    """A shape that can be trusted."""
    plain = isinstance(shape, tuple) and len(shape) <= 32
    if not plain or not all(type(axis) is int and 0 <= axis < 2**48 for axis in shape):
        raise Refused("it holds an array without a shape")
    return shape


def _content(content: Any, dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The bytes of an array, as many as it needs."""
    if isinstance(content, str):  # Python 2's bytes
        content = content.encode("latin1")
    expected = dtype.itemsize * math.prod(shape)
    if not isinstance(content, bytes | bytearray) or len(content) != expected:
        raise Refused(f"it holds an array whose content is not the {expected} bytes that its shape says")
    return bytes(content) if isinstance(content, bytearray) else content


def _encode(text: Any, encoding: Any) -> bytes:
    """How old protocols write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused("it encodes a text in a way that is not admitted")
    return text.encode("latin1")


def _bytes(content: Any = b"", encoding: Any = "latin1", *_: Any) -> bytes:
    return _encode(content, encoding) if isinstance(content, str) else _container(bytes)(content)


def _container(kind: Callable[..., Any]) -> Callable[..., Any]:
    """`kind` from at most one plain list, tuple or text."""

    def make(content: Any = (), *_: Any) -> Any:
        if not isinstance(content, list | tuple | dict | bytes | str):
            raise Refused("it makes a container of something that is not one")
        return kind(content) if content else kind()

    return make


ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("builtins", "set"): _container(set),
    ("builtins", "frozenset"): _container(frozenset),
    ("builtins", "list"): _container(list),
    ("builtins", "dict"): _container(dict),
    ("builtins", "bytes"): _bytes,
    ("builtins", "bytearray"): _bytes,
    ("collections", "OrderedDict"): _container(dict),
    ("collections", "defaultdict"): lambda *_: {},  # its items follow; what it would make of new keys is not needed
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _reconstruct,
    ("numpy", "dtype"): _Dtype,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
}
