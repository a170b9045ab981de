"""Jigsaw puzzles (Noroozi and Favaro, ECCV 2016): shuffle the tiles of an image, predict by which permutation.

With the rotations of Mundhenk et al. (CVPR 2018) and the distractors of Jigsaw++ (Noroozi et al., CVPR 2018).
Shapes: B puzzles of a microbatch, T = 9 tiles of s x s pixels, M permutations, R turns (4, or 1 without rotation),
K = R M classes, P planned samples.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dcdist.clustering.types import Clustering
from dcdist.data.tiles import NUM_TILES, NUM_TURNS, draw_distractors, turned
from dcdist.data.transforms import View
from dcdist.distributed.seeding import numpy_generator, torch_generator
from dcdist.methods.base import EpochLength, EpochPlan, Method, Microbatch, Stream
from dcdist.models.backbone import Backbone
from dcdist.models.puzzle_head import PuzzleHead


class Outputs(NamedTuple):
    """Of one microbatch of B puzzles."""

    logits: torch.Tensor  # [B, K]
    classes: torch.Tensor  # [B] int64, turn * M + permutation
    distractor_logits: torch.Tensor  # [B, T], or [B, 0] where distractors are not predicted
    distractors: torch.Tensor  # [B, T] bool, which places hold a tile of another image


class Jigsaw(Method):
    """A network that sees one tile at a time learns what their order in the image was.

    Only the body of the backbone learns: tiles pass through it, the head takes the place of its top.

    Args:
        backbone: what learns.
        head: behind the maps of nine tiles, over K classes.
        permutations: [M, T] int64; the place i of a puzzle shows the tile permutation[i].
        view: how an image becomes tiles.
        seed: where order and targets of an epoch derive from.
        length: how long an epoch is.
        rotation: whether all tiles of an image are turned in place by the same multiple of 90 degrees, to be found,
            too: permutation and turn together are a class.
        num_distractors: at most so many tiles of a puzzle, a random number from 0 on, are another image's. The target
            stays: the network must order the others.

    Raises:
        ValueError: tiles do not fit the image, or the backbone or the head does not fit the tiles; too many
            distractors, or none where they are to be predicted.
    """

    sees_images = False
    remedy = "fewer jigsaw.num_permutations, a lower train.learning_rate, or normalisation of tiles"
    permutations: torch.Tensor

    def __init__(
        self,
        backbone: Backbone,
        head: PuzzleHead,
        permutations: np.ndarray,
        view: View,
        seed: int,
        length: EpochLength,
        rotation: bool,
        num_distractors: int,
    ) -> None:
        super().__init__()
        assert head.num_classes == len(permutations) * (NUM_TURNS if rotation else 1)
        if not 0 <= num_distractors < NUM_TILES:
            raise ValueError(
                f"num_distractors is {num_distractors}, and one of the {NUM_TILES} tiles must be the image's own: "
                f"set jigsaw.num_distractors to 0..{NUM_TILES - 1}; 2 is usual"
            )
        if head.predicts_distractors and num_distractors == 0:
            raise ValueError(
                "there are no distractors to be predicted: set jigsaw.num_distractors to 1 or more, or "
                "jigsaw.predict_distractors to false"
            )
        require_maps(backbone, view, head.pool)
        self.backbone = backbone
        self.head = head
        self.register_buffer("permutations", torch.from_numpy(permutations))
        self.view = view
        self.seed = seed
        self.length = length
        self.rotation = rotation
        self.num_distractors = num_distractors

    def forward(self, microbatch: Microbatch) -> Outputs:
        (batch,) = microbatch.values()
        (tiles,) = batch.views  # [B, T, 3, s, s]
        classes = batch.targets
        assert classes is not None
        images = torch.arange(len(tiles), device=tiles.device).unsqueeze(1).expand(-1, NUM_TILES)
        places = self.permutations[classes % len(self.permutations)]  # [B, T]
        distractors = torch.zeros_like(places, dtype=torch.bool)
        if self.num_distractors:
            generator = torch_generator(batch.seed, "distractors")
            distractors, others, other_places = draw_distractors(batch.sample_ids, self.num_distractors, generator)
            images, places = torch.where(distractors, others, images), torch.where(distractors, other_places, places)
        puzzles = tiles[images, places]
        if self.rotation:
            puzzles = turned(puzzles, classes // len(self.permutations))
        maps = self.backbone.maps(puzzles.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        logits, distractor_logits = self.head(maps)
        return Outputs(logits, classes, distractor_logits, distractors)

    def losses(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        losses = {"permutations": functional.cross_entropy(outputs.logits, outputs.classes)}
        if self.head.predicts_distractors:
            losses["distractors"] = functional.binary_cross_entropy_with_logits(
                outputs.distractor_logits, outputs.distractors.to(outputs.distractor_logits)
            )
        return losses

    def plan_epoch(self, epoch: int, usable: np.ndarray, clustering: Clustering | None) -> EpochPlan:  # noqa: ARG002
        num_steps = self.length.num_steps(len(usable))
        num_draws = num_steps * self.length.batch_size
        sample_ids = self.length.order(usable, self.seed, epoch)
        classes = numpy_generator(self.seed, "targets", epoch).integers(self.head.num_classes, size=num_draws)
        return EpochPlan({"puzzles": Stream(sample_ids, classes, (self.view,))}, num_steps)

    def parameter_groups(self) -> list[dict[str, Any]]:
        learning: list[nn.Module] = [self.backbone.stem, self.backbone.body, self.head]
        return [{"params": [parameter for module in learning for parameter in module.parameters()]}]

    def figures(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Shares of right answers. Saying of all tiles that they belong is right for 1 - num_distractors / 18."""
        num_permutations, guesses = len(self.permutations), outputs.logits.argmax(1)
        answers = {"accuracy": guesses % num_permutations == outputs.classes % num_permutations}
        if self.rotation:
            answers["rotation_accuracy"] = guesses // num_permutations == outputs.classes // num_permutations
        if self.head.predicts_distractors:
            answers["distractor_accuracy"] = (outputs.distractor_logits > 0) == outputs.distractors
        return {name: right.float().mean() for name, right in answers.items()}

    def chance_losses(self) -> dict[str, float]:
        return {"permutations": math.log(self.head.num_classes)}


def require_maps(backbone: Backbone, view: View, pool: int) -> None:
    """Raises ValueError where a backbone cannot look at the view's tiles, or at fewer positions than are pooled."""
    assert view.tiles is not None
    size = view.tiles.size
    view.tiles.require_fit(view.size)
    try:
        side = backbone.map_shape(size)[2]
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"tiles of {size} pixels are too small for the network, or not what it was built for ({reason}): enlarge "
            "jigsaw.tile_size, and jigsaw.puzzle_size with it, or take another model.name"
        ) from error
    if pool > side:
        raise ValueError(
            f"the network's map of a tile of {size} pixels has {side} x {side} positions, which cannot be averaged to "
            f"{pool} x {pool}: set jigsaw.pool to at most {side}, or enlarge jigsaw.tile_size and jigsaw.puzzle_size"
        )
