"""From the config's views to how images are seen."""

from __future__ import annotations

from dataclasses import replace

from dcdist.config.method_sections import JigsawSection
from dcdist.config.schema import StageConfig, ViewsSection
from dcdist.data.augment import BatchAugmentation, Normalization
from dcdist.data.loader import BatchLoader
from dcdist.data.strong import StrongAugmentation
from dcdist.data.tiles import Tiles
from dcdist.data.transforms import View
from dcdist.features import ImagePass
from dcdist.models.numerics import Numerics

GIB = 2**30


def training_view(views: ViewsSection) -> View:
    """One random view of an image."""
    strong = views.random_operations > 0 or views.cutout > 0
    return View(
        size=views.image_size,
        crop=views.crop,
        resize=views.resize,
        scale=views.scale,
        ratio=views.ratio,
        horizontal_flip=views.horizontal_flip,
        strong=StrongAugmentation(views.random_operations, views.cutout) if strong else None,
        augmentation=_augmentation(views),
        normalization=_normalization(views),
    )


def crop_views(views: ViewsSection) -> tuple[View, ...]:
    """The random views of methods that look at several."""
    if not views.crops:
        return (training_view(views),) * 2
    each = (
        training_view(
            views.model_copy(
                update={
                    "image_size": crops.image_size,
                    "scale": crops.scale,
                    "resize": max(views.resize, crops.image_size),
                }
            )
        )
        for crops in views.crops
        for _ in range(crops.count)
    )
    return tuple(each)


def evaluation_view(views: ViewsSection) -> View:
    """The centre of an image, as it is."""
    return View(
        size=views.image_size,
        crop="center",
        resize=views.resize,
        horizontal_flip=False,
        normalization=_normalization(views),
    )


def puzzle_view(views: ViewsSection, jigsaw: JigsawSection) -> View:
    """A random view that is cut into tiles."""
    tiles = Tiles(
        size=jigsaw.tile_size,
        normalize=jigsaw.normalize_tiles,
        yoked_jitter=jigsaw.yoked_jitter,
        random_aperture=jigsaw.random_aperture,
    )
    whole = training_view(views.model_copy(update={"image_size": jigsaw.puzzle_size, "resize": jigsaw.puzzle_size}))
    return replace(whole, tiles=tiles)


def build_images(stage: StageConfig, numerics: Numerics, loader: BatchLoader) -> ImagePass:
    """How images pass through the network when they are looked at, not trained on."""
    return ImagePass(
        view=evaluation_view(stage.views),
        numerics=numerics,
        batch_size=stage.features.batch_size,
        loader=loader,
        memory_limit_bytes=int(stage.features.memory_limit_gib * GIB),
    )


def _normalization(views: ViewsSection) -> Normalization:
    return Normalization(views.mean, views.std, views.standardize)


def _augmentation(views: ViewsSection) -> BatchAugmentation:
    return BatchAugmentation(
        rotation_degrees=views.rotation_degrees,
        shear=views.shear,
        translate=views.translate,
        scale=views.zoom,
        elastic_sigma=views.elastic_sigma,
        brightness=views.brightness,
        contrast=views.contrast,
        saturation=views.saturation,
        hue=views.hue,
        jitter_probability=views.jitter_probability,
        grayscale_probability=views.grayscale_probability,
        color_projection_probability=views.color_projection_probability,
        chroma_blur_probability=views.chroma_blur_probability,
        solarize_probability=views.solarize_probability,
        invert_probability=views.invert_probability,
        shading=views.shading,
        blur_probability=views.blur_probability,
        blur_sigma=views.blur_sigma,
    )
