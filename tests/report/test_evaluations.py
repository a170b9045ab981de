"""Evaluations as tables: those of known kinds, of any other kind, and damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dcdist.report.blocks import Folded, Sentence, Table
from dcdist.report.evaluations import MOST_FIGURES, evaluation_blocks, headline_scores, read_reports, tables_of
from dcdist.storage import open_storage
from tests.report.made_runs import write

DATA = {"of_the_run": True, "root": "images.parquet", "split": "train", "num_labelled": 1000}


def spread(mean: float, deviation: float | None = None) -> dict[str, float | None]:
    return {"mean": mean, "deviation": deviation}


def report(kind: str, rows: list[dict[str, Any]], number: int = 1, **others: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "rows": rows,
        "file": f"{kind}-{number:04d}.json",
        "stage": "clusters",
        "data": DATA,
        **others,
    }


def only_table(content: dict[str, Any]) -> Table:
    (table,) = tables_of(content)
    return table


def test_nearest_neighbours() -> None:
    rows = [{"name": "raw pixels", "top1": {"10": 0.5, "20": 0.6}}, {"name": "trained network", "top1": {"10": 0.7}}]
    table = only_table(report("knn", rows))
    assert (table.title, table.header) == ("Nearest neighbours", ("", "k = 10", "k = 20"))
    assert table.rows == (("raw pixels", "0.500", "0.600"), ("trained network", "0.700", "-"))


def test_the_linear_classifier_has_deviations_over_seeds() -> None:
    row = {"name": "trained network", "top1": spread(0.7, 0.0123), "top5": None, "seeds": [{"top1": 0.7}]}
    table = only_table(report("linear", [row]))
    assert table.header == ("", "top-1")
    assert table.rows == (("trained network", "0.700\u00a0±\u00a00.012"),)
    assert "1,000 images of images.parquet" in table.note


def test_clusters_have_a_row_a_read_out() -> None:
    scores = {
        "train": {"nmi": spread(0.1, 0.01), "accuracy": spread(0.6, 0.02), "purity": spread(0.65, 0.0)},
        "heldout": {"nmi": spread(0.2), "by_train_naming": spread(0.5, 0.0)},
    }
    row = {"name": "trained network", "final": {"scores": scores, "seeds": []}, "ward": {"scores": scores}}
    table = only_table(report("clusters", [row]))
    assert table.header == ("", "NMI", "ACC", "purity", "held-out NMI", "held-out ACC")
    assert [cells[0] for cells in table.rows] == ["trained network, the run's own", "trained network, Ward"]
    assert table.rows[0][1:] == (
        "0.100\u00a0±\u00a00.010",
        "0.600\u00a0±\u00a00.020",
        "0.650\u00a0±\u00a00.000",
        "0.200",
        "0.500\u00a0±\u00a00.000",
    )


def test_the_summary_has_a_table_of_features_and_one_of_clusters() -> None:
    row = {"name": "raw pixels", "plain": {"nmi": 0.1, "nmi_min": 0.05, "nmi_max": 0.2, "accuracy": 0.6}}
    row |= {"whitened": {"nmi": 0.1, "nmi_min": 0.1, "nmi_max": 0.1, "accuracy": 0.6}, "knn": 0.7, "linear": None}
    row |= {"num_clusters": 2, "num_seeds": 3}
    clusters = {"num_clusters": 2, "train": {"nmi": 0.3, "sizes": [1, 2]}, "heldout": {"by_best_naming": 0.9}}
    features, own = tables_of({"kind": "summary", "rows": [row], "clusters": clusters, "file": "summary-0001.json"})
    assert features.header == ("", "raw pixels")
    assert features.rows == (
        ("k-means, NMI", "0.100 (0.050 to 0.200)"),
        ("k-means, ACC", "0.600"),
        ("whitened k-means, NMI", "0.100"),
        ("whitened k-means, ACC", "0.600"),
        ("kNN", "0.700"),
        ("clusters", "2"),
    )
    assert own.title == "The run's own clusters, K = 2"
    assert own.header == ("", "training images", "held-out images")
    assert own.rows == (("NMI", "0.300", "-"), ("ACC, best naming", "-", "0.900"))


def test_a_kind_that_is_not_known_shows_its_numbers() -> None:
    rows = [
        {
            "name": "trained network",
            "map": spread(0.5, 0.004),
            "queries": 500,
            "protocol": "medium",
            "layers": [{"name": "conv1", "top1": spread(0.1)}, {"name": "conv2", "top1": spread(0.2)}],
            "curve": [1, 2, 3],
            "missing": None,
            "exact": True,
        }
    ]
    table = only_table(report("new-kind", rows))
    assert table.title == "New kind"
    assert dict(table.rows) == {
        "mAP": "0.500\u00a0±\u00a00.004",
        "queries": "500",
        "protocol": "medium",
        "layers, conv1, top-1": "0.100",
        "layers, conv2, top-1": "0.200",
        "exact": "yes",
    }


def test_rows_of_one_name_differ_in_other_words() -> None:
    """A linear classifier on each layer."""
    names = [("untrained network", "conv1", 0.1), ("trained network", "conv1", 0.2), ("trained network", "conv2", 0.3)]
    rows = [{"name": name, "layer": layer, "top1": spread(mean)} for name, layer, mean in names]
    content = report("linear", rows)
    assert only_table(content).rows == (
        ("untrained network, conv1", "0.100"),
        ("trained network, conv1", "0.200"),
        ("trained network, conv2", "0.300"),
    )
    assert headline_scores([content]) == {"linear classifier, best layer (conv2)": "0.300"}


def test_scores_by_mode_and_published_ones() -> None:
    modes = {"fc6-8": {"scores": {"map": spread(0.5, 0.01)}, "seeds": [{"map": 0.5}], "seconds": 7.0}}
    published = [{"name": "others", "fc6-8": 0.7, "from_memory": True}, {"name": "more", "fc6-8": 0.6}]
    data = {"root": "VOC2007", "train": {"num_images": 5}}
    rows = [{"name": "trained network", "modes": modes}]
    own, others = tables_of(report("voc-classification", rows, data=data, published=published))
    assert own.header == ("", "fc6-8, mAP")
    assert own.rows == (("trained network", "0.500\u00a0±\u00a00.010"),)
    assert own.note == "images of VOC2007; voc-classification-0001.json."
    assert others.title == "PASCAL VOC, classification, as published"
    assert others.rows == (("others, from memory", "0.700"), ("more", "0.600"))


def test_retrieval_in_its_three_settings() -> None:
    """The many queries of one setting do not push the others out."""
    queries = [{"name": f"query {n}", "average_precision": 0.5, "precision": {"1": 1.0}} for n in range(70)]
    settings = {name: {"mAP": score, "queries": queries} for name, score in (("easy", 0.3), ("medium", 0.2))}
    table = only_table(report("retrieval", [{"name": "trained network", "settings": settings}]))
    assert table.header == ("", "settings, easy, mAP", "settings, medium, mAP")
    assert table.rows == (("trained network", "0.300", "0.200"),)


def test_of_too_many_figures_the_first_are_shown() -> None:
    table = only_table(report("any", [{"name": "a", **{f"figure {n}": n for n in range(200)}}]))
    assert len(table.rows) == MOST_FIGURES
    assert f"The first {MOST_FIGURES} of 200 figures." in table.note


def test_the_newest_of_each_kind_stage_and_data_is_shown() -> None:
    rows = [{"name": "trained network", "top1": spread(0.5)}]
    other = {**DATA, "of_the_run": False, "root": "elsewhere"}
    reports = [
        report("linear", rows, 1),
        report("linear", rows, 2),
        report("linear", rows, 3, stage="pretext"),
        report("linear", rows, 4, data=other),
    ]
    *tables, folded = evaluation_blocks(reports)
    files = [table.note.split("; ")[-1] for table in tables if isinstance(table, Table)]
    assert files == ["linear-0002.json.", "linear-0003.json.", "linear-0004.json."]
    assert isinstance(folded, Folded)
    assert folded.summary == "1 older evaluation"
    assert [table.note.split("; ")[-1] for table in folded.blocks] == ["linear-0001.json."]
    assert "not those that the run was trained on" in [t.note for t in tables if isinstance(t, Table)][2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"modes": ["fc6-8"]}, {"modes": ["all"]}),
        ({"protocol": {"name": "by SGD, swav"}}, {"protocol": {"name": "logistic regression"}}),
        ({"heldout": None}, {"heldout": {"root": "images.parquet", "split": "test"}}),
        ({"data": {"root": "jpg", "ground_truth": "gt"}}, {"data": {"root": "jpg", "ground_truth": "gnd.pkl"}}),
    ],
)
def test_what_was_measured_in_another_way_is_no_older_evaluation(one: dict[str, Any], other: dict[str, Any]) -> None:
    rows = [{"name": "trained network", "map": 0.5}]
    blocks = evaluation_blocks([report("any", rows, 1, **one), report("any", rows, 2, **other)])
    assert [type(block) for block in blocks] == [Table, Table]


def test_scores_to_compare_runs_by() -> None:
    reports = [
        report("summary", [{"name": "trained network", "knn": 0.1, "linear": 0.2}]),
        report("knn", [{"name": "trained network", "top1": {"10": 0.3, "20": 0.4}}]),
        report("linear", [{"name": "trained network", "top1": spread(0.5, 0.01)}]),
        report("linear", [{"name": "trained network", "top1": spread(0.9)}], data={**DATA, "of_the_run": False}),
        report("linear", [{"name": "raw pixels", "top1": spread(0.8)}]),
    ]
    assert headline_scores(reports) == {"kNN, 20 neighbours": "0.400", "linear classifier": "0.500\u00a0±\u00a00.010"}


@pytest.mark.parametrize(
    "content", ["", '{"kind": "knn", "ro', "[]", '{"kind": "knn"}', '{"rows": [1]}', '{"rows": {"name": "a"}}']
)
def test_damaged_evaluations_are_named_and_left_out(tmp_path: Path, content: str) -> None:
    write(tmp_path / "evaluations" / "knn-0001.json", content)
    write(tmp_path / "evaluations" / "knn-0010.json", json.dumps(report("knn", [])))
    write(tmp_path / "evaluations" / "knn-0009.json", json.dumps(report("knn", [])))
    write(tmp_path / "evaluations" / "notes.txt", "nothing")
    reports, remarks = read_reports(open_storage(tmp_path))
    assert [found["file"] for found in reports] == ["knn-0009.json", "knn-0010.json"]
    assert remarks == ["evaluations/knn-0001.json is damaged and left out."]


@pytest.mark.parametrize("kind", ["knn", "linear", "clusters", "summary", "new"])
@pytest.mark.parametrize("value", [None, 1, "text", [], {}, {"scores": 1}, {"scores": {"train": 3}}, [{"name": 1}]])
def test_rows_of_another_shape_break_nothing(kind: str, value: Any) -> None:
    row = {"name": "trained network", "top1": value, "final": value, "knn": value, "plain": value}
    content = report(kind, [row, {}], clusters=value, data=value)
    assert evaluation_blocks([content])
    headline_scores([content])


def test_nothing_was_evaluated() -> None:
    (sentence,) = evaluation_blocks([])
    assert isinstance(sentence, Sentence)
    assert sentence.text.startswith("Nothing has been evaluated yet")
