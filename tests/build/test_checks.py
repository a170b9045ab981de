"""What a config asks for against itself: classifiers of the stage before, views, parts of a joint method."""

from __future__ import annotations

from typing import Any

import pytest

from dcdist.build.checks import check_stages
from dcdist.build.run import build_backbone
from dcdist.config.schema import ExperimentConfig
from dcdist.errors import UsageError
from tests.methods.small_methods import SMALL

LINEAR = {"method": "scan", "num_clusters": 4, "pca_dimensions": 8}
SIMCLR = {"name": "pretext", "method": "simclr", "readout": LINEAR}
SCAN = {"name": "scan", "method": "scan", "scan": {"num_clusters": 4, "num_heads": 1, "initial": "readout"}}
RANDOM = {"name": "scan", "method": "scan", "scan": {"num_clusters": 4}}
SELFLABEL = {"name": "selflabel", "method": "selflabel"}


def check(stages: list[dict[str, Any]], **sections: Any) -> None:
    values = {**SMALL, "features": {"pca_dimensions": 8}, "stages": stages, **sections}
    config = ExperimentConfig.model_validate(values)
    backbone = build_backbone(config.model, config.views.image_size, 0)
    check_stages(config.resolved_stages(), 100, backbone, 1)


@pytest.mark.parametrize(
    "stages", [[SIMCLR, SCAN, SELFLABEL], [SIMCLR, SELFLABEL], [RANDOM, SCAN], [RANDOM, SELFLABEL, SELFLABEL], [RANDOM]]
)
def test_a_stage_before_leaves_a_classifier(stages: list[dict[str, Any]]) -> None:
    check([{**stage, "name": f"{stage['name']}{number}"} for number, stage in enumerate(stages)])


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ([], "goes on from the classifier of a stage before it"),
        ([{**SIMCLR, "readout": {"num_clusters": 4}}], r"stage pretext \(method=simclr\) leaves none"),
        ([{**SIMCLR, "readout": {**LINEAR, "pca_dimensions": None}}], r"\(method=simclr\) leaves none"),
        ([{**SIMCLR, "readout": {**LINEAR, "num_clusters": 5, "merge_to": 4}}], r"\(method=simclr\) leaves none"),
        ([{**SIMCLR, "readout": {**LINEAR, "num_clusters": 5}}], r"scan\.num_clusters=4, .* has 5 classes"),
        ([{**RANDOM, "name": "pretext", "scan": {"num_clusters": 3}}], r"scan\.num_clusters=4, .* has 3 classes"),
    ],
)
@pytest.mark.parametrize("stage", [SCAN, SELFLABEL])
def test_without_one_the_stage_is_refused(stage: dict[str, Any], before: list[dict[str, Any]], reason: str) -> None:
    with pytest.raises(UsageError, match=f"^stage {stage['name']}: .*{reason}"):
        check([*before, stage])


def test_a_classifier_of_reduced_rows_does_not_follow_a_relu() -> None:
    alexnet = {"model": {"name": "alexnet"}, "views": {"image_size": 67, "resize": 67}}
    check([{**RANDOM, "name": "pretext"}, SCAN], **alexnet)
    with pytest.raises(UsageError, match="leaves none: this network's classifiers follow a ReLU"):
        check([SIMCLR, SCAN], **alexnet)


CROP = {"count": 1, "image_size": 16, "scale": [0.5, 1.0]}


@pytest.mark.parametrize(
    ("method", "num_views", "wanted"),
    [
        ("simclr", 1, "2"),
        ("simclr", 2, None),
        ("simclr", 3, "2"),
        ("swav", 1, "at least 2"),
        ("swav", 3, None),
        ("deepcluster_v2", 1, "at least 2"),
        ("deepcluster_v2", 3, None),
        ("jigsaw", 1, None),
    ],
)
def test_methods_that_compare_views_get_enough_of_them(method: str, num_views: int, wanted: str | None) -> None:
    views = {**SMALL["views"], "crops": [{**CROP, "count": num_views}]}
    stages = [{"name": "main", "method": method, "views": views, "readout": {"num_clusters": 4}}]
    if wanted is None:
        check(stages)
    else:
        with pytest.raises(
            UsageError, match=f"^method={method} compares {wanted} views .*, views.crops has {num_views}:"
        ):
            check(stages)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([], "needs joint.parts"),
        (["deepcluster", "deepcluster_v2"], "at most one part takes clusters, here are part0, part1"),
        (["simclr", "scan"], "method=scan of part part1 can only be a stage of its own"),
        (["selflabel"], "method=selflabel of part part0 can only be a stage of its own"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(parts: list[str], reason: str) -> None:
    joint = {"parts": [{"name": f"part{number}", "method": method} for number, method in enumerate(parts)]}
    with pytest.raises(UsageError, match=reason):
        check([{"name": "main", "method": "joint", "joint": joint, "readout": {"num_clusters": 4}}])


def test_a_part_is_not_called_as_what_holds_the_parts() -> None:
    joint = {"parts": [{"name": "values", "method": "simclr"}]}
    with pytest.raises(UsageError, match="a part cannot be called values"):
        check([{"name": "main", "method": "joint", "joint": joint, "readout": {"num_clusters": 4}}])


@pytest.mark.parametrize(
    "values",
    [
        {"method": "jigsaw"},
        {"method": "joint", "joint": {"parts": [{"name": "one", "method": "deepcluster"}]}},
    ],
)
def test_the_final_clustering_has_no_more_clusters_than_images(values: dict[str, Any]) -> None:
    parts = values.get("joint", {}).get("parts", [])
    for part in parts:
        part["clustering"] = {"num_clusters": 5}
    stages = [{"name": "main", **values, "clustering": {"num_clusters": 101}}]
    with pytest.raises(UsageError, match=r"clustering\.num_clusters=101 of 100 images: set readout\.num_clusters"):
        check(stages)
    check([{**stages[0], "readout": {"num_clusters": 100}}])


def test_scan_from_a_read_out_has_one_head() -> None:
    with pytest.raises(UsageError, match=r"set scan\.num_heads to 1 \(it is 3\)"):
        check([SIMCLR, {**SCAN, "scan": {**SCAN["scan"], "num_heads": 3}}])


@pytest.mark.parametrize("method", ["scan", "gmm", "pic"])
def test_restarts_are_of_k_means(method: str) -> None:
    readout = {"method": method, "num_clusters": 4, "num_restarts": 2}
    with pytest.raises(UsageError, match=r"readout\.num_restarts=2 compares objectives of k-means"):
        check([{"name": "main", "method": "simclr", "readout": readout}])
    check([{"name": "main", "method": "simclr", "readout": {**readout, "method": "hierarchical"}}])


def test_a_read_out_by_scan_fits_the_memory() -> None:
    readout, clustering = {"method": "scan", "num_clusters": 90}, {"num_heads": 2000}
    with pytest.raises(UsageError, match=r"clustering\.num_heads to at most 1456"):
        check([{"name": "main", "method": "simclr", "readout": readout, "clustering": clustering}])


def test_clustering_by_scan_in_every_epoch_fits_the_memory_too() -> None:
    clustering = {"method": "scan", "num_clusters": 90, "num_heads": 2000}
    stage = {"name": "main", "method": "deepcluster", "clustering": clustering, "readout": {"method": "kmeans"}}
    with pytest.raises(UsageError, match=r"clustering\.num_clusters, or clustering\.num_heads to at most 1456"):
        check([stage])


@pytest.mark.parametrize(
    ("views", "size"),
    [
        ({"crops": [{"count": 2, "image_size": 67, "scale": [0.5, 1]}, {**CROP, "image_size": 131}]}, 131),
        ({"image_size": 131, "resize": 131}, 131),
    ],
)
def test_fully_connected_layers_see_images_of_one_size(views: dict[str, Any], size: int) -> None:
    alexnet = {"model": {"name": "alexnet"}, "views": {"image_size": 67, "resize": 67}}
    stages = [{"name": "main", "method": "swav", "readout": {"num_clusters": 4}}]
    check(stages, **alexnet)
    with pytest.raises(UsageError, match=f"^stage main: the network cannot see images of {size} x {size}"):
        check([{**stages[0], "views": views}], **alexnet)
    check([{**stages[0], "views": views}])


def test_a_crop_may_be_larger_than_what_features_are_cut_out_of() -> None:
    views = {"image_size": 16, "resize": 16, "crops": [{"count": 2, "image_size": 24, "scale": [0.5, 1]}]}
    check([{"name": "main", "method": "simclr", "views": views, "readout": {"num_clusters": 4}}])


def test_batch_normalisation_gets_more_than_one_image() -> None:
    train = {"batch_size": 32, "microbatch_size": 1}
    with pytest.raises(UsageError, match=r"train\.microbatch_size=1: batch normalisation needs at least 2"):
        check([{"name": "main", "method": "jigsaw", "train": train, "readout": {"num_clusters": 4}}])


def test_power_iteration_clustering_finds_no_more_clusters_than_there_are_images() -> None:
    stage = {"name": "main", "method": "deepcluster", "clustering": {"method": "pic", "num_clusters": 3000}}
    check([stage])
    with pytest.raises(UsageError, match=r"clustering\.num_clusters=3000 needs at least as many images"):
        check([{**stage, "clustering": {"num_clusters": 3000}}])
    with pytest.raises(UsageError, match=r"clustering\.num_neighbors=100 needs more images"):
        check([{**stage, "clustering": {**stage["clustering"], "num_neighbors": 100}}])  # type: ignore[dict-item]
