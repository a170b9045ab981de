"""Held-out images fall into the clusters as training images do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dcdist.clustering.types import Clustering, HeadClustering
from dcdist.distributed.collectives import Collectives
from dcdist.engine.heldout import HeldOut
from dcdist.features import RawFeatures

ROWS = torch.tensor([[0.6, 0.8], [0.8, 0.6], [-1.0, 0.0]])
CENTROIDS = torch.tensor([[0.0, 1.0], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("linear", "expected"),
    [
        (None, [0, -1, 1, 0]),  # of the two centroids (-1, 0) is nearer to the first
        (torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 3.5]]), [1, -1, 0, 1]),  # 5 x against 3.5
    ],
)
def test_by_what_decided_the_clusters(
    linear: torch.Tensor | None, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = RawFeatures(3, 2, 10**6, torch.device("cpu"))
    raw.append(torch.tensor([0, 2, 3]), ROWS)  # image 1 does not decode
    monkeypatch.setattr("dcdist.engine.heldout.extract_features", lambda *arguments: raw)  # noqa: ARG005
    nothing: Any = torch.empty(0)
    head = HeadClustering(nothing, nothing, CENTROIDS, 0.0, 1, 0, "rank0", linear=linear)
    method: Any = SimpleNamespace(embedder=lambda: None)
    images: Any = None
    heldout = HeldOut("test", range(4), images, Collectives())  # type: ignore[arg-type]
    raw.failures[1] = "damaged"
    targets, failures = heldout.assign(method, None, Clustering((head,)), lambda: None)
    assert targets.tolist() == expected
    assert failures == {1: "damaged"}
