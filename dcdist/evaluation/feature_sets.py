"""What a comparison sets side by side: raw pixels, the untrained network, the trained one, each seen the same way.

Shapes: N images of a source, L labelled ones among them, n rows of this rank, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from dcdist.data.source import ImageSource
from dcdist.data.transforms import View
from dcdist.distributed.collectives import Collectives
from dcdist.features import ImagePass, RawFeatures, extract_features
from dcdist.models.backbone import Backbone

PIXELS, UNTRAINED, TRAINED = "raw pixels", "untrained network", "trained network"
LARGEST_PIXEL_SIDE = 32  # raw pixels of larger images are shrunk to this first


@dataclass(frozen=True)
class FeatureSet:
    """A network, and how images go through it."""

    name: str
    backbone: Backbone
    images: ImagePass

    def extract(
        self, source: ImageSource, collectives: Collectives, at_boundary: Callable[[], None] = lambda: None
    ) -> RawFeatures:
        """This rank's rows of a source's images. Collective; see `extract_features`."""
        return extract_features(self.backbone, source, self.images, collectives, at_boundary)

    def labelled(
        self, raw: Iterable[RawFeatures], source: ImageSource, collectives: Collectives
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Features [L, D] float32 and labels [L] int64 of the labelled images, on rank 0; None elsewhere. Collective.

        Args:
            raw: this rank's rows, in one part or several.
            source: the images that they are of; it has labels.
            collectives: joins the ranks.
        """
        parts = list(raw)
        blocks = [block.float().cpu() for part in parts for block in part.blocks()]
        own = torch.cat(blocks) if blocks else torch.empty(0, self.backbone.num_features)
        features = collectives.gather_rows(own)
        sample_ids = collectives.gather_rows(torch.cat([part.ids() for part in parts]))
        if features is None or sample_ids is None:
            return None
        assert source.labels is not None
        labels = torch.from_numpy(source.labels[sample_ids.numpy()].astype(np.int64))
        return features[labels >= 0], labels[labels >= 0]


def raw_pixels(images: ImagePass) -> FeatureSet:
    """Raw pixels in 0..1 as if a network had computed them."""
    side = min(images.view.size, LARGEST_PIXEL_SIDE)
    resize = round((images.view.resize or images.view.size) * side / images.view.size)
    view = View(size=side, crop="center", resize=resize)
    backbone = Backbone(nn.Identity(), nn.Sequential(), nn.Flatten(), 3, 3 * side * side, features_before_relu=False)
    return FeatureSet(PIXELS, backbone, replace(images, view=view))
