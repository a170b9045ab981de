"""The schema of an experiment: frozen, strict, every key with what it means and what a change of it does to a run.

A key is *identity* (what is trained: must match when a run goes on), *placement* (where and how fast it runs: free)
or *horizon* (how far it goes: may grow). Identity is the rule; the others are marked where they stand.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from dcdist.config.method_sections import (
    DeepClusterSection,
    DeepClusterV2Section,
    JigsawSection,
    JointSection,
    ScanSection,
    SelfLabelSection,
    SimclrSection,
    SwavSection,
)
from dcdist.config.metrics_section import MetricsSection
from dcdist.config.sections import (
    HORIZON,
    PLACEMENT,
    Auto,
    Fraction,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Range,
    Section,
    ShareRange,
    key,
)

ClustererName = Literal["kmeans", "gmm", "pic", "hierarchical", "scan"]
MethodName = Literal["deepcluster", "deepcluster_v2", "swav", "simclr", "jigsaw", "joint", "scan", "selflabel"]


class RunSection(Section):
    """Where a run lies and what its randomness starts from."""

    dir: str = key(..., "folder or fsspec URL of the run; the same folder resumes it", PLACEMENT)
    seed: int = key(31, "every random choice derives from it", ge=0)


class DataSection(Section):
    """Which images."""

    root: str = key(..., "folder of images, Parquet, or packed shards; local or any fsspec URL", PLACEMENT)
    split: str | None = key(None, "rows to train on; null: all but those of heldout_split")
    heldout_split: str | None = key(None, "rows kept out of training, for the held-out loss and test scores")
    undecodable: Literal["skip", "fail"] = key("skip", "an image that does not decode: left out (cluster -1), or fatal")
    cache_directory: str | None = key(
        None, "where Parquet and remote data are kept for random access; $DCDIST_CACHE or ~/.cache/dcdist", PLACEMENT
    )
    num_workers: NonNegative | Auto = key("auto", "decoding processes per process of the run", PLACEMENT)

    @model_validator(mode="after")
    def _heldout_is_not_trained_on(self) -> DataSection:
        if self.split is not None and self.split == self.heldout_split:
            raise ValueError(
                f"data.heldout_split={self.heldout_split} is kept out of training, and data.split is the same: "
                "name another split, or set one of them to null"
            )
        return self


class CropsSection(Section):
    """Some views of the same kind, of methods that look at several crops of an image."""

    count: Positive = key(..., "how many")
    image_size: Positive = key(..., "side of the square that enters the network, pixels")
    scale: ShareRange = key(..., "share of the image's area that a random crop takes")


class ViewsSection(Section):
    """How an image becomes what the network sees, in training and for features."""

    image_size: Positive = key(224, "side of the square that enters the network, pixels")
    resize: Positive = key(256, "features: the short side is resized to this, then the centre is cropped")
    mean: tuple[float, float, float] = key((0.485, 0.456, 0.406), "subtracted from colours in 0..1")
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = key((0.229, 0.224, 0.225), "colours are divided by it")
    standardize: bool = key(False, "each image to mean 0 and standard deviation 1 instead: brightness and contrast go")
    crop: Literal["random_resized", "center", "full"] = key("random_resized", "training crop")
    scale: ShareRange = key((0.08, 1.0), "share of the image's area that a random crop takes")
    ratio: Range = key((3 / 4, 4 / 3), "aspect ratio of a random crop")
    horizontal_flip: bool = key(True, "mirror half of the training images")
    rotation_degrees: NonNegativeFloat = key(0.0, "random rotation up to this")
    shear: NonNegativeFloat = key(0.0, "random shear up to this")
    translate: Fraction = key(0.0, "random shift up to this share of the side")
    zoom: Range = key((1.0, 1.0), "random scaling")
    elastic_sigma: NonNegativeFloat = key(0.0, "standard deviation of a coarse random displacement, in half sides")
    brightness: NonNegativeFloat = key(0.0, "colour jitter, as torchvision's ColorJitter")
    contrast: NonNegativeFloat = key(0.0, "colour jitter")
    saturation: NonNegativeFloat = key(0.0, "colour jitter")
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = key(0.0, "colour jitter")
    jitter_probability: Fraction = key(0.8, "share of the images whose colours are jittered")
    grayscale_probability: Fraction = key(0.0, "share of the images that lose their colour")
    color_projection_probability: Fraction = key(0.0, "share that loses the green-magenta axis of its colours")
    chroma_blur_probability: Fraction = key(0.0, "share whose colours, but not brightness, are blurred")
    solarize_probability: Fraction = key(0.0, "share of which the bright values are inverted")
    invert_probability: Fraction = key(0.0, "share that becomes its negative")
    shading: NonNegativeFloat = key(0.0, "strength of a smooth random field of light that is added")
    blur_probability: Fraction = key(0.0, "share that is blurred")
    blur_sigma: Range = key((0.1, 2.0), "standard deviation of both blurs, pixels")
    random_operations: NonNegative = key(0, "strong views: operations (data/strong.py) in a row, of random strength")
    cutout: NonNegative = key(0, "strong views: a grey square of random side up to this; 0 for none")
    crops: tuple[CropsSection, ...] = key(
        (), "methods of several views (swav, deepcluster_v2, simclr): which; empty: two of image_size and scale"
    )

    @model_validator(mode="after")
    def _centre_fills_the_square(self) -> ViewsSection:
        if self.resize < self.image_size:
            raise ValueError(
                f"views.resize={self.resize} is too small to cut views.image_size={self.image_size} pixels out of: "
                f"set views.resize to at least {self.image_size}"
            )
        return self


class ModelSection(Section):
    """The network whose features are clustered."""

    name: str = key("alexnet", "backbone, by the names in dcdist/models")
    sobel: bool = key(False, "fixed grey-scale and Sobel stem in front of the backbone")
    width: PositiveFloat = key(1.0, "multiplies the channels of the small networks")
    small_images: bool = key(False, "ResNets: a 3x3 stem without pooling, for images of about 32 pixels")
    initial_weights: str | None = key(
        None, "where the backbone starts: a file of weights (.safetensors, .pth) or another run's folder"
    )


class FeaturesSection(Section):
    """From the network's outputs to the rows that are clustered."""

    pca_dimensions: Positive | None = key(256, "principal components kept; null keeps the raw features")
    whiten: bool = key(True, "scale the components to unit variance")
    epsilon: NonNegativeFloat = key(1e-4, "added to each eigenvalue, as a share of the largest, before whitening")
    memory_limit_gib: PositiveFloat = key(
        8.0, "raw rows of one process past this size wait in a memory-mapped file", PLACEMENT
    )
    batch_size: Positive = key(256, "images a forward pass when features are computed", PLACEMENT)


class ClusteringSection(Section):
    """How rows are partitioned."""

    method: ClustererName = key(
        "kmeans",
        "k-means, a Gaussian mixture, power iteration clustering, two-level k-means for very many clusters, or linear "
        "heads that agree on neighbours as in SCAN",
    )
    num_clusters: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] = key(
        10000, "K, how many clusters training predicts (pic, which finds K: at most); a list gives several heads"
    )
    num_iterations: Positive | None = key(
        None, "null: 20 of Lloyd's, at most 100 of expectation maximisation, 200 of the power iteration, 400 of scan"
    )
    initial: Literal["random", "kmeans++"] = key("random", "k-means: which rows it begins from")
    regularization: PositiveFloat = key(1e-3, "gmm: of the mean variance of the features, added to each variance")
    covariance: Literal["diagonal", "tied"] = key("diagonal", "gmm: of each component, or one for all")
    num_neighbors: Positive | None = key(None, "edges from each row of the graph; null: 5 of pic, 20 of scan")
    entropy_weight: PositiveFloat = key(5.0, "scan: of the entropy of the mean assignment")
    num_heads: Positive = key(32, "scan: starts trained side by side; that of the lowest loss is kept")
    sigma: PositiveFloat = key(0.2, "pic: an edge weighs exp(-distance^2 / sigma^2)")
    num_coarse: Positive | None = key(None, "hierarchical: clusters of the first level; null: about the root of K")
    every_num_epochs: Positive = key(1, "epochs between reassignments")
    spherical: bool = key(False, "centroids are normalised after each iteration")
    placement: Literal["auto", "rank0", "distributed"] = key("auto", "where k-means runs; one result", PLACEMENT)
    gather_limit_gib: PositiveFloat = key(16.0, "auto: gather to rank 0 while the rows fit in this", PLACEMENT)
    engine: Literal["auto", "faiss", "torch"] = key("auto", "who searches the nearest centroid", PLACEMENT)

    @property
    def counts(self) -> tuple[int, ...]:
        """K of each head."""
        return (self.num_clusters,) if isinstance(self.num_clusters, int) else self.num_clusters


class ReadoutSection(Section):
    """The final clustering of a stage, from the weights that the stage ends with."""

    method: ClustererName | None = key(None, "clusterer of the read-out; null takes clustering.method")
    num_clusters: Positive | None = key(None, "K of the read-out; null takes clustering.num_clusters")
    merge_to: Positive | None = key(None, "merge the clusters to this many by Ward's rule, without labels")
    pca_dimensions: Positive | Auto | None = key("auto", "components; auto takes features.pca_dimensions")
    whiten: bool | Auto = key("auto", "auto takes features.whiten")
    num_restarts: Positive = key(1, "k-means runs; the one of the lowest objective is kept")


class TrainSection(Section):
    """The optimisation."""

    num_epochs: Positive = key(500, "length of the stage", HORIZON)
    steps_per_epoch: Positive | None = key(None, "length of an epoch; null passes over the data once")
    batch_size: Positive = key(256, "samples a step, over all processes")
    microbatch_size: Positive | Auto = key(
        "auto", "consecutive samples that share batch statistics; auto: batch_size / 8, / 4 or / 2, but at least 32"
    )
    optimizer: Literal["sgd", "larc", "adam", "adamw"] = key("sgd", "of backbone and heads; larc is SGD with LARC")
    larc_trust: PositiveFloat = key(1e-3, "LARC's update of a layer, as a share of its weights' norm, at rate 1")
    larc_clip: bool = key(
        False, "LARC never updates by more than SGD; larc_trust then bounds the share whatever the rate"
    )
    plain_vectors: bool = key(False, "biases and batch normalisation have neither weight decay nor LARC")
    learning_rate: PositiveFloat = key(0.05, "of the backbone, before the schedule")
    momentum: Fraction = key(0.9, "SGD's")
    weight_decay: NonNegativeFloat = key(1e-5, "L2 for SGD and Adam, decoupled for AdamW")
    schedule: Literal["constant", "cosine", "steps"] = key("constant", "of the learning rate")
    warmup_steps: NonNegative = key(0, "linear, from warmup_ratio of the learning rate")
    warmup_ratio: Fraction = key(0.0, "where the warmup starts, as a share of the learning rate")
    final_ratio: Fraction = key(0.0, "where the cosine ends, as a share of the learning rate")
    decay_epochs: tuple[Positive, ...] = key(
        (), "steps: the epochs from which on the learning rate is a tenth of before"
    )
    on_collapse: Literal["warn", "stop"] = key("warn", "what happens where training begins to collapse", PLACEMENT)
    precision: Literal["fp32", "bf16"] | Auto = key("auto", "auto: bf16 where the hardware has it")
    channels_last: bool | Auto = key("auto", "auto: wherever precision is bf16")

    @model_validator(mode="after")
    def _microbatches_fill_a_step(self) -> TrainSection:
        if isinstance(self.microbatch_size, int) and self.batch_size % self.microbatch_size:
            raise ValueError(
                f"train.microbatch_size={self.microbatch_size} does not divide train.batch_size={self.batch_size}"
            )
        return self


class CheckpointSection(Section):
    """When state is saved beside the ends of clusterings and epochs."""

    every_num_steps: Positive | None = key(None, "save each so many steps", PLACEMENT)
    every_seconds: PositiveFloat | None = key(600.0, "save when the last commit is older", PLACEMENT)
    keep: Annotated[int, Field(ge=2)] = key(2, "newest checkpoints kept; those of the ends of stages stay", PLACEMENT)


class LaunchSection(Section):
    """Where the processes run."""

    backend: Literal["local", "ray"] = key("local", "who starts the processes, where no launcher has yet", PLACEMENT)
    num_processes: Positive | Auto = key("auto", "auto: one a GPU, else one", PLACEMENT)
    min_processes: Positive | None = key(
        None, "ray: go on with as few where machines are lost; null: num_processes", PLACEMENT
    )
    resources: dict[str, PositiveFloat] = key({}, "ray: what a process takes beside its cores and GPU", PLACEMENT)
    device: Literal["auto", "cpu", "cuda"] = key("auto", "auto: cuda where there is a GPU", PLACEMENT)
    threads_per_process: Positive | Auto = key("auto", "auto: this machine's cores / its processes", PLACEMENT)
    deterministic: bool = key(False, "on a GPU: slower kernels that give the same bits in every run", PLACEMENT)
    join_timeout_seconds: PositiveFloat = key(300.0, "so long processes wait for each other when they start", PLACEMENT)
    collective_timeout_seconds: PositiveFloat = key(
        1800.0, "a peer that does not answer for so long is lost; longer than one k-means iteration takes", PLACEMENT
    )

    @model_validator(mode="after")
    def _fewest_are_not_more(self) -> LaunchSection:
        if isinstance(self.num_processes, int) and (self.min_processes or 1) > self.num_processes:
            raise ValueError(
                f"launch.min_processes={self.min_processes} is more than launch.num_processes={self.num_processes}"
            )
        return self


class EvaluationSection(Section):
    """The summary at the end of a run of up to 100,000 images, where labels exist; they serve scores alone."""

    summary: bool = key(True, "compare raw pixels, the untrained and the trained network", PLACEMENT)
    num_clusters: Positive | None = key(None, "K of the compared k-means; null: number of classes", PLACEMENT)
    whitening_dimensions: Positive = key(32, "components of the whitened read-out", PLACEMENT)
    linear: bool = key(True, "a linear classifier, where a held-out split exists", PLACEMENT)


class StageConfig(Section):
    """One stage, every key resolved: what a trainer is built from."""

    name: str
    method: MethodName
    views: ViewsSection
    features: FeaturesSection
    clustering: ClusteringSection
    readout: ReadoutSection
    train: TrainSection
    deepcluster: DeepClusterSection
    deepcluster_v2: DeepClusterV2Section
    swav: SwavSection
    simclr: SimclrSection
    jigsaw: JigsawSection
    joint: JointSection
    scan: ScanSection
    selflabel: SelfLabelSection

    def parts(self) -> tuple[StageConfig, ...]:
        """What trains at once: the parts of a joint stage, else the stage itself."""
        return tuple(part for part, _ in self.resolved_parts()) if self.method == "joint" else (self,)

    def resolved_parts(self) -> tuple[tuple[StageConfig, float], ...]:
        """Of a joint stage its parts as stages of their own, with their weights."""
        whole = self.model_dump(exclude={"joint"})
        parts = []
        for entry in self.joint.parts:
            part = {name: value for name, value in entry.items() if name != "weight"}
            weight = PartWeight.model_validate({"weight": entry.get("weight", 1.0)}).weight
            parts.append((StageConfig.model_validate({"joint": {}, **merge(whole, part)}), weight))
        return tuple(parts)


class PartWeight(Section):
    """What a part of a joint method has beside the keys of a stage."""

    weight: PositiveFloat = key(1.0, "of the part's losses")


class ExperimentConfig(Section):
    """A whole experiment file."""

    method: MethodName = key("deepcluster", "how the network learns")
    run: RunSection
    data: DataSection
    views: ViewsSection = ViewsSection()
    model: ModelSection = ModelSection()
    features: FeaturesSection = FeaturesSection()
    clustering: ClusteringSection = ClusteringSection()
    readout: ReadoutSection = ReadoutSection()
    train: TrainSection = TrainSection()
    deepcluster: DeepClusterSection = DeepClusterSection()
    deepcluster_v2: DeepClusterV2Section = DeepClusterV2Section()
    swav: SwavSection = SwavSection()
    simclr: SimclrSection = SimclrSection()
    jigsaw: JigsawSection = JigsawSection()
    joint: JointSection = JointSection()
    scan: ScanSection = ScanSection()
    selflabel: SelfLabelSection = SelfLabelSection()
    checkpoint: CheckpointSection = CheckpointSection()
    launch: LaunchSection = LaunchSection()
    metrics: MetricsSection = MetricsSection()
    evaluation: EvaluationSection = EvaluationSection()
    stages: tuple[dict[str, Any], ...] = key(
        (), "named stages, run one after the other on one backbone; an entry overrides the top level"
    )

    @model_validator(mode="after")
    def _stages_are_named(self) -> ExperimentConfig:
        names = [entry.get("name") for entry in self.stages]
        for name in names:
            # Names are parts of dotted keys and of file names; a number would be taken for a position.
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
                raise ValueError(f"each stage has a name of letters, digits, _ and -, as in name: first, not {name!r}")
        if len(set(names)) < len(names):
            raise ValueError(f"stages need different names, these are {', '.join(map(str, names))}")
        return self

    def resolved_stages(self) -> tuple[StageConfig, ...]:
        """The stages in order, each with every key of its own or of the top level."""
        return tuple(self.resolved_stage(entry) for entry in self.stages or ({"name": self.method},))

    def resolved_stage(self, entry: dict[str, Any]) -> StageConfig:
        """One entry of `stages` over the top level. Raises pydantic's ValidationError where its values are wrong."""
        return StageConfig.model_validate(merge(self.model_dump(include=STAGE_KEYS), entry))


STAGE_KEYS = set(StageConfig.model_fields) - {"name"}


def merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `override`; mappings are merged key by key, anything else is replaced."""
    merged = dict(base)
    for name, value in override.items():
        both_mappings = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], value) if both_mappings else value
    return merged


def kind_of(path: tuple[str, ...]) -> str:
    """The kind of a key, "identity", "placement" or "horizon", by its path (inside a stage: without the stage)."""
    section: Any = ExperimentConfig
    kind = "identity"
    for name in path:
        is_section = isinstance(section, type) and issubclass(section, BaseModel)
        field = section.model_fields.get(name) if is_section else None
        if field is None:
            break
        if isinstance(field.json_schema_extra, dict):
            kind = str(field.json_schema_extra.get("kind", kind))
        section = field.annotation
    return kind
