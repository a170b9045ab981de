"""State as files: tensors as safetensors, everything else as JSON that refers to them; nothing is pickled.

A state is a nesting of mappings, lists and tuples (which come back as lists) of tensors, JSON values and KeyedRows.
In JSON {"$tensor": name} and {"$rows": name} stand for what other files hold, {"$float": "nan"} for what JSON lacks and
{"$items": [[key, value], ...]} for mappings whose keys are not plain strings.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

from dcdist.commits import StoredFile
from dcdist.distributed.rows import KeyedRows, StoredRows, read_tensors

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass
class FlatState:
    """A state taken apart: the JSON tree, and what it refers to."""

    tree: Any = None
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    rows: dict[str, KeyedRows] = field(default_factory=dict)

    def row_tensors(self) -> dict[str, torch.Tensor]:
        """What a rank's file of rows holds, named as StoredRows looks for it."""
        tensors = {}
        for name, rows in self.rows.items():
            tensors[f"{name}/keys"] = rows.keys
            tensors |= {f"{name}/values/{value_name}": value for value_name, value in rows.values.items()}
        return tensors


def flatten(state: Mapping[str, Any]) -> FlatState:
    """Takes a state apart. Raises TypeError, naming the place, for what neither tensors nor JSON can hold."""
    flat = FlatState()
    flat.tree = _flatten(state, "", flat)
    return flat


def _flatten(value: Any, path: str, flat: FlatState) -> Any:
    if isinstance(value, torch.Tensor):
        if value.dtype not in _DTYPES or value.layout != torch.strided:
            raise TypeError(f"state {path!r}: a tensor of {value.dtype}, {value.layout} cannot be stored")
        return {"$tensor": _add(flat.tensors, path, value)}
    if isinstance(value, KeyedRows):
        return {"$rows": _add(flat.rows, path, value)}
    if isinstance(value, Mapping):
        below = f"{path}/" if path else ""
        items = [(key, _flatten(item, f"{below}{key}", flat)) for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return dict(items)
        return {"$items": [[_flatten(key, path, flat), item] for key, item in items]}
    if isinstance(value, list | tuple):
        return [_flatten(item, f"{path}/{index}", flat) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(float(value))}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"state {path!r}: a {type(value).__name__} is neither a tensor nor a JSON value")


def _add(entries: dict[str, Any], path: str, value: Any) -> str:
    name = path
    while name in entries:  # {"a/b": x, "a": {"b": y}}
        name += "'"
    entries[name] = value
    return name


def unflatten(tree: Any, tensors: Mapping[str, torch.Tensor], row_files: Sequence[Path]) -> Any:
    """What `flatten` was given, with lists for tuples and StoredRows for KeyedRows."""
    if isinstance(tree, list):
        return [unflatten(item, tensors, row_files) for item in tree]
    if not isinstance(tree, dict):
        return tree
    match tree:
        case {"$tensor": name}:
            return tensors[name]
        case {"$rows": name}:
            return StoredRows(row_files, name)
        case {"$float": text}:
            return float(text)
        case {"$items": items}:
            return {unflatten(key, tensors, row_files): unflatten(item, tensors, row_files) for key, item in items}
    return {key: unflatten(item, tensors, row_files) for key, item in tree.items()}


class HashingWriter:
    """Writes on to a file, and knows size and checksum of what was written."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes | memoryview) -> None:
        self._handle.write(data)
        self._digest.update(data)
        self._size += len(data)

    def stored_file(self) -> StoredFile:
        return StoredFile(self._size, self._digest.hexdigest())


def write_json(tree: Any, writer: HashingWriter) -> None:
    """Writes the tree of a flat state."""
    writer.write(json.dumps(tree, allow_nan=False).encode())


def write_tensors(tensors: Mapping[str, torch.Tensor], writer: HashingWriter) -> None:
    """Writes the safetensors format: length of the header, the header (JSON), the tensors' bytes one after another.

    Done here because the library's own functions write to a path without telling a checksum, or to one large `bytes`.
    """
    # Wide types first, so that every tensor is aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in ordered:
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    writer.write(len(text).to_bytes(8, "little"))
    writer.write(text)
    for _, tensor in ordered:
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        writer.write(flat.numpy().data)


def read_state(name: str, files: Mapping[str, Path]) -> Any:
    """The state of this name from a checkpoint's files; its tensors are in memory of their own, on the CPU."""
    tree = json.loads(files[f"{name}.json"].read_bytes())
    file = files[f"{name}.safetensors"]
    with safe_open(file, framework="pt") as tensors:
        names = list(tensors.keys())
    row_files = [path for file_name, path in sorted(files.items()) if file_name.startswith(f"{name}.rows-")]
    return unflatten(tree, dict(zip(names, read_tensors(file, names), strict=True)), row_files)
