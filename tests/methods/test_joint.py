"""Several methods at once: weighted sums, streams and statistics of their own, one backbone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dcdist.data.loader import Batch
from dcdist.methods.base import Method
from dcdist.methods.joint import Joint
from dcdist.methods.scan import Scan
from tests.methods.small_methods import NUM_SAMPLES, clustering, microbatch, small_method
from tests.methods.test_scan import neighbor_clustering
from tests.methods.training import optimizer_of, steps

PARTS = ("puzzle", "clusters", "contrast")  # jigsaw at 0.5, deepcluster at 1, simclr at 0.25


def joint() -> Joint:
    method = small_method("joint")
    assert isinstance(method, Joint)
    return method


def part(method: Joint, name: str) -> Any:
    return method.parts[name]


def alone(name: str, weight: float = 1.0) -> Joint:
    """A joint method of a single part."""
    method = small_method(name)
    return Joint(method.backbone, {"only": method}, {"only": weight}, "only")


def of_part(streams: dict[str, Batch], name: str) -> dict[str, Batch]:
    return {key.split("/")[1]: batch for key, batch in streams.items() if key.startswith(name)}


def test_losses_and_figures_are_those_of_the_parts_weighted_and_named() -> None:
    method = joint().eval().requires_grad_(False)
    streams = microbatch("joint", 0)
    outputs = method(streams)
    losses, figures, chances = method.losses(outputs), method.figures(outputs), method.chance_losses()
    expected, expected_figures, expected_chances = {}, {}, {}
    for name, weight in {"puzzle": 0.5, "clusters": 1.0, "contrast": 0.25}.items():
        of_it = part(method, name)(of_part(streams, name))
        expected |= {
            f"{name}/{loss}": weight * float(value) for loss, value in part(method, name).losses(of_it).items()
        }
        expected_figures |= {f"{name}/{key}": float(value) for key, value in part(method, name).figures(of_it).items()}
        expected_chances |= {
            f"{name}/{key}": weight * value for key, value in part(method, name).chance_losses().items()
        }
    assert losses.keys() == {"puzzle/permutations", "puzzle/distractors", "clusters/clusters", "contrast/contrast"}
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(expected, rel=1e-6)
    assert {name: float(value) for name, value in figures.items()} == pytest.approx(expected_figures)
    assert chances == pytest.approx(expected_chances)


def test_every_part_plans_its_own_streams() -> None:
    method = joint()
    usable, found = np.arange(NUM_SAMPLES), clustering((5, 3), 6)
    plan = method.plan_epoch(2, usable, found)
    assert set(plan.streams) == {"puzzle/puzzles", "clusters/clusters", "contrast/images"}
    for name in PARTS:
        own = part(method, name).plan_epoch(2, usable, found)
        assert own.num_steps == plan.num_steps
        for key, stream in own.streams.items():
            np.testing.assert_array_equal(plan.streams[f"{name}/{key}"].sample_ids, stream.sample_ids)
            assert plan.streams[f"{name}/{key}"].views == stream.views
    orders = [plan.streams[key].sample_ids for key in ("puzzle/puzzles", "contrast/images")]
    assert (orders[0] != orders[1]).mean() > 0.5, "each has an order of its own"


def test_a_part_sees_its_streams_by_the_names_that_it_gave_them() -> None:
    method = alone("scan")
    plan = method.plan_epoch(0, np.arange(7, NUM_SAMPLES), neighbor_clustering())
    assert set(plan.streams) == {"only/anchors", "only/neighbors"}
    batches = microbatch("scan", 0)
    outputs = method({f"only/{name}": batch for name, batch in batches.items()})
    by_itself = small_method("scan")(batches)
    assert torch.equal(outputs["only"].anchors, by_itself.anchors)
    assert torch.equal(outputs["only"].neighbors, by_itself.neighbors)


def test_parts_whose_names_begin_alike_do_not_mix() -> None:
    first, second = small_method("simclr"), small_method("simclr")
    second.backbone = first.backbone
    method = Joint(first.backbone, {"views": first, "views2": second}, {"views": 1.0, "views2": 1.0}, "views").eval()
    batches = [microbatch("simclr", number)["images"] for number in range(2)]
    outputs = method({"views/images": batches[0], "views2/images": batches[1]})
    assert torch.equal(outputs["views"].embeddings, first({"images": batches[0]}).embeddings)
    assert torch.equal(outputs["views2"].embeddings, second({"images": batches[1]}).embeddings)


def test_running_statistics_of_the_backbone_are_those_of_the_leading_part_alone() -> None:
    method, reference = joint(), joint()
    assert method.leading == "clusters"
    streams = microbatch("joint", 0)
    method(streams)
    part(reference, "clusters")(of_part(streams, "clusters"))
    statistics = {name: value for name, value in method.backbone.state_dict().items() if "running" in name}
    assert len(statistics) == 8
    for name, value in statistics.items():
        assert torch.equal(value, reference.backbone.state_dict()[name])
    projector = part(method, "contrast").projector
    assert bool(projector.layers[1].running_mean.any()), "a part's own layers have statistics of their own"


def test_each_parameter_is_in_one_group_and_groups_keep_what_sets_them_apart() -> None:
    method = joint()
    groups = method.parameter_groups()
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted({id(parameter) for parameter in method.parameters()})
    heads = {id(parameter) for parameter in part(method, "clusters").heads.parameters()}
    assert {id(parameter) for group in groups if "momentum" in group for parameter in group["params"]} == heads
    optimizer_of(method)  # which refuses a parameter that is in two groups


@pytest.mark.parametrize(
    ("parts", "couples"), [(["jigsaw", "deepcluster"], False), (["jigsaw", "simclr"], True), (["swav"], True)]
)
def test_it_couples_samples_where_any_part_does(parts: list[str], couples: bool) -> None:
    methods: dict[str, Method] = {name: small_method(name) for name in parts}
    backbone = methods[parts[0]].backbone
    for method in methods.values():
        method.backbone = backbone
    assert Joint(backbone, methods, dict.fromkeys(parts, 1.0), parts[0]).couples_samples == couples


@pytest.mark.parametrize("name", ["deepcluster", "deepcluster_v2", "swav", "simclr", "jigsaw", "scan"])
def test_a_single_part_of_weight_one_trains_bit_identically_to_the_method_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_itself, method = small_method(name), alone(name)
    expected = [sums.losses for sums in steps(by_itself, name, 3)]
    monkeypatch.setattr(
        "tests.methods.training.microbatch",
        lambda name, number: {f"only/{stream}": batch for stream, batch in microbatch(name, number).items()},
    )
    found = [sums.losses for sums in steps(method, name, 3)]
    assert [{f"only/{loss}": float(value) for loss, value in losses.items()} for losses in expected] == [
        {loss: float(value) for loss, value in losses.items()} for losses in found
    ]
    for key, value in by_itself.state_dict().items():
        assert torch.equal(part(method, "only").state_dict()[key], value), key
    if by_itself.bank is not None:
        assert method.bank is not None
        for one, other in zip(by_itself.bank.shards(), method.bank.shards(), strict=True):
            assert torch.equal(one.features, other.features)


def test_a_weight_scales_the_gradient() -> None:
    gradients = []
    for weight in (1.0, 0.25):
        method = alone("simclr", weight)
        outputs = method({"only/images": microbatch("simclr", 0)["images"]})
        sum(method.losses(outputs).values()).backward()  # type: ignore[union-attr]
        gradients.append(method.backbone.body[0][0].weight.grad)
    torch.testing.assert_close(gradients[1], 0.25 * gradients[0])


def test_the_leading_part_adopts_clusters_fills_the_bank_and_answers_for_the_method() -> None:
    version2, puzzle = small_method("deepcluster_v2"), small_method("jigsaw")
    puzzle.backbone = version2.backbone
    parts = {"puzzle": puzzle, "clusters": version2}
    method = Joint(version2.backbone, parts, dict.fromkeys(parts, 1.0), "clusters").eval()
    assert method.bank is version2.bank
    assert method.embedder().num_features == 6
    assert method.classifier() is None
    found = clustering((4, 2), 6)
    assert method.adopt(found, torch.Generator()) == []
    images = microbatch("deepcluster_v2", 0)["clusters"].views[0]
    assert method.cluster_logits(images).shape == (8, 4)
    assert torch.equal(method.cluster_logits(images), version2.cluster_logits(images))


def test_a_stage_begins_and_steps_follow_for_every_part() -> None:
    method = alone("scan")
    kept = method.keep({"only": small_method("scan")(microbatch("scan", 0))})
    method.after_step(kept)
    only = part(method, "only")
    assert isinstance(only, Scan)
    torch.testing.assert_close(only.selection_losses, 0.01 * kept["only"])
    method = alone("selflabel")
    previous = small_method("scan")
    method.begin(previous.classifier())
    assert torch.equal(method.classifier().weight, previous.classifier().weight)  # type: ignore[union-attr]
