"""Encoded image -> RGB pixels, or an error that says why not; never a picture that is partly made up.

EXIF orientation is not applied: the published protocols do not. Transparent pixels are laid over white.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 89_478_485  # Pillow's limit against decompression bombs: 256 MiB of RGB

_JPEG_START = b"\xff\xd8"
# Every block of the picture is there; the bytes left over before the end marker are padding that some cameras write.
_HARMLESS = "extraneous bytes before marker 0xd9"


class UndecodableImage(ValueError):
    """The bytes are no picture, or not a whole one; the message is the reason."""


def decode_image(data: bytes) -> np.ndarray[Any, Any]:
    """Decodes a JPEG, PNG or anything else that Pillow opens (of an animation the first frame).

    Args:
        data: The encoded image.

    Returns:
        uint8 [H, W, 3], RGB, contiguous.

    Raises:
        UndecodableImage: empty, garbage, truncated, damaged, or more than MAX_PIXELS pixels.
    """
    if not data:
        raise UndecodableImage("the file is empty")
    if data[:2] == _JPEG_START:
        return _decode_jpeg(data)
    return _decode_with_pillow(data)


def _decode_jpeg(data: bytes) -> np.ndarray[Any, Any]:
    """By libjpeg-turbo, which can be told to refuse what it would otherwise fill with grey."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        _refuse_bomb(width, height)
        if colorspace in ("CMYK", "YCCK"):
            simplejpeg.decode_jpeg(data, colorspace="CMYK", strict=True)  # Pillow would not notice damage
            return _decode_with_pillow(data)
        pixels: np.ndarray[Any, Any] = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    except UndecodableImage:
        raise
    except ValueError as error:
        if _HARMLESS not in str(error):
            raise UndecodableImage(f"JPEG: {error}") from error
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=False)
    return pixels


def _decode_with_pillow(data: bytes) -> np.ndarray[Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities of metadata; size is checked here, damage raises
            with Image.open(io.BytesIO(data)) as image:
                _refuse_bomb(*image.size)
                return np.array(to_rgb(image), order="C")
    except UndecodableImage:
        raise
    except UnidentifiedImageError as error:
        raise UndecodableImage(f"no known image format; the first bytes are {data[:8]!r}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, EOFError, struct.error, ...
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode in RGB: 16 bits become 8, transparent pixels are laid over white.

    Raises:
        UndecodableImage: floating-point pixels, or integers that do not fit in 16 bits.
    """
    if image.mode == "F":
        raise UndecodableImage("floating-point pixels have no defined range")
    if image.mode == "I" or image.mode.startswith("I;"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UndecodableImage(f"grey values from {values.min()} to {values.max()} are not of 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _refuse_bomb(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UndecodableImage(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS}")
