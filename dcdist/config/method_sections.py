"""The sections of the config that belong to one method each."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from dcdist.config.sections import (
    Fraction,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    key,
)


class DeepClusterSection(Section):
    """DeepCluster's own choices."""

    sampler: Literal["uniform", "reference"] = key(
        "uniform", "uniform over clusters, or as the published code draws (which is not uniform)"
    )
    head_learning_rate_scale: PositiveFloat = key(1.0, "the head's learning rate over the backbone's")
    head_momentum: Fraction = key(0.0, "the head's momentum (SGD)")


class DeepClusterV2Section(Section):
    """DeepCluster-v2's own choices; its heads are the entries of clustering.num_clusters."""

    hidden: Positive | None = key(2048, "width of the projector's hidden layer; null for a linear projector")
    dimensions: Positive = key(128, "of the embedding that is clustered")
    temperature: PositiveFloat = key(0.1, "of the softmax over cosines")
    bank: bool = key(
        True,
        "clusters the rows that training computed in the epoch before, as published; false: a pass over the images, "
        "for small data, where a network changes so fast that the first and the last rows of an epoch do not compare",
    )


class SwavSection(Section):
    """SwAV's own choices."""

    num_prototypes: Positive = key(3000, "K, that codes are shared among")
    hidden: Positive | None = key(2048, "width of the projector's hidden layer; null for a linear projector")
    dimensions: Positive = key(128, "of the embedding")
    temperature: PositiveFloat = key(0.1, "of the softmax over scores")
    epsilon: PositiveFloat = key(0.05, "regularisation of the codes; smaller is harder, 0.03 where training collapses")
    sinkhorn_iterations: Positive = key(3, "of the normalisation of the codes")
    queue_length: NonNegative = key(0, "embeddings of earlier steps that take part in the codes; 0 for none")
    queue_from_epoch: NonNegative = key(15, "the queue is filled from here on, and used once it is full")
    frozen_prototype_steps: NonNegative = key(313, "the prototypes do not learn for so many steps")


class SimclrSection(Section):
    """SimCLR's own choices."""

    hidden: Positive | None = key(512, "width of the projector's hidden layer; null for a linear projector")
    dimensions: Positive = key(128, "of the embedding")
    temperature: PositiveFloat = key(0.1, "of the softmax over cosines")


class ScanSection(Section):
    """SCAN's semantic clustering."""

    num_clusters: Positive = key(10, "C, classes to find")
    num_neighbors: Positive = key(20, "neighbours mined for each image; the published code has 20, a summary of it 5")
    entropy_weight: NonNegativeFloat = key(5.0, "of the entropy of the mean assignment; the published code has 5")
    num_heads: Positive = key(1, "heads trained side by side; that of the lowest loss is kept")
    train_backbone: bool = key(True, "false: the heads alone learn")
    initial: Literal["random", "readout"] = key(
        "random", "heads at first; readout: the final clustering of the stage before (its readout.method=scan)"
    )


class SelfLabelSection(Section):
    """SCAN's self-labelling."""

    threshold: Fraction = key(0.99, "confidence above which a weak view's class is a label for the strong view")
    class_balancing: bool = key(True, "rare classes among the confident weigh more")
    ema_decay: Fraction | None = key(None, "weights become their exponential moving average after each step")


class JigsawSection(Section):
    """Jigsaw puzzles, the context tricks and distractors."""

    num_permutations: Positive = key(100, "size of the permutation set, of maximal Hamming distance", le=362880)
    permutation_distance: Literal["mean", "minimum"] = key(
        "mean", "which distance is maximal: the mean one, as published, or that of the nearest two"
    )
    puzzle_size: Positive = key(225, "side of the square that is cut into 3 x 3 cells, pixels")
    tile_size: Positive = key(64, "side of a tile, cut out of its cell at a random place")
    normalize_tiles: bool = key(
        True, "mean 0 and standard deviation 1 of each tile and colour; false: views.mean and views.std"
    )
    pool: Positive = key(1, "the feature map of a tile is averaged to so many positions a side")
    tile_features: Positive = key(1024, "width of the layer that each tile has")
    hidden: Positive | None = key(4096, "width of the layer that sees all tiles; null leaves it out")
    dropout: Fraction = key(0.5, "before the last layer")
    yoked_jitter: bool = key(False, "all tiles of an image are jittered alike")
    random_aperture: Fraction = key(0.0, "share of the tiles of which only a random part is seen; published: 2/3")
    rotation: bool = key(
        False, "tiles are turned by a multiple of 90 degrees, all of an image alike, to be classified too"
    )
    num_distractors: NonNegative = key(0, "at most so many tiles of an image come from another one", le=8)
    predict_distractors: bool = key(False, "the network also says of each tile whether it belongs")

    @model_validator(mode="after")
    def _tiles_fit_and_distractors_are_there(self) -> JigsawSection:
        if self.tile_size > self.puzzle_size // 3:
            raise ValueError(
                f"jigsaw.tile_size={self.tile_size} does not fit a cell, a third of "
                f"jigsaw.puzzle_size={self.puzzle_size}: set jigsaw.tile_size to at most {self.puzzle_size // 3}"
            )
        if self.predict_distractors and not self.num_distractors:
            raise ValueError("jigsaw.predict_distractors=true needs distractors: set jigsaw.num_distractors, to 2 say")
        return self


class JointSection(Section):
    """Several methods on one backbone at once."""

    parts: tuple[dict[str, Any], ...] = key(
        (), "named parts: each has a method and a weight, and may override any key of the stage except train"
    )

    @model_validator(mode="after")
    def _parts_are_named(self) -> JointSection:
        names = [part.get("name") for part in self.parts]
        for part, name in zip(self.parts, names, strict=True):
            if not isinstance(name, str) or not name.isidentifier():
                raise ValueError(f"each part of joint.parts has a name of letters, digits and _, not {name!r}")
            if part.get("method") in (None, "joint"):
                raise ValueError(f"part {name} of joint.parts needs a method of its own, not {part.get('method')!r}")
            for forbidden in ("train", "readout", "joint"):
                if forbidden in part:
                    raise ValueError(f"part {name} of joint.parts cannot set {forbidden}: it belongs to the stage")
        if len(set(names)) < len(names):
            raise ValueError(f"parts need different names, these are {', '.join(map(str, names))}")
        return self
