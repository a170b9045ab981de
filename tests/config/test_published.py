"""The published recipe, figure by figure (Caron et al., ECCV 2018, and its code)."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcdist.config.load import load_config
from dcdist.config.schema import ExperimentConfig

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = {
    "deepcluster_alexnet_imagenet": "alexnet",
    "deepcluster_vgg16_imagenet": "vgg16",
    "deepcluster_alexnet_yfcc": "alexnet",
}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def config(name: str) -> ExperimentConfig:
    return load_config(CONFIGS / f"{name}.yaml")


def test_network(name: str, config: ExperimentConfig) -> None:
    assert (config.model.name, config.model.sobel) == (NAMES[name], True)


def test_optimisation(config: ExperimentConfig) -> None:
    train = config.train
    assert (train.optimizer, train.learning_rate, train.schedule, train.warmup_steps) == ("sgd", 0.05, "constant", 0)
    assert (train.momentum, train.weight_decay, train.batch_size, train.num_epochs) == (0.9, 1e-5, 256, 500)
    assert config.run.seed == 31
    assert (config.deepcluster.head_momentum, config.deepcluster.head_learning_rate_scale) == (0.0, 1.0)


def test_clustering(config: ExperimentConfig) -> None:
    clustering = config.clustering
    assert (clustering.num_clusters, clustering.num_iterations, clustering.every_num_epochs) == (10000, 20, 1)
    assert clustering.spherical is False
    assert (config.features.pca_dimensions, config.features.whiten) == (256, True)
    assert config.deepcluster.sampler == "uniform"


def test_views(config: ExperimentConfig) -> None:
    views = config.views
    assert (views.image_size, views.resize, views.crop, views.horizontal_flip) == (224, 256, "random_resized", True)
    assert (views.scale, views.ratio) == ((0.08, 1.0), pytest.approx((3 / 4, 4 / 3)))
    assert (views.mean, views.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    others = (views.rotation_degrees, views.shear, views.translate, views.elastic_sigma, views.grayscale_probability)
    assert others == (0, 0, 0, 0, 0)
    assert (views.brightness, views.contrast, views.saturation, views.hue, views.zoom) == (0, 0, 0, 0, (1, 1))


def test_uncurated_photographs_have_no_splits_and_no_scores() -> None:
    config = load_config(CONFIGS / "deepcluster_alexnet_yfcc.yaml")
    assert (config.data.split, config.data.heldout_split, config.evaluation.summary) == (None, None, False)
