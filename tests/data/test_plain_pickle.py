"""Pickles of data are read without running what they name."""

from __future__ import annotations

import builtins
import os
import pickle
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcdist.data.plain_pickle import read_plain_pickle
from dcdist.errors import UsageError

PLAIN = {
    "rows": np.arange(6).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big endian": np.array([1, 2**20], dtype=">i4"),
    "text": np.array(["ab", "c"]),
    "flags": np.array([True, False]),
    "none": np.array([]),
    "number": np.int64(-4),
    "half": np.float32(1.5),
    "list": [1, 2.5, "x", b"", b"\xe9", None, True, (1, 2)],
}
AS_LISTS = {
    "rows": [[0, 1, 2], [3, 4, 5]],
    "columns first": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
    "big endian": [1, 2**20],
    "text": ["ab", "c"],
    "flags": [True, False],
    "none": [],
    "number": -4,
    "half": 1.5,
    "list": [1, 2.5, "x", b"", b"\xe9", None, True, [1, 2]],
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_is_read_as_pickle_reads_it(tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "plain.pkl"
    file.write_bytes(pickle.dumps(PLAIN, protocol))
    assert read_plain_pickle(file) == AS_LISTS


@pytest.mark.parametrize("package", [b"numpy.core", b"numpy._core"])
def test_what_python_2_wrote(tmp_path: Path, package: bytes) -> None:
    """Its text, the content of its arrays too, are byte strings: opcode U, one byte of length."""
    array = b"".join(
        [
            b"c" + package + b".multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR",  # an empty array
            b"(K\x01K\x02\x85cnumpy\ndtype\n(U\x02i2K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89U\x04\xe9\x00\x02\x01tb",  # the bytes 233 0 2 1, two integers of 16 bits
        ]
    )
    file = tmp_path / "old.pkl"
    file.write_bytes(b"\x80\x02}U\x04easy" + array + b"s.")
    assert read_plain_pickle(file) == {"easy": [233, 258]}


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.reduced


def code(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()"


ATTACKS: dict[str, Callable[[Path], Any]] = {
    "posix.system": lambda marker: Calls(os.system, f"touch {marker}"),
    "builtins.eval": lambda marker: Calls(builtins.eval, code(marker)),
    "builtins.exec": lambda marker: Calls(builtins.exec, code(marker)),
    "subprocess.Popen": lambda marker: Calls(subprocess.Popen, ["touch", str(marker)]),
    "numpy.testing._private.utils.runstring": lambda marker: Calls(np.testing.runstring, code(marker), {}),
    "builtins.getattr": lambda marker: Calls(getattr, Calls(partial, open, str(marker), "w"), "func"),
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_that_a_pickle_names_is_run(tmp_path: Path, name: str, protocol: int) -> None:
    marker, file = tmp_path / "was-run", tmp_path / "gnd.pkl"
    file.write_bytes(pickle.dumps({"gnd": [1, ATTACKS[name](marker)]}, protocol))
    with pytest.raises(UsageError) as caught:
        read_plain_pickle(file)
    named = name
    if protocol <= 2:  # as Python 2 called them
        named = name.replace("builtins.", "__builtin__.").replace("subprocess.", "commands.")
    assert str(caught.value).startswith(f"{file} names {named}, which plain data has no use for: it was not called")
    assert not marker.exists()


def test_the_attacks_do_work_on_pickle_itself(tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    pickle.loads(pickle.dumps(ATTACKS["numpy.testing._private.utils.runstring"](marker)))
    assert marker.exists()


REFUSED: dict[str, tuple[bytes, str]] = {
    "text protocol": (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
    "instance": (b"(S'true'\nios\nsystem\n.", "os.system"),
    "attribute of what is allowed": (b"\x8c\x05numpy\x8c\x0edtype.__init__\x93.", "numpy.dtype.__init__"),
    "extension registry": (b"\x80\x02\x82\x01.", "unregistered extension code"),
    "persistent id": (b"Pany\n.", "persistent"),
    "a codec": (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x04\x00\x00\x00zliptR.", "codec 'zlip'"),
    "objects in an array": (b"cnumpy\ndtype\n(X\x01\x00\x00\x00OtR.", "dtype 'O'"),
    "fields in an array": (b"cnumpy\ndtype\n(X\x02\x00\x00\x00V8tR.", "dtype 'V8'"),
    "an array of another class": (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n)NtR.", "class of an array"),
    "too few bytes": (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\x00\x00\x00i8tRC\x02abtR.",
        "buffer",
    ),
    "an attribute set": (b"cnumpy.core.multiarray\nscalar\nN}X\x0c\x00\x00\x00__defaults__)s\x86b.", "AttributeError"),
    "cut off": (pickle.dumps(list(range(1000)))[:-300], "truncated"),
    "no pickle": (b"<html>302 Found</html>", "UnpicklingError"),
    "empty": (b"", "EOFError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_refused_is_named_with_the_reason(tmp_path: Path, name: str) -> None:
    content, reason = REFUSED[name]
    file = tmp_path / "gnd.pkl"
    file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_plain_pickle(file)
    assert str(caught.value).startswith(str(file))
    assert reason in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.pkl cannot be read"):
        read_plain_pickle(tmp_path / "none.pkl")
