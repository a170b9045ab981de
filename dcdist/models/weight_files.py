"""Tensors by name, from a file of weights or from what another run committed last.

Local or behind any fsspec URL; nothing is fetched from anywhere else, and no pickle is executed.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dcdist.commits import CheckpointName, DamagedCheckpointError, read_commit, verify_files
from dcdist.errors import RunError, UsageError
from dcdist.filesystems import StorageError
from dcdist.run_directory import RunDirectory
from dcdist.storage import Storage, open_file, open_storage

logger = logging.getLogger(__name__)

PICKLED = (".pt", ".pth", ".pth.tar")
SUFFIXES = (".safetensors", *PICKLED)
METHOD = "method.safetensors"  # what a checkpoint calls the tensors of the method, the backbone among them
NESTED = ("state_dict", "model")  # where published training scripts keep the weights in what they save


@dataclass(frozen=True)
class Weights:
    """Tensors by name, on the CPU, and where exactly they are from."""

    tensors: Mapping[str, torch.Tensor]
    source: str


def read_weights(path: str) -> Weights:
    """The tensors of a file (.safetensors, .pt, .pth, .pth.tar), or else of the newest whole checkpoint of a RUN.

    Raises:
        UsageError: there is neither such a file nor such a run, or the file does not hold named tensors.
        RunError: the run has checkpoints, and none of them is whole.
        StorageError: the server fails.
    """
    if path.endswith(SUFFIXES):
        return _read_file(path)
    run = RunDirectory(path)
    line = run.line()
    if not line:
        raise UsageError(
            f"no weights in {run}: neither the folder of a run with a committed checkpoint, nor a file named "
            f"{', '.join('*' + suffix for suffix in SUFFIXES)}"
        )
    problems = []
    for name in reversed(line):
        try:
            return Weights(_read_checkpoint(run.storage, name), run.storage.url(name.folder))
        except DamagedCheckpointError as error:
            logger.warning("checkpoint %s of %s is damaged and passed over: %s", name, run, error)
            problems.append(f"{name}: {error}")
    raise RunError(
        f"{run} has checkpoints, but none is whole ({'; '.join(problems)}): restore one of them, or take initial "
        "weights from another run"
    )


def _read_checkpoint(storage: Storage, name: CheckpointName) -> dict[str, torch.Tensor]:
    """The method's tensors, once their file is as the commit vouches for it; the other files are not read."""
    commit = read_commit(storage, name)
    if METHOD not in commit.files:
        raise UsageError(
            f"{storage.url(name.folder)} has no {METHOD}, only {', '.join(sorted(commit.files))}: it is no checkpoint "
            "of a training stage"
        )
    of_method = replace(commit, files={METHOD: commit.files[METHOD]})
    path = f"{name.folder}/{METHOD}"
    try:
        with _on_this_machine(storage, path) as local:
            verify_files(local, of_method)
            return _load_safetensors(Path(local.root, path))
    except StorageError:
        raise
    except OSError as error:  # a run that goes on removes its older checkpoints
        raise DamagedCheckpointError(f"{path} cannot be read: {error}") from error


def _read_file(path: str) -> Weights:
    storage, name = open_file(path)
    load = _load_safetensors if name.endswith(".safetensors") else _load_pickled
    try:
        with _on_this_machine(storage, name) as local:
            return Weights(load(Path(local.root, name)), path)
    except StorageError:
        raise
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}; give a file of weights, or the folder of a run") from error
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UsageError(
            f"{path} does not hold named tensors: {error}; save the network's state_dict() with safetensors"
        ) from error


@contextlib.contextmanager
def _on_this_machine(storage: Storage, path: str) -> Iterator[Storage]:
    """The storage itself where it is local, else a temporary one with a copy of this file."""
    if storage.local_path() is not None:
        yield storage
        return
    with tempfile.TemporaryDirectory(prefix="dcdist-") as folder:
        local = Path(folder, path)
        local.parent.mkdir(parents=True, exist_ok=True)
        storage.download(path, local)
        yield open_storage(folder)


def _load_safetensors(file: Path) -> dict[str, torch.Tensor]:
    # Copies, as what is loaded may be a map of a file that will be removed.
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


def _load_pickled(file: Path) -> dict[str, torch.Tensor]:
    content: Any = torch.load(file, map_location="cpu", weights_only=True)
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"its content is {content!r:.80}")
    others = [key for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(f"its entries {others[:5]} are no tensors")
    return content
