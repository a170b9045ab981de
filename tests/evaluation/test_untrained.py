"""The statistics of the untrained baseline: by hand, of images that decode, the same for every process."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from dcdist.build.run import build_backbone
from dcdist.config.schema import ModelSection
from dcdist.data.loader import BatchLoader
from dcdist.data.source import open_source
from dcdist.data.transforms import View
from dcdist.evaluation.untrained import learn_from_images, learn_statistics, spread
from dcdist.features import ImagePass
from dcdist.models.backbone import Backbone
from dcdist.models.numerics import Numerics


def test_statistics_are_those_of_the_batches() -> None:
    """Of the first normalisation the mean over the batches of its inputs' means and unbiased variances."""
    network = build_backbone(ModelSection(name="small_convnet"), 16, seed=0)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(8, 3, 16, 16, generator=generator) * scale for scale in (1, 3)]
    learn_statistics(network, batches, network)
    convolution, normalization = network.body.conv1[0], network.body.conv1[1]
    maps = [convolution(batch).detach() for batch in batches]
    expected = torch.stack([inputs.mean((0, 2, 3)) for inputs in maps]).mean(0)
    torch.testing.assert_close(normalization.running_mean, expected)
    expected = torch.stack([inputs.transpose(0, 1).flatten(1).var(1) for inputs in maps]).mean(0)
    torch.testing.assert_close(normalization.running_var, expected)
    assert not any(layer.training for layer in network.modules())
    assert normalization.momentum == 0.1


def learnt(folder: Path) -> Backbone:
    source, network = open_source(folder), build_backbone(ModelSection(name="small_convnet"), 16, seed=0)
    numerics = Numerics(torch.device("cpu"), bfloat16=False, channels_last=False)
    loader = BatchLoader([source], 0)
    learn_from_images(network, source, ImagePass(View(size=16, resize=16), numerics, 32, loader, 2**20))
    loader.close()
    return network


def test_images_that_do_not_decode_say_nothing(digits_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(digits_folder, tmp_path / "digits")
    (tmp_path / "digits" / "9" / "damaged.png").write_bytes(b"no image")  # the last one
    whole, damaged = learnt(digits_folder), learnt(tmp_path / "digits")
    assert not torch.equal(whole.body.conv1[1].running_mean, torch.zeros(whole.body.conv1[0].out_channels))
    for name, expected in whole.state_dict().items():
        torch.testing.assert_close(damaged.state_dict()[name], expected, rtol=0.02, atol=0.02)
    assert not whole.training


def test_images_are_spread_from_the_first_to_the_last() -> None:
    assert spread(10, 4).tolist() == [0, 3, 6, 9]
    assert spread(3, 256).tolist() == [0, 1, 2]
