"""
Pickles of arrays, read without trusting them.

A pickle is a program that may call anything it can name. Here the few names that NumPy arrays need lead to stand-ins
of this module, which make arrays of plain numbers and texts from bytes, and every other name is an error. A program of
a few bytes can also ask for any amount of memory: it is looked through before it runs, and what it made is counted.
"""

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

PLAIN_KINDS = "biufcSU"  # `numpy.dtype.kind` of numbers and texts
MOST_PER_BYTE, MOST_ANYWAY = 64, 2**16
"""How many numbers and other things a file may hold: what it names several times counts each time."""

SIZED = ("PUT", "BINPUT", "LONG_BINPUT", "FRAME")
# what a broken program can run into, and no more than that: the stand-ins alone are called
BROKEN = (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError)


def read_array_pickle(path: str | Path) -> Any:
    """
    Reads a pickle of NumPy arrays and scalars, numbers, texts, None, and lists, tuples, sets and dicts of them. Byte
    strings of Python 2 become Latin-1 texts.

    Raises:
        ValueError: it names anything else (says what), asks for more memory than its size can need, or is no pickle.
    """
    program = Path(path).read_bytes()
    try:
        _check_sizes(program)
        return _Finisher(MOST_PER_BYTE * len(program) + MOST_ANYWAY)(
            _ArrayUnpickler(io.BytesIO(program), encoding="latin1").load()
        )
    except _RefusedError as error:
        advice = "nothing was loaded from it. Save plain NumPy arrays, as .npz for instance."
        raise ValueError(f"{path} holds {error}, which is no array: {advice}") from None
    except (*BROKEN, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} is no pickle of arrays, or is broken: {reason}") from error


def _check_sizes(program: bytes) -> None:
    """
    Raises `ValueError` for a size or a place in the memo that is larger than the program: `pickle` would take memory
    for it at once.
    """
    for opcode, argument, position in pickletools.genops(io.BytesIO(program)):  # which reads no further than there is
        if opcode.name in SIZED and argument > len(program):
            raise ValueError(f"it asks for {argument:,} places at byte {position}, and has {len(program):,} bytes")


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
            objects[:] = content
            self.array = objects.reshape(shape, order=order)
        else:
            raise _RefusedError("an array of objects that is no list")


def _from_bytes(content: Any, dtype: _Dtype, shape: Any, order: Literal["F", "C"]) -> np.ndarray:
    if dtype.dtype.kind == "O":
        raise _RefusedError("an array of objects as bytes")
    if isinstance(content, str):  # of Python 2
        content = content.encode("latin1")
    if not dtype.dtype.itemsize:  # of an empty text
        return np.broadcast_to(np.array("", "U1"), shape)
    return np.frombuffer(content, dtype.dtype).reshape(shape, order=order)


_CLASSES = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("collections", "OrderedDict"): OrderedDict,
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")  # the second in old protocols
        for kind in (set, frozenset, complex)
    },
}
_METHODS = {("_codecs", "encode"): "encode"}
for _module in ("builtins", "__builtin__"):
    _METHODS |= {(_module, name): "as_bytes" for name in ("bytes", "bytearray")}
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

    def as_bytes(self, content: Any = b"", encoding: str = "latin1") -> bytes:
        if isinstance(content, int):  # so many zeros
            raise _RefusedError(f"{content:,} bytes that it does not have")
        return self.encode(content, encoding) if isinstance(content, str) else bytes(content)

    def encode(self, text: str, encoding: str) -> bytes:
        """Old protocols write bytes as an encoded text."""
        if encoding not in ("latin1", "latin-1"):
            raise _RefusedError(f"bytes in the encoding {encoding!r}")
        return text.encode("latin1")


class _Finisher:
    """Puts arrays in place of their stand-ins, and counts what there is."""

    def __init__(self, most: int) -> None:
        self.most = self.left = most

    def __call__(self, value: Any) -> Any:
        self._count(1)
        if isinstance(value, _Array):
            if value.array is None:
                raise ValueError("an array was begun and never filled")
            value = value.array
        if isinstance(value, np.ndarray):
            self._count(value.size)
            if value.dtype.kind != "O":
                return value
            objects = np.empty(value.size, object)
            objects[:] = [self(x) for x in value.reshape(-1).tolist()]
            return objects.reshape(value.shape)
        if isinstance(value, dict):
            return {key: self(x) for key, x in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return type(value)(self(x) for x in value)
        if isinstance(value, _Dtype):
            return value.dtype
        return value

    def _count(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise ValueError(f"it unfolds to more than {self.most:,} numbers, texts and lists")
