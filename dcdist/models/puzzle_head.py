"""What solves a puzzle from the maps of its tiles: a layer that the tiles share, then layers that see them all.

Shapes: B puzzles of T tiles, C channels of h x w positions of a tile's map, K classes.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class PuzzleHead(nn.Module):
    """The top of the context-free network (Noroozi and Favaro, ECCV 2016), with batch normalisation.

    Args:
        num_channels: C.
        num_tiles: T.
        pool: a tile's map is averaged to so many positions a side.
        tile_features: width of the layer that each tile has (the published fc6).
        hidden: width of the layer that sees all tiles (the published fc7); None leaves it out, as VISSL does.
        dropout: before the last layer.
        num_classes: K.
        predicts_distractors: whether a second output says of each tile whether it is another image's.
    """

    def __init__(
        self,
        num_channels: int,
        num_tiles: int,
        pool: int,
        tile_features: int,
        hidden: int | None,
        dropout: float,
        num_classes: int,
        predicts_distractors: bool,
    ) -> None:
        super().__init__()
        self.num_tiles = num_tiles
        self.pool = pool
        self.num_classes = num_classes
        self.predicts_distractors = predicts_distractors
        self.tile = _layer(num_channels * pool**2, tile_features)
        width = num_tiles * tile_features
        self.puzzle: nn.Module = nn.Identity() if hidden is None else _layer(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.order = nn.Linear(hidden or width, num_classes)
        if predicts_distractors:
            self.distractors = nn.Linear(hidden or width, num_tiles)

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps of the tiles [B * T, C, h, w], puzzle by puzzle -> float32 logits.

        Returns:
            Of the classes [B, K]; of each tile [B, T] that it is another image's ([B, 0] where that is not predicted).
        """
        tiles = self.tile(pooled(maps, self.pool).flatten(1))
        puzzles = self.dropout(self.puzzle(tiles.unflatten(0, (-1, self.num_tiles)).flatten(1)))
        distractors = self.distractors(puzzles) if self.predicts_distractors else puzzles[:, :0]
        return self.order(puzzles).float(), distractors.float()


def pooled(maps: torch.Tensor, side: int) -> torch.Tensor:
    """Averages over windows of equal size that cover the map: [B, C, h, h] -> [B, C, side, side], side <= h.

    Where `side` divides h it is adaptive average pooling, whose gradient has no deterministic kernel on a GPU.
    """
    stride = maps.shape[2] // side
    return functional.avg_pool2d(maps, maps.shape[2] - (side - 1) * stride, stride)


def _layer(in_features: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_features, out_features, bias=False), nn.BatchNorm1d(out_features), nn.ReLU(inplace=True)
    )
