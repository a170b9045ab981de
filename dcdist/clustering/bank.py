"""Rows that training computes anyway, kept by sample to be clustered: the memory bank of DeepCluster-v2.

Shapes: N samples of the dataset, n of them this rank's own, V views, E features, B samples of a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dcdist.clustering.types import FeatureShard
from dcdist.distributed.rows import KeyedRows, StoredRows


class FeatureBank:
    """The newest row of each sample and view, each sample's on the one rank that owns it.

    Ownership is a range of sample ids, so what is stored does not depend on which rank computed a row, and a
    checkpoint's rows are dealt out anew on any number of ranks. A sample that an epoch does not visit keeps its row.

    Args:
        own: the sample ids that this rank owns, contiguous.
        num_views: V.
        dimensions: E.
        device: where the rows lie.
    """

    def __init__(self, own: range, num_views: int, dimensions: int, device: torch.device) -> None:
        self.own = own
        self.num_views = num_views
        self._rows = torch.zeros(len(own), num_views, dimensions, dtype=torch.float32, device=device)
        self._filled = torch.zeros(len(own), dtype=torch.bool, device=device)

    @torch.no_grad()
    def write(self, sample_ids: torch.Tensor, rows: torch.Tensor) -> None:
        """Takes the rows [B, V, E] of the samples [B] that are its own; of a sample that comes twice the last."""
        device = self._rows.device
        places = sample_ids.to(device) - self.own.start
        positions = torch.nonzero((places >= 0) & (places < len(self.own))).squeeze(1)
        # The last position of each place, whatever order a device writes in.
        last = torch.full((len(self.own),), -1, dtype=torch.int64, device=device)
        last.scatter_reduce_(0, places[positions], positions, "amax")
        written = torch.nonzero(last >= 0).squeeze(1)
        self._rows[written] = rows.to(device)[last[written]].float()
        self._filled[written] = True

    def shards(self) -> tuple[FeatureShard, ...]:
        """This rank's rows of each view, of the samples that have any."""
        filled = torch.nonzero(self._filled).squeeze(1)
        sample_ids = filled.cpu() + self.own.start
        return tuple(FeatureShard(sample_ids, self._rows[filled, view].cpu()) for view in range(self.num_views))

    def state_dict(self) -> dict[str, Any]:
        """The rows by sample id."""
        filled = torch.nonzero(self._filled).squeeze(1)
        return {"rows": KeyedRows(filled.cpu() + self.own.start, {"rows": self._rows[filled]})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes its own of what all ranks have saved."""
        stored: StoredRows = state["rows"]
        keys = stored.all_keys()
        keys = keys[(keys >= self.own.start) & (keys < self.own.stop)]
        self._filled.zero_()
        if len(keys):
            self._rows[keys - self.own.start] = stored.select(keys)["rows"].to(self._rows.device)
            self._filled[keys - self.own.start] = True
