"""The table that sets feature sets side by side."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from dcdist.evaluation.feature_clusters import cluster_features
from dcdist.evaluation.knn import knn_accuracy
from dcdist.evaluation.linear import linear_accuracy
from dcdist.evaluation.summary import ReadoutScores, SummaryRow, evaluate_features, render_summary, summary_dict
from dcdist.metrics.partition_scores import nmi


def groups(seed: int, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_rows) % 3
    return torch.randn(num_rows, 8, generator=generator) + 2 * torch.eye(3, 8)[labels], labels


def test_a_row_holds_what_its_parts_measure() -> None:
    (train, labels), (test, wanted) = groups(0, 120), groups(1, 60)
    labels[:10] = -1
    passed: list[None] = []
    row = evaluate_features(
        *("raw", train, labels, test, wanted, 3),
        seed=4,
        whitening_dimensions=5,
        num_seeds=2,
        progressed=lambda: passed.append(None),
    )
    assert len(passed) == 3 * 2 + 2, "three read-outs of two seeds, neighbours, the linear classifier"
    unit = train / train.norm(dim=1, keepdim=True)
    nmis = [nmi(cluster_features(unit, 3, seed).assignments.numpy(), labels.numpy()) for seed in (4, 5)]
    assert row.plain.nmi == pytest.approx(sum(nmis) / 2, abs=1e-12)
    assert (row.plain.nmi_min, row.plain.nmi_max) == pytest.approx((min(nmis), max(nmis)), abs=1e-12)
    assert row.knn == knn_accuracy(train, labels, test, wanted).top1
    assert row.linear == linear_accuracy(train, labels, test, wanted, seed=4).top1
    assert (row.name, row.num_clusters, row.num_seeds) == ("raw", 3, 2)


def test_without_test_images_neighbors_leave_one_out_and_nothing_is_linear() -> None:
    train, labels = groups(0, 18)
    row = evaluate_features("raw", train, labels, None, None, 3, seed=0, whitening_dimensions=5, num_seeds=1)
    assert row.knn == knn_accuracy(train, labels, num_neighbors=17).top1  # fewer than 20 others
    assert row.linear is None


def row_of(name: str, value: float, linear: float | None) -> SummaryRow:
    scores = ReadoutScores(value, value - 0.01, value + 0.01, value / 2)
    return SummaryRow(name, scores, scores, scores, 0.98765, linear, 10, 3)


def test_the_table_is_aligned() -> None:
    table = render_summary([row_of("raw pixels", 0.742, 0.5), row_of("trained", 0.9, None)])
    assert table.splitlines() == [
        "              NMI    ACC  NMI white  ACC white  NMI Ward  ACC Ward    kNN  linear",
        "-" * 81,
        "raw pixels  0.742  0.371      0.742      0.371     0.742     0.371  0.988   0.500",
        "trained     0.900  0.450      0.900      0.450     0.900     0.450  0.988       -",
        "10 clusters; NMI and ACC are means over 3 seeds of k-means. Labels serve these scores alone.",
    ]


def test_a_column_that_no_row_has_is_left_out() -> None:
    assert "linear" not in render_summary([row_of("raw pixels", 0.742, None)])


def test_the_dict_is_json_with_all_figures() -> None:
    row = row_of("raw pixels", 0.75, None)
    loaded = json.loads(json.dumps(summary_dict([row]), allow_nan=False))
    assert loaded == {"kind": "summary", "rows": [dataclasses.asdict(row)]}
    assert loaded["rows"][0]["plain"] == {"nmi": 0.75, "nmi_min": 0.74, "nmi_max": 0.76, "accuracy": 0.375}
