"""What a resume may change: identity keys not, placement keys freely, the horizon upwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dcdist.config.identity import flatten, identity_digest, identity_values, resolve_autos, resume_config
from dcdist.config.load import parse_yaml, to_yaml, validate
from dcdist.config.schema import ExperimentConfig
from dcdist.errors import UsageError


def config(**values: Any) -> ExperimentConfig:
    return validate({"run": {"dir": "r"}, "data": {"root": "d"}, **values}, "test")


def saved(has_bfloat16: bool = False, **values: Any) -> ExperimentConfig:
    """As a run reads it back from its config.yaml."""
    text = to_yaml(resolve_autos(config(**values), has_bfloat16=has_bfloat16))
    return validate(parse_yaml(text, "saved"), "saved")


TWO_STAGES = [{"name": "a"}, {"name": "b", "train": {"batch_size": 100, "num_epochs": 3}}]


def test_flatten_gives_paths_of_keys() -> None:
    flat = flatten(config(train={"batch_size": 64}, views={"scale": [0.5, 1]}))
    assert flat["train", "batch_size"] == 64
    assert flat["views", "scale"] == [0.5, 1.0]
    assert flat["stages",] == []
    assert not any(path[0] == "stages" and len(path) > 1 for path in flat)


def test_flatten_gives_every_key_of_a_stage_its_own_or_the_top_levels() -> None:
    flat = flatten(config(train={"batch_size": 64}, stages=TWO_STAGES))
    assert flat["stages",] == ["a", "b"]
    assert flat["stages", "a", "train", "batch_size"] == 64
    assert flat["stages", "b", "train", "batch_size"] == 100
    assert flat["stages", "b", "clustering", "num_clusters"] == 10000


def test_identity_is_everything_but_placement_and_horizon() -> None:
    values = identity_values(config(stages=TWO_STAGES))
    assert values["run.seed"] == 31
    assert values["train.batch_size"] == 256
    assert values["stages"] == ["a", "b"]
    assert values["stages.b.train.batch_size"] == 100
    free = ("run.dir", "data.root", "train.num_epochs", "stages.b.train.num_epochs", "launch.num_processes")
    assert not set(free) & set(values)
    assert not [key for key in values if key.startswith(("launch.", "metrics.", "checkpoint.", "evaluation."))]


def test_digest_depends_on_identity_and_data_alone() -> None:
    digest = identity_digest(config(), "f")
    same = config(run={"dir": "elsewhere"}, launch={"num_processes": 3}, train={"num_epochs": 7})
    assert identity_digest(same, "f") == digest
    assert identity_digest(config(), "g") != digest
    assert identity_digest(config(run={"dir": "r", "seed": 1}), "f") != digest
    assert identity_digest(config(stages=TWO_STAGES), "f") != digest


def test_digest_does_not_depend_on_how_a_number_is_written() -> None:
    one = config(stages=[{"name": "a", "train": {"learning_rate": 1, "weight_decay": 0}}])
    other = config(stages=[{"name": "a", "train": {"learning_rate": 1.0, "weight_decay": 0.0}}])
    assert identity_digest(one, "f") == identity_digest(other, "f")


@pytest.mark.parametrize(
    ("batch_size", "microbatch_size"),
    [(256, 32), (512, 64), (128, 32), (64, 32), (100, 50), (96, 48), (48, 48), (7, 7)],
)
def test_automatic_microbatches_are_up_to_eight_of_at_least_32(batch_size: int, microbatch_size: int) -> None:
    resolved = resolve_autos(config(train={"batch_size": batch_size}), has_bfloat16=False)
    assert resolved.train.microbatch_size == microbatch_size
    assert batch_size % microbatch_size == 0


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_automatic_precision_is_the_hardwares_and_the_memory_layout_follows_it(has_bfloat16: bool) -> None:
    train = resolve_autos(config(), has_bfloat16=has_bfloat16).train
    assert (train.precision, train.channels_last) == (("bf16", True) if has_bfloat16 else ("fp32", False))
    explicit = resolve_autos(config(train={"precision": "fp32"}), has_bfloat16=True).train
    assert (explicit.precision, explicit.channels_last) == ("fp32", False)
    explicit = resolve_autos(config(train={"channels_last": False}), has_bfloat16=True).train
    assert (explicit.precision, explicit.channels_last) == ("bf16", False)


def test_a_stage_with_its_own_batch_size_or_precision_has_its_own_automatic_values() -> None:
    stages = [{"name": "a", "train": {"batch_size": 100}}, {"name": "b", "train": {"precision": "fp32"}}]
    a, b = resolve_autos(config(stages=stages), has_bfloat16=True).resolved_stages()
    assert (a.train.microbatch_size, a.train.precision, a.train.channels_last) == (50, "bf16", True)
    assert (b.train.microbatch_size, b.train.precision, b.train.channels_last) == (32, "fp32", False)


def test_a_stage_keeps_what_the_top_level_fixes() -> None:
    stages = [{"name": "a", "train": {"batch_size": 100}}]
    (a,) = resolve_autos(config(train={"microbatch_size": 4}, stages=stages), has_bfloat16=False).resolved_stages()
    assert a.train.microbatch_size == 4


def test_resolving_again_changes_nothing() -> None:
    resolved = resolve_autos(config(stages=TWO_STAGES), has_bfloat16=True)
    assert resolve_autos(resolved, has_bfloat16=False) == resolved


def test_the_same_config_resumes_wherever_it_runs() -> None:
    for values in ({}, {"stages": TWO_STAGES}, {"train": {"batch_size": 96}}):
        before = saved(has_bfloat16=True, **values)
        resumed = resolve_autos(resume_config(config(**values), before), has_bfloat16=False)
        assert resumed.train.precision == "bf16", "a key left auto keeps the value that the run began with"
        assert resumed == before


def test_placement_is_free() -> None:
    given = config(
        run={"dir": "moved"},
        data={"root": "s3://elsewhere"},
        launch={"num_processes": 3, "device": "cpu"},
        checkpoint={"keep": 5},
        clustering={"placement": "distributed"},
    )
    resumed = resume_config(given, saved())
    assert (resumed.run.dir, resumed.data.root, resumed.launch.num_processes) == ("moved", "s3://elsewhere", 3)
    assert (resumed.checkpoint.keep, resumed.clustering.placement) == (5, "distributed")


def test_another_identity_is_refused_naming_each_key_with_both_values() -> None:
    given = config(run={"dir": "r", "seed": 5}, train={"learning_rate": 0.1}, model={"sobel": True})
    with pytest.raises(UsageError) as error:
        resume_config(given, saved())
    message = str(error.value)
    assert "run.seed is 5, the run has 31" in message
    assert "train.learning_rate is 0.1, the run has 0.05" in message
    assert "model.sobel is True, the run has False" in message
    assert message.startswith("r was started with another config")
    assert message.endswith("Set them back, or give a new run.dir.")
    assert message.count(" is ") == 3


def test_an_explicit_value_is_held_against_the_automatic_one_of_the_run() -> None:
    with pytest.raises(UsageError, match=r"train\.precision is 'fp32', the run has 'bf16'"):
        resume_config(config(train={"precision": "fp32"}), saved(has_bfloat16=True))


def test_the_horizon_grows_and_does_not_shrink() -> None:
    before = saved(train={"num_epochs": 10})
    assert resume_config(config(train={"num_epochs": 12}), before).train.num_epochs == 12
    with pytest.raises(UsageError, match=r"train\.num_epochs is 9, less than the run's 10: it may only grow"):
        resume_config(config(train={"num_epochs": 9}), before)


def test_stages_are_held_against_each_other_by_name() -> None:
    before = saved(stages=TWO_STAGES)
    longer = [TWO_STAGES[0], {"name": "b", "train": {"batch_size": 100, "num_epochs": 4}}]
    assert resume_config(config(stages=longer), before).resolved_stages()[1].train.num_epochs == 4
    shorter = [TWO_STAGES[0], {"name": "b", "train": {"batch_size": 100, "num_epochs": 2}}]
    with pytest.raises(UsageError, match=r"stages\.b\.train\.num_epochs is 2, less than the run's 3"):
        resume_config(config(stages=shorter), before)
    other = [TWO_STAGES[0], {"name": "b", "train": {"batch_size": 200, "num_epochs": 3}}]
    with pytest.raises(UsageError, match=r"stages\.b\.train\.batch_size is 200, the run has 100"):
        resume_config(config(stages=other), before)


@pytest.mark.parametrize("stages", [TWO_STAGES[::-1], TWO_STAGES[:1], [*TWO_STAGES, {"name": "c"}], []])
def test_stages_in_another_order_or_number_are_refused(stages: list[dict[str, Any]]) -> None:
    names = [stage["name"] for stage in stages]
    with pytest.raises(UsageError) as error:
        resume_config(config(stages=stages), saved(stages=TWO_STAGES))
    assert f"stages is {names}, the run has ['a', 'b']" in str(error.value)


def test_a_difference_at_the_top_level_is_named_once_not_for_each_stage() -> None:
    with pytest.raises(UsageError) as error:
        resume_config(config(clustering={"num_clusters": 7}, stages=TWO_STAGES), saved(stages=TWO_STAGES))
    assert str(error.value).count("num_clusters") == 1
    assert "clustering.num_clusters is 7, the run has 10000" in str(error.value)


def joint(*, weight: float | None = None, **of_clusters: Any) -> dict[str, Any]:
    """The values of a joint method of two parts."""
    puzzle = {"name": "puzzle", "method": "jigsaw", **({} if weight is None else {"weight": weight})}
    clusters = {"name": "clusters", "method": "deepcluster", **of_clusters}
    return {"method": "joint", "joint": {"parts": [puzzle, clusters]}}


def in_a_stage(values: dict[str, Any]) -> dict[str, Any]:
    return {"stages": [{"name": "first", "method": "simclr"}, {"name": "both", **values}]}


def refusal(given: dict[str, Any], before: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as error:
        resume_config(config(**given), saved(**before))
    return str(error.value).removeprefix("r was started with another config and cannot go on with this one: ")


REMEDY = ". Set them back, or give a new run.dir."


@pytest.mark.parametrize("where", [dict, in_a_stage])
def test_placement_is_free_in_the_parts_of_a_joint_method_too(where: Callable[[dict[str, Any]], Any]) -> None:
    placed = joint(
        features={"batch_size": 7, "memory_limit_gib": 1.0},
        clustering={"placement": "distributed", "gather_limit_gib": 2.0, "engine": "torch", "num_clusters": 5},
    )
    before = saved(**where(joint(clustering={"num_clusters": 5})))
    resumed = resume_config(config(**where(placed)), before)
    assert resumed.resolved_stages()[-1].parts()[1].features.batch_size == 7
    assert identity_digest(resumed, "f") == identity_digest(before, "f")


@pytest.mark.parametrize("where", [dict, in_a_stage])
def test_a_default_of_a_part_may_be_spelled_out(where: Callable[[dict[str, Any]], Any]) -> None:
    spelled_out = where(joint(weight=1.0, clustering={"num_clusters": 10000}))
    assert resume_config(config(**spelled_out), saved(**where(joint()))) == saved(**spelled_out)


def test_another_identity_of_a_part_is_refused_naming_its_key_alone() -> None:
    given = joint(weight=0.5, clustering={"num_clusters": 7})
    assert refusal(given, joint()) == (
        "joint.parts.clusters.clustering.num_clusters is 7, the run has 10000; "
        "joint.parts.puzzle.weight is 0.5, the run has 1.0" + REMEDY
    )
    assert refusal(in_a_stage(given), in_a_stage(joint())) == (
        "stages.both.joint.parts.clusters.clustering.num_clusters is 7, the run has 10000; "
        "stages.both.joint.parts.puzzle.weight is 0.5, the run has 1.0" + REMEDY
    )


def test_a_difference_of_the_stage_or_the_top_is_not_named_for_its_parts_again() -> None:
    views = {"views": {"image_size": 96}}
    expected = "views.image_size is 96, the run has 224" + REMEDY
    assert refusal({**joint(), **views}, joint()) == expected
    assert refusal({**in_a_stage(joint()), **views}, in_a_stage(joint())) == expected
    assert refusal(in_a_stage({**joint(), **views}), in_a_stage(joint())) == f"stages.both.{expected}"


def test_parts_that_come_go_or_change_places_are_refused() -> None:
    fewer = joint()
    fewer["joint"] = {"parts": fewer["joint"]["parts"][:1]}
    assert refusal(fewer, joint()) == "joint.parts is ['puzzle'], the run has ['puzzle', 'clusters']" + REMEDY


def test_parts_at_the_top_belong_to_the_stages() -> None:
    stages = {"stages": [{"name": "both", "method": "joint"}]}
    before = saved(joint=joint()["joint"], **stages)
    placed = joint(features={"batch_size": 7})["joint"]
    assert resume_config(config(joint=placed, **stages), before) == saved(joint=placed, **stages)
    other = config(joint=joint(weight=0.5)["joint"], **stages)
    with pytest.raises(
        UsageError, match=r": stages\.both\.joint\.parts\.puzzle\.weight is 0\.5, the run has 1\.0\. Set"
    ):
        resume_config(other, before)
