"""ONNX files give what the network gives, by another runtime, for any number of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import dcdist
from dcdist.build.run import build_backbone
from dcdist.config.schema import ModelSection
from dcdist.errors import RunError, UsageError
from dcdist.export import export, onnx_file
from dcdist.export.onnx_file import onnx_bytes
from dcdist.models.backbone import Backbone

NETWORKS: list[tuple[dict[str, Any], int]] = [
    ({"name": "alexnet", "sobel": True}, 64),
    ({"name": "small_resnet", "width": 0.5}, 32),
    ({"name": "torchvision/mobilenet_v3_small", "sobel": True}, 64),
]
LARGE: list[tuple[dict[str, Any], int]] = [
    ({"name": "torchvision/vgg11_bn"}, 32),
    ({"name": "torchvision/vit_b_32"}, 64),
    ({"name": "torchvision/swin_t"}, 64),
    ({"name": "torchvision/convnext_tiny"}, 64),
    ({"name": "torchvision/densenet121"}, 64),
    ({"name": "resnet50"}, 224),
]


def check_equal(content: bytes, module: nn.Module, image_size: int) -> None:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = torch.randn(count, 3, image_size, image_size, generator=torch.Generator().manual_seed(count))
        (features,) = session.run(["features"], {"images": images.numpy()})
        with torch.no_grad():
            expected = module(images)
        largest = float(expected.abs().max())
        torch.testing.assert_close(torch.from_numpy(features), expected, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize(
    ("options", "image_size"),
    [*NETWORKS, *(pytest.param(*large, marks=pytest.mark.soak) for large in LARGE)],
    ids=lambda value: value["name"] if isinstance(value, dict) else None,
)
def test_same_features(options: dict[str, Any], image_size: int) -> None:
    backbone = build_backbone(ModelSection(**options), image_size, seed=0).eval()
    check_equal(onnx_bytes(backbone, image_size, {}), backbone, image_size)


def test_a_run(finished: Path, exported: Path) -> None:
    out = exported / "backbone.onnx"
    check_equal(out.read_bytes(), dcdist.load(finished).module, 32)
    model = onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.key, json.loads(entry.value)) for entry in model.metadata_props] == [
        ("dcdist", json.loads((exported / "backbone.json").read_text()))
    ]
    assert model.opset_import[0].version == 18
    assert __file__.partition("/tests/")[0].encode() not in out.read_bytes(), "lines of source code are left out"


class DependsOnValues(nn.Module):
    """No graph can say what it does."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) if float(images.sum()) > 0 else images.amax((2, 3))


def test_a_network_that_onnx_cannot_express() -> None:
    network = Backbone(nn.Identity(), nn.Sequential(DependsOnValues()), nn.Identity(), 3, 3, False)
    with pytest.raises(RunError, match=r"torch cannot write this network as ONNX \(.+\): export it to .safetensors"):
        onnx_bytes(network.eval(), 32, {})


def test_missing_packages_are_named(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "PACKAGES", ("onnx", "not_installed_anywhere"))
    with pytest.raises(UsageError, match=r"needs not_installed_anywhere, .*pip install 'dcdist\[export\]'"):
        export(str(finished), str(tmp_path / "backbone.onnx"))
    assert list(tmp_path.iterdir()) == []
    export(str(finished), str(tmp_path / "backbone.safetensors"))  # which needs neither
