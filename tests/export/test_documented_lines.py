"""The lines of docs/export.md do what it says, those of other libraries in a process that cannot import dcdist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import dcdist
from dcdist.export import export
from tests.export.conftest import STAGES

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "export.md"
BLOCKED = """
import sys
sys.modules["dcdist"] = None
import numpy
"""
CHECK = """
exact = torch.from_numpy(numpy.load("images.npy"))
numpy.save("{library}.npy", {features})
numpy.save("{library}-images.npy", images.numpy())
"""


def documented(containing: str) -> str:
    """The block of Python with these words."""
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (found,) = (block for block in blocks if containing in block)
    return str(found)


def run_lines(lines: str, folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", lines], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_without_dcdist(stage: str, finished: Path, exported: Path, pictures: Path, tmp_path: Path) -> None:
    for name in ("backbone.safetensors", "backbone.onnx", "backbone.json"):
        if stage == STAGES[-1]:
            shutil.copy(exported / name, tmp_path)
        elif not name.endswith(".json"):
            export(str(finished), str(tmp_path / name), stage)
    shutil.copy(picture := max(pictures.rglob("*.jpg")), tmp_path / "photograph.jpg")
    module, transform = dcdist.load(finished, stage)
    images = transform(picture).unsqueeze(0)
    np.save(tmp_path / "images.npy", images.numpy())
    lines = [
        BLOCKED,
        documented("torchvision.models.get_model"),
        documented("transforms.Compose"),
        CHECK.format(library="torchvision", features="network(stem(exact)).detach().numpy()"),
        documented("timm.create_model"),
        CHECK.format(library="timm", features="network(stem(exact)).detach().numpy()"),
        documented("onnxruntime"),
        CHECK.format(library="onnx", features='session.run(["features"], {"images": exact.numpy()})[0]'),
    ]
    run_lines("\n".join(lines), tmp_path)
    with torch.no_grad():
        expected = module(images)
    for library in ("torchvision", "timm", "onnx"):
        features = torch.from_numpy(np.load(tmp_path / f"{library}.npy"))
        torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    # torchvision resizes before it crops: the same picture, not the same bits.
    seen = torch.from_numpy(np.load(tmp_path / "onnx-images.npy"))
    assert seen.shape == images.shape
    assert torch.corrcoef(torch.stack([seen.flatten(), images.flatten()]))[0, 1] > 0.98
    assert 0.8 < float(seen.std() / images.std()) < 1.25


def test_with_dcdist(finished: Path, pictures: Path, tmp_path: Path) -> None:
    shutil.copy(picture := max(pictures.rglob("*.jpg")), tmp_path / "photograph.jpg")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(finished)
    run_lines(documented("dcdist.load") + "import torch; torch.save(features.detach(), 'features.pt')", tmp_path)
    module, transform = dcdist.load(finished)
    with torch.no_grad():
        expected = module(transform(picture).unsqueeze(0))
    torch.testing.assert_close(torch.load(tmp_path / "features.pt"), expected, rtol=1e-6, atol=1e-6)
