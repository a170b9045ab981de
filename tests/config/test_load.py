"""Reading experiment files: extends, overrides, and errors that say what to mend."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dcdist.config.load import known_keys, load_config, parse_yaml, to_yaml
from dcdist.errors import ExitCode, UsageError

BASE = "run: {dir: r}\ndata: {root: d}\n"
STAGES = BASE + "stages: [{name: a, train: {batch_size: 32}}, {name: b, train: {batch_size: 64, num_epochs: 2}}]\n"


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes, name: str = "experiment.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_yaml_reads_floats_as_version_1_2_does_and_no_dates() -> None:
    text = "[1e-4, -1E3, .5e1, 1.e2, 3, 0.25, 1e-4x, 2024-01-01, true, null]"
    assert parse_yaml(text, "x") == [1e-4, -1000.0, 5.0, 100.0, 3, 0.25, "1e-4x", "2024-01-01", True, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {num_epochs: 1, num_epochs: 2}", "the key 'num_epochs' is there twice"),
        ("run: {dir: {{ RUN }}}", "cannot be a key"),
        ("? [a]\n: 1", "cannot be a key"),
        ("a: [1", "not valid YAML"),
    ],
)
def test_yaml_that_does_not_parse_is_named(write, text: str, message: str) -> None:
    path = write(text)
    with pytest.raises(UsageError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)
    assert error.value.exit_code is ExitCode.USAGE


def test_values_and_defaults(write) -> None:
    config = load_config(write(BASE + "train: {learning_rate: 1e-3}\nviews: {scale: [0.2, 1]}\n"))
    assert config.train.learning_rate == 1e-3
    assert config.views.scale == (0.2, 1.0)
    assert config.run.seed == 31


def test_extends_is_relative_to_the_file_and_merged_key_by_key(write, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "bases").mkdir()
    write(BASE + "train: {num_epochs: 3, batch_size: 64}\nclustering: {num_clusters: 4}\n", "bases/first.yaml")
    write("extends: first.yaml\ntrain: {num_epochs: 5}\n", "bases/second.yaml")
    path = write("extends: bases/second.yaml\nclustering: {num_clusters: 6}\n")
    monkeypatch.chdir("/")
    config = load_config(path)
    assert (config.train.num_epochs, config.train.batch_size, config.clustering.num_clusters) == (5, 64, 6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: experiment.yaml\n", "extends itself"),
        ("extends: bse.yaml\n", r"bse\.yaml does not exist or is no file; did you mean base\.yaml\?"),
        ("extends: [base.yaml]\n", r"extends=\['base.yaml'\] is no path"),
        ("- a\n", "holds a list; expected a mapping"),
        ("", "holds a NoneType; expected a mapping"),
        (b"PAR1\xff\xfe", "it is no text in UTF-8"),
    ],
)
def test_files_that_are_no_experiment_are_refused(write, text: str | bytes, message: str) -> None:
    write(BASE, "base.yaml")
    with pytest.raises(UsageError, match=message):
        load_config(write(text))


def test_a_missing_file_and_a_folder_are_refused(write, tmp_path: Path) -> None:
    write(BASE, "digits.yaml")
    with pytest.raises(UsageError, match=r"digit\.yaml does not exist or is no file; did you mean digits\.yaml\?"):
        load_config(tmp_path / "digit.yaml")
    with pytest.raises(UsageError, match="does not exist or is no file"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {num_epochs: 1}", "unknown key trian; did you mean train?"),
        ("train: {num_epoch: 1}", "unknown key train.num_epoch; did you mean train.num_epochs?"),
        ("num_epochs: 1", "unknown key num_epochs; did you mean train.num_epochs?"),
        ("train: {num_clusters: 1}", "unknown key train.num_clusters; did you mean clustering.num_clusters?"),
        ("checkpoint: {xyz: 1}", "unknown key checkpoint.xyz; known here: every_num_steps, every_seconds, keep"),
        ("on: 1", "unknown key True; known here: method, run, data"),
        ("1: 1", "unknown key 1; known here: method, run, data"),
        ("stages: [{name: a, trian: {}}]", "unknown key stages.a.trian; did you mean train?"),
        ("stages: [{name: a, train: {bath_size: 1}}]", "stages.a.train.bath_size; did you mean train.batch_size?"),
        ("stages: [{train: {bath_size: 1}}]", "stages.0.train.bath_size; did you mean train.batch_size?"),
        ("stages: [{name: a, launch: {}}]", "unknown key stages.a.launch: it belongs to the top level"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(write, text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        load_config(write(BASE + text))
    assert message in str(error.value)


def test_everything_wrong_is_said_at_once_a_line_a_key(write) -> None:
    path = write(BASE + "train: {num_epochs: 0, microbatch_size: half, optimizer: sdg}\nviews: {mean: [1, 2]}\n")
    with pytest.raises(UsageError) as error:
        load_config(path)
    assert str(error.value).splitlines() == [
        f"{path}: views.mean.2=[1, 2]: Field required",
        "train.num_epochs=0: Input should be greater than or equal to 1",
        "train.microbatch_size='half': Input should be a valid integer, unable to parse string as an integer"
        " or Input should be 'auto'",
        "train.optimizer='sdg': Input should be 'sgd', 'larc', 'adam' or 'adamw'",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {root: d}\n", "run.dir: Field required"),
        (BASE + "train:\n", "train=None: Input should be a valid dictionary"),
        (BASE + "views: {scale: [0.5, 0.1]}\n", "views.scale=[0.5, 0.1]: a range begins with its lower end"),
        (BASE + "train: {batch_size: 9, microbatch_size: 2}\n", ": train.microbatch_size=2 does not divide"),
        (
            BASE + "stages: [{name: a, train: {num_epochs: 0}}]\n",
            "stages.a: train.num_epochs=0: Input should be greater",
        ),
        (BASE + "stages: [{train: {num_epochs: 1}}]\n", "each stage has a name"),
        (BASE + "stages: {a: {}}\n", "stages is a list of mappings, each with a name, not {'a': {}}"),
        (BASE + "stages: 5\n", "stages is a list of mappings, each with a name, not 5"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(write, text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        load_config(write(text), ["run.seed=1"])
    assert message in str(error.value)
    assert "pydantic" not in str(error.value)


def test_overrides_are_yaml_and_apply_in_order(write) -> None:
    overrides = [
        "train.learning_rate=1e-3",
        "train.num_epochs=4",
        "train.num_epochs=6",
        "data.split=",
        "run.dir=s3://b/x",
    ]
    overrides += ["views.scale=[0.3, 0.9]", "readout={num_clusters: 7, whiten: false}", "data.root=2024-01-01"]
    config = load_config(write("run: {dir: r}\ndata: {root: d, split: train}\n"), overrides)
    assert (config.train.learning_rate, config.train.num_epochs, config.data.split) == (1e-3, 6, None)
    assert (config.run.dir, config.data.root) == ("s3://b/x", "2024-01-01")
    assert config.views.scale == (0.3, 0.9)
    assert (config.readout.num_clusters, config.readout.whiten) == (7, False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.num_epochs", "is not of the form section.key=value"),
        ("=5", "is not of the form section.key=value"),
        ("train.num_epochs=", "train.num_epochs=None: Input should be a valid integer"),
        ("train.num_epoch=5", "did you mean train.num_epochs?"),
        ("run.dir=[", "override 'run.dir=[' is not valid YAML"),
        ("run.dir={{ RUN }}", "is not valid YAML"),
        ("train=5", "train=5: Input should be a valid dictionary"),
        ("train.num_epochs.x=5", "train.num_epochs: Input should be a valid integer"),
    ],
)
def test_a_wrong_override_is_refused(write, override: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        load_config(write(BASE), [override])
    assert message in str(error.value)


def test_an_override_that_every_stage_hides_names_the_keys_to_use(write) -> None:
    with pytest.raises(UsageError) as error:
        load_config(write(STAGES), ["train.batch_size=128"])
    assert "every stage sets train.batch_size itself" in str(error.value)
    assert "use stages.a.train.batch_size or stages.b.train.batch_size" in str(error.value)


def test_an_override_that_one_stage_hides_reaches_the_others(write) -> None:
    first, second = load_config(write(STAGES), ["train.num_epochs=9"]).resolved_stages()
    assert (first.train.num_epochs, second.train.num_epochs) == (9, 2)


def test_an_override_of_a_section_is_hidden_only_if_each_of_its_keys_is(write) -> None:
    first, second = load_config(write(STAGES), ["train={learning_rate: 0.5}"]).resolved_stages()
    assert (first.train.learning_rate, second.train.learning_rate) == (0.5, 0.5)
    with pytest.raises(UsageError, match="every stage sets train itself"):
        load_config(write(STAGES), ["train={batch_size: 128}"])


@pytest.mark.parametrize("stage", ["b", "1"])
def test_an_override_of_a_stage_by_name_or_position(write, stage: str) -> None:
    first, second = load_config(write(STAGES), [f"stages.{stage}.train.batch_size=16"]).resolved_stages()
    assert (first.train.batch_size, second.train.batch_size, second.train.num_epochs) == (32, 16, 2)


def test_an_override_of_an_unknown_stage_lists_the_stages(write) -> None:
    with pytest.raises(UsageError, match=r"stages\.c does not exist; the config's stages are: a, b"):
        load_config(write(STAGES), ["stages.c.train.batch_size=16"])
    with pytest.raises(UsageError, match="the config's stages are: none"):
        load_config(write(BASE), ["stages.c.train.batch_size=16"])


def test_a_config_survives_being_written_and_read(write) -> None:
    config = load_config(write(STAGES + "views: {scale: [0.2, 0.9]}\nmodel: {name: '2024-01-01'}\n"))
    assert load_config(write(to_yaml(config), "again.yaml")) == config


def test_known_keys_are_dotted_and_complete() -> None:
    keys = known_keys()
    assert {"train", "train.batch_size", "stages", "run.dir"} <= set(keys)
    assert len(keys) == len(set(keys))


JOINT = BASE + "method: joint\njoint: {parts: [{name: a, method: simclr, WHAT}, {name: b, method: deepcluster}]}\n"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("wieght: 2", "unknown key joint.parts.a.wieght"),
        ("weight: 0", "joint.parts: weight=0: Input should be greater than 0"),
        ("simclr: {temprature: 1}", "unknown key joint.parts.a.simclr.temprature; did you mean simclr.temperature?"),
        ("train: {num_epochs: 1}", "part a of joint.parts cannot set train: it belongs to the stage"),
    ],
)
def test_parts_of_a_joint_method_are_checked_like_stages(write, what: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        load_config(write(JOINT.replace("WHAT", what)))


def test_parts_of_a_joint_method_override_the_stage(write) -> None:
    config = load_config(write(JOINT.replace("WHAT", "weight: 0.5, views: {image_size: 64}")))
    (stage,) = config.resolved_stages()
    (first, weight), (second, default) = stage.resolved_parts()
    assert (first.name, first.method, first.views.image_size, weight) == ("a", "simclr", 64, 0.5)
    assert (second.name, second.method, second.views.image_size, default) == ("b", "deepcluster", 224, 1.0)


@pytest.mark.parametrize("part", ["b", "1"])
def test_an_override_may_change_a_part_of_a_joint_method(write, part: str) -> None:
    path = write(JOINT.replace("WHAT", "weight: 0.5"))
    config = load_config(path, [f"joint.parts.{part}.weight=2", f"joint.parts.{part}.deepcluster.sampler=reference"])
    (_, first), (second, weight) = config.resolved_stages()[0].resolved_parts()
    assert (first, weight, second.deepcluster.sampler) == (0.5, 2.0, "reference")
    with pytest.raises(UsageError, match=re.escape("joint.parts.c does not exist; the config's joint.parts are: a, b")):
        load_config(path, ["joint.parts.c.weight=2"])


def test_an_override_may_change_a_part_of_a_stage(write) -> None:
    text = BASE + "stages: [{name: s, method: joint, joint: {parts: [{name: a, method: simclr}]}}]\n"
    config = load_config(write(text), ["stages.s.joint.parts.a.simclr.temperature=0.5"])
    ((part, _),) = config.resolved_stages()[0].resolved_parts()
    assert part.simclr.temperature == 0.5
