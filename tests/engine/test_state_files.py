"""States go through files bit by bit; rows are dealt out anew."""

from __future__ import annotations

import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dcdist.distributed.rows import KeyedRows, StoredRows
from dcdist.engine.state_files import (
    HashingWriter,
    flatten,
    read_state,
    unflatten,
    write_json,
    write_tensors,
)


def through_files(state: dict[str, Any], folder: Path) -> Any:
    flat = flatten(state)
    with (folder / "s.json").open("wb") as handle:
        write_json(flat.tree, HashingWriter(handle))
    with (folder / "s.safetensors").open("wb") as handle:
        write_tensors(flat.tensors, HashingWriter(handle))
    return read_state("s", {path.name: path for path in folder.iterdir()})


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


TENSORS = {
    "float64": torch.tensor([math.pi, math.nan, math.inf, -0.0], dtype=torch.float64),
    "float32": torch.tensor([[1e-45, -math.inf], [math.nan, 3.5]]),
    "float16": torch.tensor([65504.0, 6e-8], dtype=torch.float16),
    "bfloat16": torch.tensor([3e38, math.nan, -0.0], dtype=torch.bfloat16),
    "int64": torch.tensor([2**63 - 1, -(2**63)]),
    "int32": torch.tensor([-7], dtype=torch.int32),
    "int16": torch.tensor([[-300]], dtype=torch.int16),
    "int8": torch.tensor([-128, 127], dtype=torch.int8),
    "uint8": torch.arange(3, dtype=torch.uint8),
    "bool": torch.tensor([[True, False, True]]),
    "0-d": torch.tensor(2.5, dtype=torch.bfloat16),
    "empty": torch.empty(0, 3, dtype=torch.int16),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "expanded": torch.tensor([1.5]).expand(4),
    "slice": torch.arange(10)[3:8:2],
    "channels_last": torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_comes_back_bit_by_bit(name: str, tmp_path: Path) -> None:
    found = through_files({"x": TENSORS[name]}, tmp_path)["x"]
    assert (found.dtype, found.shape, found.requires_grad) == (TENSORS[name].dtype, TENSORS[name].shape, False)
    assert bits(found) == bits(TENSORS[name].detach())


def test_all_tensors_in_one_file_which_the_library_reads(tmp_path: Path) -> None:
    found = through_files(TENSORS, tmp_path)
    by_library = safetensors.torch.load_file(tmp_path / "s.safetensors")
    assert found.keys() == by_library.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert bits(found[name]) == bits(by_library[name]) == bits(tensor.detach())


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    found = through_files({"whole": whole, "same": whole, "part": whole[2:4]}, tmp_path)
    assert found["whole"].tolist() == found["same"].tolist() == [0, 1, 2, 3, 4, 5]
    assert found["part"].tolist() == [2, 3]
    found["same"][0] = 9
    assert found["whole"][0] == 0


VALUES: dict[str, Any] = {
    "plain": [
        None,
        True,
        False,
        0,
        -(2**70),
        0.1,
        1e-320,
        "",
        "\u00e9\n\ud83d\ude00".encode("utf-16", "surrogatepass")[2:].hex(),
    ],
    "nested": {"a": {"b": [[], {}, [{"c": 1}]]}},
    "odd keys": {0: "int", "0": "str", None: 1, True: 2, 1.5: {"$x": 3}},
    "$tensor": "not a reference",
    "a dict that looks like one": {"$tensor": "name", "$rows": "name", "$float": "nan", "$items": []},
    "order": {"z": 1, "a": 2},
}


def test_json_values_come_back_as_they_were(tmp_path: Path) -> None:
    found = through_files(VALUES, tmp_path)
    assert repr(found) == repr(VALUES)
    assert [type(value) for value in found["plain"]] == [type(value) for value in VALUES["plain"]]
    assert list(found["order"]) == ["z", "a"]


def test_floats_that_json_lacks_and_tuples(tmp_path: Path) -> None:
    found = through_files({"x": (math.nan, math.inf, -math.inf, (1, 2))}, tmp_path)
    assert math.isnan(found["x"][0])
    assert found["x"][1:] == [math.inf, -math.inf, [1, 2]]
    assert b"NaN" not in (tmp_path / "s.json").read_bytes()


def test_names_that_meet(tmp_path: Path) -> None:
    found = through_files({"a/b": torch.tensor(1), "a": {"b": torch.tensor(2)}, "a/b'": torch.tensor(3)}, tmp_path)
    assert (found["a/b"], found["a"]["b"], found["a/b'"]) == (1, 2, 3)


def test_an_optimizer_and_a_module(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.arange(12.0).reshape(4, 3)).square().sum().backward()
    optimizer.step()
    found = through_files({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path)
    other = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    other.load_state_dict(found["model"])
    other_optimizer = torch.optim.AdamW(other.parameters())
    other_optimizer.load_state_dict(found["optimizer"])
    assert all(torch.equal(other.state_dict()[name], value) for name, value in model.state_dict().items())
    assert all(
        torch.equal(other_optimizer.state_dict()["state"][index][key], value)
        for index, entries in optimizer.state_dict()["state"].items()
        for key, value in entries.items()
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, "'a/b/1': a set is neither"),
        (b"bytes", "'a/b/1': a bytes is neither"),
        (torch.tensor([1j]), r"'a/b/1': a tensor of torch.complex64"),
        (torch.eye(2).to_sparse(), r"'a/b/1': a tensor of torch.float32, torch.sparse_coo"),
    ],
)
def test_what_cannot_be_stored_is_named(value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        flatten({"a": {"b": [0, value]}})


def test_size_and_checksum_are_those_of_the_file() -> None:
    handle = io.BytesIO()
    writer = HashingWriter(handle)
    write_tensors(TENSORS, writer)
    written = handle.getvalue()
    assert writer.stored_file().size == len(written)
    assert writer.stored_file().sha256 == hashlib.sha256(written).hexdigest()
    header_size = int.from_bytes(written[:8], "little")
    assert header_size % 8 == 0
    offsets = {name: entry["data_offsets"][0] for name, entry in json.loads(written[8 : 8 + header_size]).items()}
    assert all(offset % TENSORS[name].element_size() == 0 for name, offset in offsets.items())


def rows(keys: list[int]) -> KeyedRows:
    ids = torch.tensor(keys, dtype=torch.int64)
    return KeyedRows(ids, {"feature": torch.stack([ids * 10.0, ids + 0.5], 1), "label": (ids % 3).to(torch.int8)})


@pytest.fixture
def stored(tmp_path: Path) -> StoredRows:
    files = []
    for rank, keys in enumerate([[7, 3], [], [5, 0, 9]]):
        flat = flatten({"bank": {"x": rows(keys)}})
        files.append(tmp_path / f"s.rows-{rank:05d}.safetensors")
        with files[-1].open("wb") as handle:
            write_tensors(flat.row_tensors(), HashingWriter(handle))
    found = unflatten(flat.tree, {}, files)["bank"]["x"]
    assert isinstance(found, StoredRows)
    return found


@pytest.mark.parametrize("keys", [[7, 3, 5, 0, 9], [9, 7], [0, 0, 3, 0], [5], []])
def test_rows_are_found_by_key(stored: StoredRows, keys: list[int]) -> None:
    found = stored.select(torch.tensor(keys, dtype=torch.int64))
    expected = rows(keys).values
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_all_keys_and_missing_ones(stored: StoredRows) -> None:
    assert stored.all_keys().tolist() == [7, 3, 5, 0, 9]
    with pytest.raises(KeyError, match="2 of 3 keys have no stored row, the first is 4"):
        stored.select(torch.tensor([4, 7, 11]))


def test_rows_are_checked_when_they_are_given() -> None:
    with pytest.raises(AssertionError, match="int64"):
        KeyedRows(torch.tensor([1.0]), {})
    with pytest.raises(AssertionError, match="shape"):
        KeyedRows(torch.tensor([[1]]), {})
    with pytest.raises(AssertionError, match="x has 3 rows for 2 keys"):
        KeyedRows(torch.tensor([1, 2]), {"x": torch.zeros(3)})
