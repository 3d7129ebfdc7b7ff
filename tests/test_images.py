"""Laws of crops, resizing and borders; picture files right or refused with the reason."""

import io
import os

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from guided_distill.data.images import BrokenImageError, decode_image, printable
from guided_distill.data.pixels import area_resize, center_crop, crop_and_resize, pad

RNG = np.random.default_rng(0)


def noise(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def test_area_resize_by_a_whole_factor_takes_means_of_blocks():
    image = noise(12, 12, 3)
    blocks = image.reshape(4, 3, 4, 3, 3).mean(axis=(1, 3))
    assert_array_equal(area_resize(image, 4), np.round(blocks).astype(np.uint8))


@pytest.mark.parametrize(("shape", "size"), [((50, 37), 16), ((7, 7), 5), ((5, 9), 16)])
def test_area_resize_keeps_mean_constants_and_batches(shape, size):
    images = noise(3, *shape, 1)
    resized = area_resize(images, size)
    assert resized.shape == (3, size, size, 1)
    assert_array_equal(resized[1], area_resize(images[1], size))
    # Rounding moves each value by half a step at most, evenly up and down.
    assert np.abs(resized.mean(axis=(1, 2)) - images.mean(axis=(1, 2))).max() < 0.3
    assert_array_equal(area_resize(np.full((*shape, 3), 77, np.uint8), size), 77)


def test_area_resize_counts_parts_of_pixels():
    """3 -> 2: the middle pixel belongs to both halves, so 0, 90, 255 gives 30 and 200."""
    row = np.array([0, 90, 255], np.uint8)
    image = np.repeat(row[None, :, None], 3, axis=0)
    assert_array_equal(area_resize(image, 2)[0, :, 0], [30, 200])


def test_crops_are_centred_and_borders_are_black():
    image = noise(10, 6, 3)
    assert_array_equal(center_crop(image), image[2:8])
    assert_array_equal(center_crop(image.swapaxes(0, 1)), image.swapaxes(0, 1)[:, 2:8])
    assert_array_equal(crop_and_resize(image, 6), image[2:8])
    padded = pad(noise(4, 28, 28, 1), 32)
    assert padded.shape == (4, 32, 32, 1)
    assert padded[:, :2].max() == padded[:, -2:].max() == padded[:, :, :2].max() == 0
    assert pad(image, 12).shape == (12, 12, 3)
    with pytest.raises(ValueError, match="larger than 8x8"):
        pad(image, 8)


def saved(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return io.BytesIO(file.getvalue())


def test_colours_greys_and_palettes_come_out_alike():
    image = noise(8, 6, 3)
    rgb = Image.fromarray(image)
    assert_array_equal(decode_image(saved(rgb), 3)[0], image)
    assert decode_image(saved(rgb), 3)[0].shape == (8, 6, 3)
    grey = rgb.convert("L")
    assert_array_equal(decode_image(saved(grey), 1)[0][..., 0], np.asarray(grey))
    assert_array_equal(decode_image(saved(rgb), 1)[0][..., 0], np.asarray(grey))
    assert_array_equal(decode_image(saved(grey), 3)[0], np.repeat(grey, 3).reshape(8, 6, 3))
    palette = rgb.quantize(16)
    assert_array_equal(decode_image(saved(palette), 3)[0], np.asarray(palette.convert("RGB")))
    assert_array_equal(decode_image(saved(rgb, "WEBP", lossless=True), 3)[0], image)


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    decoded, mode = decode_image(saved(Image.fromarray(values)), 1)
    assert mode == "I;16"
    assert_array_equal(decoded[0, :, 0], [0, 1, 128, 255])
    assert_array_equal(
        decode_image(saved(Image.fromarray(values)), 3)[0][0, :, 2], [0, 1, 128, 255]
    )


def test_cmyk_photographs_keep_their_colours():
    red = Image.new("RGB", (16, 16), (250, 10, 10))
    decoded, mode = decode_image(saved(red.convert("CMYK"), "JPEG", quality=95), 3)
    assert mode == "CMYK"
    assert np.abs(decoded.astype(int) - (250, 10, 10)).max() < 12


def test_transparent_parts_lie_on_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert_array_equal(decode_image(saved(clear), 3)[0], 255)
    clear.putpixel((1, 0), (9, 8, 7, 255))
    assert_array_equal(decode_image(saved(clear), 3)[0][0, 1], (9, 8, 7))


def test_exif_turns_photographs_as_viewers_do():
    image = noise(8, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    file = saved(Image.fromarray(image), exif=exif)
    assert_array_equal(decode_image(file, 3)[0], np.rot90(image, -1))
    assert_array_equal(decode_image(file, 3, follow_exif=False)[0], image)


def animation(kind):
    frames = [Image.fromarray(noise(8, 8, 3)) for _ in range(3)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:])


def cut_short():
    whole = saved(Image.fromarray(noise(64, 64, 3)), "JPEG").getvalue()
    return io.BytesIO(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: animation("GIF"), "animated: 3 frames"),
        (lambda: animation("WEBP"), "animated: 3 frames"),
        (lambda: animation("PNG"), "animated: 3 frames"),
        (cut_short, "not a picture, or a broken one"),
        (lambda: io.BytesIO(b""), "unknown format"),
        (lambda: io.BytesIO(b"hello"), "unknown format"),
        (lambda: saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "32-bit values"),
        (lambda: "/nowhere/at/all.png", "no such file"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(make, reason):
    with pytest.raises(BrokenImageError, match=reason):
        decode_image(make(), 3)


def test_unprintable_names_are_printable():
    name = os.fsdecode(b"caf\xe9.png")
    assert printable(name) == "caf\\xe9.png"
    assert printable("cafe.png") == "cafe.png"
