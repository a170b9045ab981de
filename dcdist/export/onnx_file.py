"""A backbone as ONNX: normalised images [B, 3, S, S] -> features [B, D], with any number of images B."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from dcdist.errors import RunError, UsageError
from dcdist.models.backbone import Backbone

INPUT, OUTPUT = "images", "features"
OPSET = 18  # of 2022: what torch writes natively, and every runtime in use reads
PACKAGES = ("onnx", "onnxscript")  # what torch's exporter imports
LARGEST_BYTES = 2**31 - 1  # of a protocol buffer


def require_onnx(out: str) -> None:
    """Raises UsageError where the packages that `out` needs are not installed."""
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(
            f"--out={out!r} needs {' and '.join(missing)}, not installed here: pip install 'dcdist[export]', or export "
            "to .safetensors"
        )


def onnx_bytes(backbone: Backbone, image_size: int, metadata: Mapping[str, str]) -> bytes:
    """The network, its stem included, as a self-contained ONNX file.

    Args:
        backbone: in evaluation mode, on the CPU.
        image_size: S, side of the images.
        metadata: entries of the file's metadata_props.

    Raises:
        RunError: torch cannot express the network in ONNX, or it is larger than such a file may be.
    """
    example = torch.zeros(2, 3, image_size, image_size)  # two: a batch of one would be taken for a constant
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's exporter about other parts of torch
            program = torch.onnx.export(
                backbone,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
            assert program is not None, "torch's exporter gives a program where it is given no file"
            model = program.model_proto
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise RunError(f"torch cannot write this network as ONNX ({reason}): export it to .safetensors") from error
    _forget_where_it_came_from(model)
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])
    if model.ByteSize() > LARGEST_BYTES:
        raise RunError(
            f"the network takes {model.ByteSize() / 2**30:.1f} GiB, and a file of ONNX holds 2 at most: export it to "
            ".safetensors"
        )
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _forget_where_it_came_from(model: Any) -> None:
    """Removes the lines of source code, with paths of this machine, that torch notes with every node."""
    model.graph.ClearField("metadata_props")
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
