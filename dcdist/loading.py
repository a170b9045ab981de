"""A run's network and the transform of its images, ready to use: what `dcdist.load` gives.

Shapes: S pixels a side of what the network sees.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from dcdist.build.views import evaluation_view
from dcdist.data.augment import to_float
from dcdist.data.decode import UndecodableImage, decode_image, to_rgb
from dcdist.data.transforms import View
from dcdist.errors import UsageError
from dcdist.models.backbone import Backbone
from dcdist.stored_run import read_run


@dataclass(frozen=True)
class EvaluationTransform:
    """What a network sees of an image when features are computed: the same pixels as in the run. It pickles."""

    view: View

    def __call__(self, image: Image.Image | str | os.PathLike[str] | bytes | np.ndarray[Any, Any]) -> torch.Tensor:
        """One image -> float32 [3, S, S], normalised.

        Args:
            image: a path, the bytes of an encoded image, a picture of Pillow in any mode, or uint8 [H, W, 3] in RGB.
                JPEGs are decoded as in the run where they come as a path or as bytes.

        Raises:
            UndecodableImage: the bytes are no whole picture; says why, of a path also which.
            UsageError: an array of another type or shape, or no image at all.
            OSError: the path cannot be read.
        """
        no_draws = self.view.draw(np.random.default_rng(0), 1)  # the view is not random
        square = self.view.apply(_pixels(image), no_draws, 0)
        return self.view.normalization(to_float(square.unsqueeze(0)))[0].contiguous()


class Loaded(NamedTuple):
    """What a run gives for images that are not its own."""

    module: Backbone
    transform: EvaluationTransform


def load_run(run: str | os.PathLike[str], stage: str | None = None, device: str | torch.device = "cpu") -> Loaded:
    """As `dcdist.load`, which imports this when it is called."""
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device={device!r} is unknown: cpu, cuda, or one of several as cuda:1") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device={str(device)!r}, but torch sees no GPU: leave it out for the CPU")
    stored = read_run(os.fspath(run), stage)
    return Loaded(stored.backbone.eval().to(target), EvaluationTransform(evaluation_view(stored.stage.views)))


def _pixels(image: object) -> np.ndarray[Any, Any]:
    """uint8 [H, W, 3]."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise UsageError(f"an array of {image.dtype} {list(image.shape)} is no image: give uint8 [H, W, 3] in RGB")
        return np.array(image)  # a copy, which torch may write to
    if isinstance(image, Image.Image):
        return np.array(to_rgb(image))
    if isinstance(image, bytes):
        return decode_image(image)
    if isinstance(image, str | os.PathLike):
        try:
            return decode_image(Path(image).read_bytes())
        except UndecodableImage as error:
            raise UndecodableImage(f"{os.fspath(image)}: {error}") from error
    raise UsageError(
        f"{type(image).__name__} is no image: give a path, bytes, a picture of Pillow or a uint8 array [H, W, 3]"
    )
