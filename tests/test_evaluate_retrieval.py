"""`dcdist evaluate retrieval`: crops of real photographs are found again, by both forms of ground truth."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from dcdist.cli import main
from dcdist.errors import UsageError
from dcdist.evaluate.retrieval import RetrievalOptions, evaluate_retrieval
from dcdist.evaluate.retrieval_table import render
from tests.runs.conftest import experiment
from tests.runs.processes import run, write_config

NUM_QUERIES, NUM_OTHERS, NUM_WHITENING = 12, 48, 40
CHANCE = 0.053  # mean over random rankings of 95 images with three positives
BROKEN = b"<html>302 Found</html>"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was done: one epoch, for most of it is about the untrained network."""
    folder = tmp_path_factory.mktemp("finished")
    digits = load_digits()
    for index in range(40):
        target = folder / "digits" / str(digits.target[index])
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[index] * 255 / 16).astype("uint8")).save(target / f"{index:04d}.png")
    values = experiment(folder / "digits", folder / "run")
    values["model"] = {"name": "small_resnet", "width": 0.5}
    values["train"]["num_epochs"] = 1
    assert run(write_config(folder / "config.yaml", values)) == [0]
    return folder / "run"


@dataclass(frozen=True)
class Photographs:
    """Photographs, and in which others each query is to be found."""

    root: Path
    text: Path
    revisited: Path
    whitening: Path

    def options(self, **others: Any) -> RetrievalOptions:
        return RetrievalOptions(
            **{"data": str(self.root), "ground_truth": self.text, "size": 96, "layer": "conv2", **others}
        )


def photographs(shared_data: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(shared_data / "voc2007_excerpt.tar") as archive:
        for member in archive:
            if member.name.endswith(".jpg"):
                file = archive.extractfile(member)
                assert file is not None
                yield Path(member.name).stem, file.read()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Photographs:
    """Of each query's photograph two crops (good), a mirrored one (ok) and itself (junk); in folders as Paris6k's."""
    folder = tmp_path_factory.mktemp("photographs")
    made = Photographs(folder / "jpg", folder / "gt", folder / "gnd.pkl", folder / "whitening")
    for path in (made.root / "places", made.root / "general", made.text, made.whitening):
        path.mkdir(parents=True)
    queries, others = [], []
    for number, (name, content) in enumerate(photographs(shared_data)):
        if number >= NUM_QUERIES + NUM_OTHERS + NUM_WHITENING:
            break
        if number >= NUM_QUERIES + NUM_OTHERS:
            (made.whitening / f"{name}.jpg").write_bytes(content)
        elif number >= NUM_QUERIES:
            (made.root / "general" / f"{name}.jpg").write_bytes(content)
            others.append(name)
        else:
            (made.root / "places" / f"{name}.jpg").write_bytes(content)
            image = Image.open(io.BytesIO(content)).convert("RGB")
            width, height = image.size
            for suffix, box in {
                "a": (0, 0, 0.8, 0.9),
                "b": (0.15, 0.1, 1, 1),
                "c": (0.1, 0.1, 0.9, 0.9),
            }.items():
                crop = image.crop(tuple(int(e * side) for e, side in zip(box, (width, height) * 2, strict=True)))
                if suffix == "c":
                    crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                crop.save(made.root / "places" / f"{name}_{suffix}.jpg", quality=90)
            queries.append((name, [0.05 * width, 0.05 * height, 0.95 * width, 0.95 * height]))
            for kind, lines in {
                "query": [f"{name} {' '.join(map(str, queries[-1][1]))}"],
                "good": [f"{name}_a", f"{name}_b"],
                "ok": [f"{name}_c"],
                "junk": [name],
            }.items():
                (made.text / f"place_{number + 1}_{kind}.txt").write_text("".join(f"{line}\n" for line in lines))
    ranked = [f"{name}_{suffix}" for name, _ in queries for suffix in "abc"] + others
    entries = [
        {"bbx": box, "easy": np.array([3 * i, 3 * i + 1]), "hard": [3 * i + 2], "junk": np.array([])}
        for i, (_, box) in enumerate(queries)
    ]
    content = {"imlist": ranked, "qimlist": [name for name, _ in queries], "gnd": entries}
    made.revisited.write_bytes(pickle.dumps(content, 2))
    return made


def copied(made: Photographs, target: Path) -> Photographs:
    """The same, free to be changed."""
    paths = {}
    for name in ("root", "text", "revisited", "whitening"):
        path: Path = getattr(made, name)
        paths[name] = target / path.name
        for file in [path] if path.is_file() else path.rglob("*.*"):
            copy = target / file.relative_to(path.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    return replace(made, **paths)


def test_crops_of_a_photograph_are_found(finished: Path, made: Photographs) -> None:
    report = evaluate_retrieval(str(finished), made.options(whitening_data=str(made.whitening)))
    assert [row["name"] for row in report["rows"]] == ["untrained network", "trained network"]
    for row in report["rows"]:
        scores = row["settings"]["original"]
        assert scores["mAP"] > 10 * CHANCE, row["name"]
        assert scores["num_queries"] == NUM_QUERIES
        assert scores["mAP"] == pytest.approx(np.mean([query["average_precision"] for query in scores["queries"]]))
        assert {query["num_positives"] for query in scores["queries"]} == {3}
        assert (row["layer"], row["num_channels"], row["num_dimensions"]) == ("conv2", 32, 32)
    assert report["data"]["num_ranked"] == 4 * NUM_QUERIES + NUM_OTHERS
    assert report["protocol"]["whitening"]["num_images"] == NUM_WHITENING
    assert json.loads((finished / "evaluations" / "retrieval-0001.json").read_text()) == report
    text = render(report)
    assert "12 queries of" in text
    assert "DeepCluster, ImageNet (Caron et al., ECCV 2018; as remembered, not looked up again)" in text
    assert max(map(len, text.replace(str(made.root.parent), "").replace(str(finished), "").splitlines())) <= 120


def test_the_same_again_gives_the_same(finished: Path, made: Photographs) -> None:
    options = made.options(whitening_data=str(made.whitening), size=64)
    first, again = (evaluate_retrieval(str(finished), options)["rows"] for _ in range(2))
    assert [row["settings"] for row in first] == [row["settings"] for row in again]


def test_the_revision_in_its_three_settings(finished: Path, made: Photographs) -> None:
    """Mirrored crops are its hard ones; easy and hard each have the other as junk, so medium lies between."""
    options = made.options(ground_truth=made.revisited, baselines=False)
    report = evaluate_retrieval(str(finished), options)
    (row,) = report["rows"]
    scores = row["settings"]
    assert list(scores) == ["easy", "medium", "hard"]
    assert all(found["mAP"] > 5 * CHANCE for found in scores.values())
    assert [found["queries"][0]["num_positives"] for found in scores.values()] == [2, 3, 1]
    assert [found["queries"][0]["num_junk"] for found in scores.values()] == [1, 0, 2]
    assert report["data"]["num_ranked"] == 3 * NUM_QUERIES + NUM_OTHERS
    assert report["data"]["num_not_ranked"] == NUM_QUERIES
    assert report["published"] == []
    assert "trained network, medium" in render(report)
    assert "not whitened" in render(report)


def test_a_query_without_anything_to_find_is_left_out(finished: Path, made: Photographs, tmp_path: Path) -> None:
    made = copied(made, tmp_path)
    content = pickle.loads(made.revisited.read_bytes())
    for entry in content["gnd"]:
        entry["hard"] = []
    content["gnd"][0]["easy"] = []
    made.revisited.write_bytes(pickle.dumps(content))
    options = made.options(ground_truth=made.revisited, baselines=False, size=64)
    report = evaluate_retrieval(str(finished), options)
    scores = report["rows"][0]["settings"]
    assert [found["num_queries"] for found in scores.values()] == [NUM_QUERIES - 1, NUM_QUERIES - 1, 0]
    assert [found["num_left_out"] for found in scores.values()] == [1, 1, NUM_QUERIES]
    assert scores["hard"]["mAP"] is None
    assert scores["hard"]["mP"] == {"1": None, "5": None, "10": None}


def test_an_exact_duplicate_is_found_first(finished: Path, made: Photographs, tmp_path: Path) -> None:
    made = copied(made, tmp_path)
    query = next((made.root / "places").glob("*_a.jpg"))
    (made.root / "duplicate.jpg").write_bytes(query.read_bytes())
    with Image.open(query) as image:
        width, height = image.size
    for file in made.text.glob("*"):
        file.unlink()
    for kind, line in {
        "query": f"oxc1_{query.stem} 0 0 {width} {height}",
        "good": "duplicate",
        "ok": "",
        "junk": query.stem,
    }.items():
        (made.text / f"twin_1_{kind}.txt").write_text(line)
    report = evaluate_retrieval(str(finished), made.options(whitening_data=str(made.whitening)))
    for row in report["rows"]:
        assert row["settings"]["original"]["mAP"] == 1.0
        assert row["settings"]["original"]["mP"]["1"] == 1.0


def test_images_that_do_not_decode_are_left_out_named_and_counted(
    finished: Path, made: Photographs, tmp_path: Path
) -> None:
    made = copied(made, tmp_path)
    (made.root / "general" / "nothing_000001.jpg").write_bytes(BROKEN)
    first = sorted((made.root / "places").glob("*_a.jpg"))[0]
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    (made.whitening / "nothing_000002.jpg").write_bytes(b"")
    options = made.options(whitening_data=str(made.whitening), baselines=False, size=64)
    report = evaluate_retrieval(str(finished), options)
    assert list(report["data"]["undecodable"]) == sorted(["nothing_000001", first.stem])
    assert report["data"]["num_ranked"] == 4 * NUM_QUERIES + NUM_OTHERS - 1
    assert report["data"]["num_undecodable_positives"] == 1
    assert report["protocol"]["whitening"]["num_images"] == NUM_WHITENING
    assert report["protocol"]["whitening"]["undecodable"] == {"nothing_000002": "the file is empty"}
    scores = report["rows"][0]["settings"]["original"]["queries"]
    (spoilt,) = (query for query in scores if f"{query['image']}_a" == first.stem)
    assert spoilt["num_positives"] == 3, "what cannot be ranked still was to be found"
    assert spoilt["average_precision"] <= 2 / 3
    text = render(report)
    assert "2 images do not decode and are not ranked: " in text
    assert "1 of them were to be found and count as not found" in text
    assert "1 images do not decode and are not whitened with: nothing_000002" in text


def test_a_query_that_does_not_decode_is_an_error(finished: Path, made: Photographs, tmp_path: Path) -> None:
    made = copied(made, tmp_path)
    image = (made.text / "place_3_query.txt").read_text().split()[0]
    (made.root / "places" / f"{image}.jpg").write_bytes(BROKEN)
    with pytest.raises(UsageError, match=rf"place_3_query\.txt:1: image '{image}' does not decode \(no known"):
        evaluate_retrieval(str(finished), made.options())
    with pytest.raises(UsageError, match=rf"gnd\.pkl: gnd\[\d+\]: image '{image}' does not decode"):
        evaluate_retrieval(str(finished), made.options(ground_truth=made.revisited))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "{image} 4000 0 5000 10",
            r"place_1_query.txt:1: image '\d+': the box \[4000.0, 0.0, 5000.0, 10.0\] holds no pixel",
        ),
        ("{image} 0 0 5 5", r"place_1_query.txt:1: image '\d+': layer conv2 has no map of an image of 1 x 1 pixels"),
        ("nowhere 0 0 2 2", r"place_1_query.txt:1 names 'nowhere', which is none of the 96 images"),
    ],
)
def test_a_query_that_shows_nothing_is_an_error(
    finished: Path, made: Photographs, tmp_path: Path, line: str, message: str
) -> None:
    made = copied(made, tmp_path)
    file = made.text / "place_1_query.txt"
    file.write_text(line.format(image=file.read_text().split()[0]))
    with pytest.raises(UsageError, match=message):
        evaluate_retrieval(str(finished), made.options())


def test_whitening_on_the_images_that_are_searched_must_be_asked_for(
    finished: Path, made: Photographs, tmp_path: Path
) -> None:
    """Also where it is a copy, or one image among many."""
    options = made.options(whitening_data=str(made.root / "places"), baselines=False, size=64)
    with pytest.raises(UsageError, match=r"learnt on another set .*--allow-same-data permits it"):
        evaluate_retrieval(str(finished), options)
    assert evaluate_retrieval(str(finished), replace(options, allow_same_data=True))["rows"]
    made = copied(made, tmp_path)
    shared = next((made.root / "general").glob("*.jpg"))
    (made.whitening / shared.name).write_bytes(shared.read_bytes())
    with pytest.raises(UsageError, match=f"holds image '{shared.stem}' of --data"):
        evaluate_retrieval(str(finished), made.options(whitening_data=str(made.whitening)))
    (made.whitening / shared.name).write_bytes(shared.read_bytes() + b"longer")
    options = made.options(whitening_data=str(made.whitening), baselines=False, size=64)
    assert evaluate_retrieval(str(finished), options)["rows"], "another image of the same name"


def test_dimensions(finished: Path, made: Photographs) -> None:
    options = made.options(whitening_data=str(made.whitening), baselines=False, size=64, layer=None, dimensions=16)
    assert evaluate_retrieval(str(finished), options)["rows"][0]["num_dimensions"] == 16
    with pytest.raises(UsageError, match="--dimensions=16 is of whitened vectors: name --whitening-data, too"):
        evaluate_retrieval(str(finished), replace(options, whitening_data=None))
    with pytest.raises(UsageError, match="--dimensions=129 are more than the 128 channels of layer block2"):
        evaluate_retrieval(str(finished), replace(options, dimensions=129))


def test_the_command(finished: Path, made: Photographs, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "retrieval", str(finished), "--data", str(made.root), "--ground-truth", str(made.text)]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--size", "64", "--layer", "conv2", "--no-baselines", "--levels", "2", "--json"])
    assert not ended.value.code
    report = json.loads(capsys.readouterr().out)
    assert [row["layer"] for row in report["rows"]] == ["conv2"]
    assert (report["protocol"]["long_side"], report["protocol"]["levels"]) == (64, 2)
    with pytest.raises(SystemExit) as ended:
        main([*command, "--layer", "conv9"])
    assert ended.value.code == 2
    assert "no layer 'conv9'" in capsys.readouterr().err


def test_an_image_that_the_network_cannot_take_is_named(finished: Path, made: Photographs, tmp_path: Path) -> None:
    made = copied(made, tmp_path)
    Image.new("RGB", (600, 2)).save(made.root / "line.png")
    with pytest.raises(UsageError, match="image 'line': layer conv2 has no map of an image of 1 x 96 pixels"):
        evaluate_retrieval(str(finished), made.options())


def test_a_run_and_a_ground_truth_that_are_not_there(finished: Path, made: Photographs, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none has no config\.yaml"):
        evaluate_retrieval(str(tmp_path / "none"), made.options())
    with pytest.raises(UsageError, match="none does not exist: expected a folder of"):
        evaluate_retrieval(str(finished), made.options(ground_truth=tmp_path / "none"))
