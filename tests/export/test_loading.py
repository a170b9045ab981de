"""`dcdist.load`: the network and the transform of a run are those that the run itself computes features with."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import dcdist
from dcdist.build.run import build_numerics, open_data
from dcdist.build.views import build_images, evaluation_view
from dcdist.data.decode import UndecodableImage
from dcdist.data.loader import BatchLoader, Request
from dcdist.data.preparation import prepare
from dcdist.distributed.collectives import Collectives
from dcdist.errors import UsageError
from dcdist.features import extract_features
from dcdist.loading import EvaluationTransform
from dcdist.models.backbone import Backbone
from dcdist.stored_run import read_run
from tests.export.conftest import STAGES


class Files(Dataset[torch.Tensor]):
    """As a user would write it."""

    def __init__(self, paths: list[Path], transform: EvaluationTransform) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(self.paths[index])


def in_order(pictures: Path) -> list[Path]:
    """The files by sample id."""
    return sorted(pictures.rglob("*.*"), key=lambda path: str(path.relative_to(pictures)))


@pytest.mark.parametrize("stage", STAGES)
def test_the_runs_own_pixels_and_features(stage: str, finished: Path, pictures: Path) -> None:
    module, transform = dcdist.load(finished, stage=stage)
    stored = read_run(str(finished), stage)
    assert transform.view.normalization.standardize == (stage == "second")
    loader = BatchLoader([source := open_data(stored.config.data, None)], 0, pin_memory=False)
    try:
        (batch,) = loader.load(source, [Request(np.arange(len(source)), None, (transform.view,), seed=0)])
        (expected,) = prepare(batch, (evaluation_view(stored.stage.views),)).views
        images = build_images(stored.stage, build_numerics(stored.stage.train, torch.device("cpu")), loader)
        raw = extract_features(stored.backbone, source, images, Collectives())
    finally:
        loader.close()
    assert list(source.keys) == [str(path.relative_to(pictures)) for path in in_order(pictures)]
    seen = torch.stack([transform(path) for path in in_order(pictures)])
    assert seen.shape == (len(source), 3, 32, 32)
    assert torch.equal(seen, expected), "the same pixels, bit by bit"
    with torch.inference_mode():
        features = module(seen)
    (rows,) = raw.blocks()
    # Rows wait in half precision, whose steps are 2^-11 of a value.
    torch.testing.assert_close(features, rows.float(), rtol=2**-11, atol=1e-6)
    with torch.inference_mode():
        torch.testing.assert_close(features, stored.backbone.eval()(expected), rtol=1e-6, atol=1e-6)


def test_in_workers_of_a_data_loader(finished: Path, pictures: Path) -> None:
    module, transform = dcdist.load(str(finished))
    paths = in_order(pictures)[:6]
    loaded = DataLoader(Files(paths, transform), batch_size=3, num_workers=2, multiprocessing_context="forkserver")
    batches = list(loaded)
    assert [batch.shape for batch in batches] == [(3, 3, 32, 32)] * 2
    assert torch.equal(torch.cat(batches), torch.stack([transform(path) for path in paths]))
    assert isinstance(module, Backbone)
    assert not module.training


def test_every_kind_of_image(finished: Path, pictures: Path) -> None:
    transform = pickle.loads(pickle.dumps(dcdist.load(finished).transform))
    for path in in_order(pictures)[:6]:
        expected = transform(path)
        assert (expected.dtype, expected.shape, expected.is_contiguous()) == (torch.float32, (3, 32, 32), True)
        picture = Image.open(path)
        array = np.array(picture)
        array.flags.writeable = False
        for image in (str(path), path.read_bytes(), picture, array, array[:, ::-1][:, ::-1]):
            assert torch.equal(transform(image), expected)
    rgb = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    for mode in ("L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "HSV"):
        converted = rgb.convert("L").convert("I;16") if mode == "I;16" else rgb.convert(mode)
        # As a file of the run's data would be read, where Pillow can write such a file.
        if mode in ("L", "1", "P", "RGBA", "LA", "I;16"):
            encoded = io.BytesIO()
            converted.save(encoded, "png")
            assert torch.equal(transform(converted), transform(encoded.getvalue())), mode
        else:
            assert torch.equal(transform(converted), transform(np.array(converted.convert("RGB")))), mode


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8), np.uint8), "uint8 [8, 8] is no image: give uint8 [H, W, 3]"),
        (np.zeros((8, 8, 3), np.float32), "float32 [8, 8, 3] is no image"),
        (np.zeros((0, 8, 3), np.uint8), "uint8 [0, 8, 3] is no image"),
        (torch.zeros(3, 8, 8), "Tensor is no image: give a path, bytes"),
        (None, "NoneType is no image"),
    ],
)
def test_what_is_no_image(image: Any, message: str, finished: Path) -> None:
    transform = dcdist.load(finished).transform
    with pytest.raises(UsageError) as refusal:
        transform(image)
    assert message in str(refusal.value)


def test_damaged_files_are_named(finished: Path, pictures: Path, tmp_path: Path) -> None:
    transform = dcdist.load(finished).transform
    whole = next(path for path in in_order(pictures) if path.suffix == ".jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UndecodableImage, match=r"cut\.jpg: JPEG"):
        transform(tmp_path / "cut.jpg")
    with pytest.raises(UndecodableImage, match="no known image format"):
        transform(b"text")
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        transform(tmp_path / "none.jpg")


def test_wrong_arguments_are_named(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no stage 'third': its stages are first, second"):
        dcdist.load(finished, stage="third")
    with pytest.raises(UsageError, match=r"device='gpu' is unknown: cpu, cuda"):
        dcdist.load(finished, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match=r"device='cuda', but torch sees no GPU"):
            dcdist.load(finished, device="cuda")
    with pytest.raises(UsageError, match=r"is this a run's folder"):
        dcdist.load(tmp_path)


def test_importing_dcdist_is_light() -> None:
    code = "import dcdist, sys; assert callable(dcdist.load); print({'torch', 'numpy', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
