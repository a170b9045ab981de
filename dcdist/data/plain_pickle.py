"""Reads pickles of plain data, such as data sets are published in, without running anything that the file names.

A pickle is a program: unpickled as usual it may call any function. Here every global that it names is refused, except
those with which NumPy's arrays and numbers are written, and for these stand-ins are called, which take numbers and
text alone (NumPy's own would take a dtype whose flags are made up, and so pointers). Nothing of NumPy is called with
what the file says but `frombuffer` with a dtype of fixed size.
"""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from dcdist.errors import UsageError

_PLAIN_DTYPE = re.compile(r"[biuf]\d{1,2}|[SU]\d{1,4}")
_ARRAY_CLASS = "numpy.ndarray"  # what stands for the class itself, which is only ever passed on


def read_plain_pickle(path: Path) -> Any:
    """Lists, dicts, text, numbers and arrays of numbers or text, as a pickle of Python 2 or 3 holds them.

    Returns:
        The content; arrays as lists, numbers of NumPy as Python's.

    Raises:
        UsageError: the file cannot be read, is no whole pickle, or names anything else; then nothing of it was run.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    try:
        # Text of Python 2 are bytes; latin1 keeps those of its arrays, too.
        loaded = _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
        return _unwrapped(loaded)
    except _RefusedError as error:
        raise UsageError(
            f"{path} names {error}, which plain data has no use for: it was not called, and the file is not read. "
            "Take the file from its publisher, or write its lists and numbers anew"
        ) from error
    except Exception as error:  # pickle's documentation: a damaged file may raise any
        raise UsageError(f"{path} is no pickle of plain data: {type(error).__name__}: {error}") from error


class _RefusedError(Exception):
    pass


class _Dtype:
    """A dtype of numbers or text, of a fixed size."""

    __slots__ = ("dtype",)

    def __init__(self, name: Any) -> None:
        if not (isinstance(name, str) and _PLAIN_DTYPE.fullmatch(name)):
            raise _RefusedError(f"arrays of dtype {name!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        """Of the state only the byte order says anything that the name does not."""
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array, which pickles create first and fill afterwards."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: Any = []

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, is_fortran, data = state
        self.fill(data, dtype, shape, "F" if is_fortran else "C")

    def fill(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        if not isinstance(dtype, _Dtype):
            raise _RefusedError(f"{dtype!r} as the dtype of an array")
        content = data.encode("latin1") if isinstance(data, str) else bytes(data)
        self.values = np.frombuffer(content, dtype.dtype).reshape(shape, order=order).tolist()


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # NumPy 2 renamed numpy.core to numpy._core
        stand_ins = {
            "__builtin__.bytes": self._no_bytes,
            "_codecs.encode": self._encode,
            "numpy.dtype": self._dtype,
            "numpy.ndarray": _ARRAY_CLASS,
            "numpy.core.multiarray._reconstruct": self._reconstruct,
            "numpy.core.multiarray.scalar": self._scalar,
            "numpy.core.numeric._frombuffer": self._frombuffer,
        }
        found = stand_ins.get(f"{module}.{name}".replace("numpy._core.", "numpy.core."))
        if found is None:
            raise _RefusedError(f"{module}.{name}")
        return found

    def _no_bytes(self) -> bytes:
        """How the old protocols write b""."""
        return b""

    def _encode(self, text: Any, encoding: Any) -> bytes:
        """How the old protocols write other bytes."""
        if not (isinstance(text, str) and encoding in ("latin1", "latin-1")):
            raise _RefusedError(f"the codec {encoding!r}")
        return text.encode("latin1")

    def _dtype(self, name: Any, *_flags: Any) -> _Dtype:
        return _Dtype(name)

    def _reconstruct(self, kind: Any, _shape: Any, _typecode: Any) -> _Array:
        if kind != _ARRAY_CLASS:
            raise _RefusedError(f"{kind!r} as the class of an array")
        return _Array()

    def _scalar(self, dtype: Any, data: Any) -> Any:
        array = _Array()
        array.fill(data, dtype, (), "C")
        return array.values

    def _frombuffer(self, data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
        array = _Array()
        array.fill(data, dtype, shape, order)
        return array


def _unwrapped(value: Any) -> Any:
    """The arrays within as lists."""
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, dict):
        return {key: _unwrapped(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_unwrapped(entry) for entry in value]
    return value
