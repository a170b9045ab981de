"""Decoding: the same pixels as Pillow, and no picture at all where a part is missing."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dcdist.data.decode import MAX_PIXELS, UndecodableImage, decode_image


def test_real_jpegs_equal_pillows(shared_data):
    images = pq.read_table(shared_data / "imagenette224_5k.parquet", columns=["image"])["image"][:60].to_pylist()
    modes = set()
    for data in images:
        reference = Image.open(io.BytesIO(data))
        modes.add(reference.mode)
        pixels = decode_image(data)
        assert pixels.shape == (224, 224, 3)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        assert np.array_equal(pixels, np.asarray(reference.convert("RGB")))
    assert modes == {"L", "RGB"}


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_formats_are_exact(encode, make_pixels, kind):
    pixels = make_pixels(7, 9)
    assert np.array_equal(decode_image(encode(Image.fromarray(pixels), kind)), pixels)


def test_grey_and_bilevel_become_three_equal_channels(encode):
    grey = np.array([[0, 100], [200, 255]], np.uint8)
    assert np.array_equal(decode_image(encode(Image.fromarray(grey), "PNG")), np.repeat(grey[..., None], 3, axis=2))
    bilevel = decode_image(encode(Image.fromarray(grey > 150), "PNG"))
    assert np.array_equal(bilevel[..., 0], [[0, 0], [255, 255]])


@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(encode, kind):
    values = np.array([[0, 128, 129, 257], [65535, 65406, 32896, 514]], np.uint16)
    pixels = decode_image(encode(Image.fromarray(values), kind))
    assert np.array_equal(pixels[..., 0], [[0, 0, 1, 1], [255, 254, 128, 2]])


def test_transparency_is_laid_over_white(encode):
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    assert decode_image(encode(Image.fromarray(rgba), "PNG")).tolist() == [[[255, 0, 0], [255, 255, 255], [204] * 3]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert decode_image(encode(palette, "PNG")).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert decode_image(encode(palette, "PNG", transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    grey_alpha = Image.fromarray(np.array([[[7, 255], [7, 0]]], np.uint8), "LA")
    assert decode_image(encode(grey_alpha, "PNG")).tolist() == [[[7] * 3, [255] * 3]]


def test_cmyk_jpeg_equals_pillows(encode, make_pixels):
    data = encode(Image.fromarray(make_pixels(16, 24)).convert("CMYK"), "JPEG")
    assert np.array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    with pytest.raises(UndecodableImage, match="premature end"):
        decode_image(data[:-60] + b"\xff\xd9")


def test_exif_orientation_is_not_applied(encode, make_pixels):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    data = encode(Image.fromarray(make_pixels(16, 24)), "JPEG", exif=exif)
    assert decode_image(data).shape == (16, 24, 3)


def test_padding_before_the_end_marker_is_harmless(make_jpeg):
    data = make_jpeg()
    padded = data[:-2] + b"\x00" * 50 + data[-2:]
    assert np.array_equal(decode_image(padded), decode_image(data))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("ending", [b"", b"\xff\xd9"])
def test_truncated_jpeg_is_refused(make_jpeg, share, ending):
    data = make_jpeg(64, 64)
    with pytest.raises(UndecodableImage):
        decode_image(data[: max(2, int(share * (len(data) - 4)))] + ending)


def test_truncated_progressive_jpeg_is_refused(encode, make_pixels):
    data = encode(Image.fromarray(make_pixels(64, 64)), "JPEG", progressive=True)
    assert decode_image(data).shape == (64, 64, 3)
    with pytest.raises(UndecodableImage, match="Premature end"):
        decode_image(data[: len(data) * 2 // 3])


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_truncated_others_are_refused(encode, make_pixels, kind):
    data = encode(Image.fromarray(make_pixels(64, 64)), kind)
    with pytest.raises(UndecodableImage):
        decode_image(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "no known image format"),
        (b"\xff\xd8", "JPEG"),
        (b"\x00" * 500, "no known"),
    ],
)
def test_garbage_is_refused_with_the_reason(data, reason):
    with pytest.raises(UndecodableImage, match=reason):
        decode_image(data)


def test_floating_point_pixels_are_refused(encode):
    with pytest.raises(UndecodableImage, match="floating-point"):
        decode_image(encode(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))


def _png_claiming(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_000, 30_000])  # Pillow warns of the first and refuses the second
def test_decompression_bomb_is_refused(make_jpeg: Callable[..., bytes], side: int):
    assert side * side > MAX_PIXELS
    with pytest.raises(UndecodableImage, match="pixels"):
        decode_image(_png_claiming(side, side))
    jpeg = bytearray(make_jpeg())
    start = jpeg.index(b"\xff\xc0") + 5  # height and width in the frame header
    jpeg[start : start + 4] = struct.pack(">HH", side, side)
    with pytest.raises(UndecodableImage, match=f"{side} x {side} pixels are more than the limit"):
        decode_image(bytes(jpeg))
