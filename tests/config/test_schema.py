"""The schema: what it refuses, what it says of each key, how stages come to their values."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from dcdist.config.load import known_keys
from dcdist.config.schema import ExperimentConfig, Section, StageConfig, kind_of, merge


def config(**values: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate({"run": {"dir": "r"}, "data": {"root": "d"}, **values})


def section_fields() -> list[tuple[str, Any]]:
    fields = []
    for dotted in known_keys():
        *sections, name = dotted.split(".")
        holder: Any = ExperimentConfig
        for section in sections:
            holder = holder.model_fields[section].annotation
        fields.append((dotted, holder.model_fields[name]))
    return fields


def test_every_key_says_what_it_means() -> None:
    def is_section(annotation: Any) -> bool:
        return isinstance(annotation, type) and issubclass(annotation, BaseModel)

    leaves = [(name, field) for name, field in section_fields() if not is_section(field.annotation)]
    assert len(leaves) > 60
    assert [name for name, field in leaves if len(field.description or "") < 4] == []


@pytest.mark.parametrize(
    ("dotted", "kind"),
    [
        ("run.seed", "identity"),
        ("run.dir", "placement"),
        ("data.root", "placement"),
        ("data.split", "identity"),
        ("data.heldout_split", "identity"),
        ("method", "identity"),
        ("model.name", "identity"),
        ("train.batch_size", "identity"),
        ("train.microbatch_size", "identity"),
        ("train.precision", "identity"),
        ("train.num_epochs", "horizon"),
        ("clustering.num_clusters", "identity"),
        ("clustering.placement", "placement"),
        ("readout.pca_dimensions", "identity"),
        ("launch.backend", "placement"),
        ("launch.num_processes", "placement"),
        ("launch.threads_per_process", "placement"),
        ("data.num_workers", "placement"),
        ("checkpoint.keep", "placement"),
        ("metrics.prometheus_port", "placement"),
    ],
)
def test_kind_of_a_key(dotted: str, kind: str) -> None:
    assert kind_of(tuple(dotted.split("."))) == kind


def test_all_of_launch_metrics_checkpoint_and_evaluation_is_placement() -> None:
    for dotted in known_keys():
        section, _, name = dotted.partition(".")
        if name and section in ("launch", "metrics", "checkpoint", "evaluation"):
            assert kind_of((section, name)) == "placement", dotted


def test_values_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        config().train.batch_size = 3  # type: ignore[misc]


def test_every_section_refuses_unknown_keys() -> None:
    def subclasses(section: type[Section]) -> list[type[Section]]:
        return [found for child in section.__subclasses__() for found in (child, *subclasses(child))]

    found = subclasses(Section)
    assert ExperimentConfig in found
    assert StageConfig in found
    for section in found:
        assert section.model_config["extra"] == "forbid", section


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("views", {"scale": [0.5, 0.1]}, r"begins with its lower end, as in \[0.1, 0.5\]"),
        ("views", {"scale": [0.5, 1.5]}, "less than or equal to 1"),
        ("views", {"scale": [0.0, 1.0]}, "greater than 0"),
        ("views", {"ratio": [2.0, 1.0]}, "lower end"),
        ("views", {"zoom": [1.2, 0.8]}, "lower end"),
        ("views", {"std": [0.2, 0.0, 0.2]}, "greater than 0"),
        ("views", {"image_size": 64, "resize": 32}, "resize=32 is too small to cut views.image_size=64"),
        ("views", {"hue": 0.6}, "less than or equal to 0.5"),
        (
            "train",
            {"batch_size": 100, "microbatch_size": 30},
            "microbatch_size=30 does not divide train.batch_size=100",
        ),
        ("train", {"microbatch_size": "half"}, "'auto'"),
        ("train", {"learning_rate": 0.0}, "greater than 0"),
        ("train", {"learning_rate": float("nan")}, "finite"),
        ("checkpoint", {"keep": 1}, "greater than or equal to 2"),
        ("metrics", {"prometheus_port": 70000}, "less than or equal to 65535"),
        ("deepcluster", {"sampler": "correct"}, "'uniform' or 'reference'"),
    ],
)
def test_values_out_of_range_are_refused(section: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**{section: values})


def test_equal_ends_are_a_range() -> None:
    assert config(views={"scale": [0.5, 0.5], "zoom": [1, 1]}).views.scale == (0.5, 0.5)


def test_merge_goes_into_mappings_and_replaces_anything_else() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert merge(base, {"a": {"c": [9]}, "e": 4}) == {"a": {"b": 1, "c": [9]}, "d": 3, "e": 4}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert merge({"a": {"b": 1}}, {"a": None}) == {"a": None}


def test_without_stages_the_top_level_is_the_only_one_named_as_the_method() -> None:
    (stage,) = config(train={"num_epochs": 7}).resolved_stages()
    assert (stage.name, stage.method, stage.train.num_epochs) == ("deepcluster", "deepcluster", 7)


def test_a_stage_overrides_the_top_level_key_by_key() -> None:
    experiment = config(
        train={"num_epochs": 7, "batch_size": 64},
        clustering={"num_clusters": 5},
        stages=[{"name": "a"}, {"name": "b", "train": {"num_epochs": 2}, "clustering": {"num_clusters": 9}}],
    )
    first, second = experiment.resolved_stages()
    assert (first.name, first.train.num_epochs, first.train.batch_size, first.clustering.num_clusters) == (
        "a",
        7,
        64,
        5,
    )
    assert (second.name, second.train.num_epochs, second.train.batch_size, second.clustering.num_clusters) == (
        "b",
        2,
        64,
        9,
    )


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"name": "a"}, {"name": "a"}], "different names, these are a, a"),
        ([{"train": {"num_epochs": 1}}], "not None"),
        ([{"name": 1}], "not 1"),
        ([{"name": "1"}], "not '1'"),
        ([{"name": "a/b"}], "not 'a/b'"),
        ([{"name": "a.b"}], "not 'a.b'"),
        ([{"name": ""}], "not ''"),
    ],
)
def test_stages_need_names_that_dotted_keys_and_files_can_hold(stages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(stages=stages)
