"""`dcdist export`: files that others load, the card, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import dcdist
from dcdist.cli import main
from dcdist.errors import UsageError
from dcdist.evaluate import evaluate
from dcdist.evaluate.measured import Options
from dcdist.evaluation.feature_sets import TRAINED
from dcdist.export import export
from tests.export.conftest import NUM_PICTURES
from tests.models.layers import replaced
from tests.runs.processes import run, write_config

ONLY_TRAINED = Options(feature_sets=(TRAINED,), num_seeds=1)


def ends(arguments: list[str]) -> int:
    try:
        main(arguments)
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def card_of(path: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads(path.read_text())
    return card


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def test_a_file_and_its_card(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "backbone.safetensors"
    assert ends(["export", str(finished), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"{out}: 44.7 MB, resnet18, images of 32 pixels to 512 features, loadable by torchvision and timm" in printed
    assert str(out.with_suffix(".json")) in printed
    card = card_of(out.with_suffix(".json"))
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["dcdist"]) == card
    last = max(finished.glob("checkpoints/*-final.*"))
    assert card["format"] == 1
    assert card["architecture"]["name"] == "resnet18"
    assert card["architecture"]["options"] == {"small_images": False}
    assert card["architecture"]["image_size"] == 32
    assert card["architecture"]["timm"]["options"] == {"num_classes": 0, "in_chans": 2}
    assert card["stem"]["filters"][0] == [[1, 0, -1], [2, 0, -2], [1, 0, -1]]
    assert card["stem"]["filters"][1] == [[1, 2, 1], [0, 0, 0], [-1, -2, -1]]
    assert card["features"] == {"dimension": 512, "before_relu": False, "pooling": "average"}
    assert card["normalization"]["standardize"]
    assert card["normalization"]["mean"] is None
    assert card["normalization"]["added_to_deviation"] == 0.05
    assert (card["normalization"]["resize"], card["normalization"]["image_size"]) == (36, 32)
    assert card["training_set"]["num_images"] == NUM_PICTURES
    assert (
        card["training_set"]["fingerprint"]
        == json.loads((finished / "attempts/0001.json").read_text())["data"]["fingerprint"]
    )
    assert card["training"]["stages"] == [
        {"name": "first", "method": "deepcluster", "num_epochs": 1},
        {"name": "second", "method": "deepcluster", "num_epochs": 1},
    ]
    assert (card["training"]["seed"], card["training"]["checkpoint"]) == (5, last.name)
    assert (card["training"]["stage"], card["training"]["stage_done"]) == ("second", True)
    assert card["clusters"] == 3


def test_the_network_in_torchvision(finished: Path, exported: Path) -> None:
    from torchvision.models import get_model

    there = card_of(exported / "backbone.json")["architecture"]["torchvision"]
    network = replaced(get_model(there["name"], weights=None, **there["options"]), there["replace"])
    network.load_state_dict(load_file(exported / "backbone.safetensors"))
    module, _ = dcdist.load(finished)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(module.stem(images)), module(images), rtol=1e-6, atol=1e-6)


def test_a_stage_as_it_was_left(finished: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert ends(["export", str(finished), "--out", str(first), "--stage", "first"]) == 0
    export(str(finished), str(second), stage="second")
    assert not torch.equal(load_file(first)["conv1.weight"], load_file(second)["conv1.weight"])
    card = card_of(first.with_suffix(".json"))
    assert card["training"]["stage"] == "first"
    assert [stage["name"] for stage in card["training"]["stages"]] == ["first"]
    assert card["normalization"]["standardize"] is False
    assert card["normalization"]["std"] == [0.229, 0.224, 0.225]
    assert card["scores"] == {}, "the summary is of the second stage"


def test_scores_are_those_of_the_weights(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for neighbors in ((3,), (5, 7)):
        evaluate(str(folder), ("knn", "clusters"), replace(ONLY_TRAINED, neighbors=neighbors))
    evaluate(str(folder), ("knn",), replace(ONLY_TRAINED, stage="first", neighbors=(9,)))
    summary = json.loads((folder / "evaluations/summary-0001.json").read_text())
    later = {**summary, "losses": [*summary["losses"], {"epoch": 1, "loss": 1.0, "heldout_loss": None}]}
    (folder / "evaluations/summary-0002.json").write_text(json.dumps(later))  # as where training had gone on
    export(str(folder), str(tmp_path / "second.safetensors"))
    scores = card_of(tmp_path / "second.json")["scores"]
    report = json.loads((folder / "evaluations/knn-0002.json").read_text())
    assert scores["knn"]["report"] == "knn-0002.json", "the newest of this checkpoint"
    assert scores["knn"]["rows"] == report["rows"]
    assert scores["knn"]["data"]["num_images"] == NUM_PICTURES
    assert set(scores["knn"]["rows"][0]["top1"]) == {"5", "7"}
    assert scores["summary"]["report"] == "summary-0001.json"
    assert [row["name"] for row in summary["rows"]] == ["raw pixels", "untrained network", "trained network"]
    assert scores["summary"]["rows"] == summary["rows"][-1:]
    (clusters,) = scores["clusters"]["rows"]
    assert 0 <= clusters["final"]["scores"]["train"]["nmi"]["mean"] <= 1
    assert "seeds" not in clusters["final"], "lists are left out"
    export(str(folder), str(tmp_path / "first.safetensors"), stage="first")
    assert set(card_of(tmp_path / "first.json")["scores"]) == {"knn"}
    assert card_of(tmp_path / "first.json")["scores"]["knn"]["report"] == "knn-0003.json"


def test_twice_the_same_bytes(finished: Path, exported: Path, tmp_path: Path) -> None:
    for name in ("backbone.onnx", "backbone.safetensors"):
        export(str(finished), str(tmp_path / name))
    for path in exported.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_a_second_format_after_an_evaluation(finished: Path, tmp_path: Path) -> None:
    """The card of the same network has got scores."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    card = tmp_path / "backbone.json"
    export(str(run), str(tmp_path / "backbone.safetensors"))
    before = json.loads(card.read_text())
    evaluate(str(run), ("knn",), Options(feature_sets=(TRAINED,), neighbors=(5,)))
    export(str(run), str(tmp_path / "backbone.onnx"))
    after = json.loads(card.read_text())
    assert before.pop("scores") != after.pop("scores")
    assert before == after


def test_nothing_is_overwritten_unasked(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "backbone.safetensors"
    export(str(finished), str(out))
    before = out.read_bytes()
    with pytest.raises(UsageError, match=r"backbone.safetensors exists: give another --out, or --overwrite"):
        export(str(finished), str(out), stage="first")
    assert ends(["export", str(finished), "--out", str(out), "--stage", "first"]) == 2
    assert "exists" in capsys.readouterr().err
    # The card of another network is in the way, too, that of the same network is not.
    out.unlink()
    with pytest.raises(UsageError, match=r"backbone.json exists and describes something else"):
        export(str(finished), str(out), stage="first")
    export(str(finished), str(out))
    assert out.read_bytes() == before
    assert ends(["export", str(finished), "--out", str(out), "--stage", "first", "--overwrite"]) == 0
    assert out.read_bytes() != before
    assert card_of(tmp_path / "backbone.json")["training"]["stage"] == "first"


@pytest.mark.parametrize("name", ["backbone.pth", "backbone", ".onnx", "backbone.safetensors.gz"])
def test_other_suffixes_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the suffix says the format, it is one of \.safetensors, \.onnx"):
        export(str(tmp_path), str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_a_url_without_a_folder_is_refused(finished: Path) -> None:
    with pytest.raises(UsageError, match=r"no file in a folder or bucket, as in s3://bucket/backbone.onnx"):
        export(str(finished), "s3://backbone.onnx")


def test_where_nothing_can_be_written(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UsageError, match=r"--out='.*file/backbone.safetensors' cannot be written"):
        export(str(finished), str(tmp_path / "file" / "backbone.safetensors"))


def test_behind_a_url(finished: Path, exported: Path, tmp_path: Path) -> None:
    out = f"memory://{tmp_path.name}/backbone.safetensors"
    assert export(str(finished), out).file == out
    with fsspec.open(out) as file:
        assert file.read() == (exported / "backbone.safetensors").read_bytes()
    with pytest.raises(UsageError, match="exists"):
        export(str(finished), out)


def test_another_run_starts_from_the_file(finished: Path, exported: Path, pictures: Path, tmp_path: Path) -> None:
    out = exported / "backbone.safetensors"
    values = {
        "run": {"dir": str(tmp_path / "run"), "seed": 9},
        "data": {"root": str(pictures), "num_workers": 0},
        "views": {"image_size": 32, "resize": 36},
        "model": {"name": "resnet18", "sobel": True, "initial_weights": str(out)},
        "features": {"pca_dimensions": 8},
        "clustering": {"num_clusters": 4, "num_iterations": 2},
        # so small a rate that a step leaves the weights where they were, up to rounding
        "train": {
            "num_epochs": 1,
            "batch_size": 16,
            "steps_per_epoch": 1,
            "learning_rate": 1e-30,
            "weight_decay": 0.0,
            "precision": "fp32",
        },
        "launch": {"device": "cpu"},
        "metrics": {"tensorboard": False, "progress": False},
        "evaluation": {"summary": False},
    }
    assert run(write_config(tmp_path / "config.yaml", values)) == [0]
    continued, original = dcdist.load(tmp_path / "run").module, dcdist.load(finished).module
    weights = dict(original.named_parameters())
    assert all(torch.equal(parameter, weights[name]) for name, parameter in continued.named_parameters())
