"""
Pickles of arrays, read without trusting them.

A pickle is a program that may call anything it can name. Here the few names that NumPy arrays need lead to stand-ins
of this module, which make arrays of plain numbers and texts from bytes, and every other name is an error.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

PLAIN_KINDS = "biufcSU"  # `numpy.dtype.kind` of numbers and texts
# what a broken program can run into, and no more than that: the stand-ins alone are called
BROKEN = (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError)


def read_array_pickle(path: str | Path) -> Any:
    """
    Reads a pickle of NumPy arrays and scalars, numbers, texts, None, and lists, tuples, sets and dicts of them. Byte
    strings of Python 2 become Latin-1 texts.

    Raises:
        ValueError: it names anything else (says what), or is no pickle.
    """
    with Path(path).open("rb") as file:
        unpickler = _ArrayUnpickler(file, encoding="latin1")
        try:
            return _finished(unpickler.load())
        except _RefusedError as error:
            advice = "nothing was loaded from it. Save plain NumPy arrays, as .npz for instance."
            raise ValueError(f"{path} holds {error}, which is no array: {advice}") from None
        except (*BROKEN, RecursionError, MemoryError) as error:
            raise ValueError(f"{path} is no pickle of arrays, or is broken: {error or type(error).__name__}") from error


class _RefusedError(Exception):
    """Names what a pickle wanted."""


class _Dtype:
    """Stands in for `numpy.dtype`, whose state a pickle may set at will."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        if isinstance(code, bytes):
            code = code.decode("latin1")
        if not isinstance(code, str) or (dtype := np.dtype(code)).kind not in PLAIN_KINDS + "O":
            raise _RefusedError(f"an array of the type {code!r}")
        self.dtype = dtype

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """(version, byte order, and three parts that are None but for structured types, …)."""
        if any(part is not None for part in state[2:5]):
            raise _RefusedError("an array of a structured type")
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for an array, which NumPy makes empty and fills later."""

    array: np.ndarray | None = None

    def __init__(self, *ignored: Any) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """(version, shape, dtype, Fortran order, bytes; of objects a list)."""
        _, shape, dtype, fortran, content = state
        order: Literal["F", "C"] = "F" if fortran else "C"
        if dtype.dtype.kind != "O":
            self.array = _from_bytes(content, dtype, shape, order)
        elif isinstance(content, list):
            objects = np.empty(len(content), object)
            objects[:] = [_finished(x) for x in content]
            self.array = objects.reshape(shape, order=order)
        else:
            raise _RefusedError("an array of objects that is no list")


def _from_bytes(content: Any, dtype: _Dtype, shape: Any, order: Literal["F", "C"]) -> np.ndarray:
    if dtype.dtype.kind == "O":
        raise _RefusedError("an array of objects as bytes")
    if isinstance(content, str):  # of Python 2
        content = content.encode("latin1")
    if not dtype.dtype.itemsize:  # of an empty text
        return np.full(shape, "", "U1")
    return np.frombuffer(content, dtype.dtype).reshape(shape, order=order)


_CLASSES = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("collections", "OrderedDict"): OrderedDict,
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")  # the second in old protocols
        for kind in (set, frozenset, bytes, bytearray, complex)
    },
}
_METHODS = {("_codecs", "encode"): "encode"}
for _package in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    _CLASSES[f"{_package}.multiarray", "_reconstruct"] = _Array
    _METHODS |= {(f"{_package}.multiarray", "scalar"): "scalar", (f"{_package}.numeric", "_frombuffer"): "from_buffer"}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) in _CLASSES:
            return _CLASSES[module, name]
        if (module, name) in _METHODS:  # not functions, whose defaults a pickle could set
            return getattr(self, _METHODS[module, name])
        raise _RefusedError(f"`{module}.{name}`")

    def scalar(self, dtype: _Dtype, content: Any) -> Any:
        return _from_bytes(content, dtype, (1,), "C")[0]

    def from_buffer(self, content: Any, dtype: _Dtype, shape: Any, order: Literal["F", "C"]) -> np.ndarray:
        return _from_bytes(content, dtype, shape, order)

    def encode(self, text: str, encoding: str) -> bytes:
        """Old protocols write bytes as an encoded text."""
        if encoding not in ("latin1", "latin-1"):
            raise _RefusedError(f"bytes in the encoding {encoding!r}")
        return text.encode("latin1")


def _finished(value: Any) -> Any:
    """With arrays in place of their stand-ins."""
    if isinstance(value, _Array):
        if value.array is None:
            raise ValueError("an array was begun and never filled")
        return value.array
    if isinstance(value, dict):
        return {key: _finished(x) for key, x in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(_finished(x) for x in value)
    if isinstance(value, _Dtype):
        return value.dtype
    return value
