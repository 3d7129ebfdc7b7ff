"""Laws of crops, resizing and borders; picture files right or refused with the reason."""

import concurrent.futures
import io
import os
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from guided_distill.data import images
from guided_distill.data.heard import hearing
from guided_distill.data.images import BrokenImageError, check_range, decode_image, printable
from guided_distill.data.pixels import area_resize, center_crop, crop_and_resize, pad
from guided_distill.errors import UserError

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
    decoded, mode, *_ = decode_image(saved(Image.fromarray(values)), 1)
    assert mode == "I;16"
    assert_array_equal(decoded[0, :, 0], [0, 1, 128, 255])
    assert_array_equal(
        decode_image(saved(Image.fromarray(values)), 3)[0][0, :, 2], [0, 1, 128, 255]
    )


def deep_png(values, colour_type):
    """A PNG of 16 bits a channel, `values` `[H, W, C]`: Pillow writes grey ones alone."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return io.BytesIO(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )  # fmt: skip


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 15])
@pytest.mark.parametrize(
    "options", [{}, dict(kind="TIFF"), dict(kind="TIFF", compression="tiff_lzw")]
)
def test_what_is_white_in_sixteen_bits_can_be_told(bits, options):
    """Each of 256 even steps up to `max_value` is a step of 8 bits."""
    white = 2**bits - 1
    values = np.round(np.linspace(0, white, 256)).astype(np.uint16).reshape(16, 16)
    file = saved(Image.fromarray(values), **options)
    told = decode_image(file, 1, max_value=white)
    assert_array_equal(told.image.ravel(), np.arange(256))
    assert told.peak is None and decode_image(file, 1).peak == white
    with pytest.raises(
        BrokenImageError, match=f"value {white} is above data.max_value={white - 1}"
    ):
        decode_image(file, 1, max_value=white - 1)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_deep_colours_are_known_to_be_so(colour_type, channels):
    """The alpha of a dark picture is bright."""
    values = np.full((4, 4, channels), 4095)
    values[..., 3 if channels == 4 else channels - 1] = 65535 if channels != 3 else 4095
    assert decode_image(deep_png(values, colour_type), 3).peak == 4095
    with pytest.raises(BrokenImageError, match="not from data.max_value=4095: save it in 8 bits"):
        decode_image(deep_png(values, colour_type), 3, max_value=4095)
    full = decode_image(deep_png(values, colour_type), 3, max_value=65535)
    assert full.peak is None and full.image.max() == 15


def test_pictures_of_eight_bits_have_no_peak_to_judge():
    picture = Image.new("L", (4, 4), 3)
    assert decode_image(saved(picture), 1).peak is None
    assert_array_equal(decode_image(saved(picture), 1, max_value=4095).image, 3)


def test_a_set_of_dim_sixteen_bits_is_refused_and_what_may_be_meant_is_not():
    for peak in (200, 1023, 4095, 16383):
        with pytest.raises(UserError, match=f"x: 2 pictures .* above {peak}, .* data.max_value"):
            check_range([None, peak, 20], "x")
    for peaks in ([], [None, 4095], [4095, 40_000, 20], [0, 0], [None, None]):
        check_range(peaks, "x")


def test_damaged_exif_is_a_warning_of_its_picture_and_not_shown(recwarn):
    exif = Image.Exif()
    exif[0x010F] = "a maker of cameras"
    whole = exif.tobytes()
    image = noise(8, 6, 3)
    for cut in range(9, len(whole) - 1, 4):
        picture = decode_image(saved(Image.fromarray(image), "PNG", exif=whole[:cut]), 3)
        assert_array_equal(picture.image, image)
        assert len(picture.warnings) == 1 and len(picture.warnings[0].splitlines()) == 1
    assert decode_image(saved(Image.fromarray(image), exif=whole), 3).warnings == ()
    assert not recwarn.list


def test_an_exif_block_that_cannot_be_turned_by_leaves_the_picture(monkeypatch):
    def fail(image):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(images.ImageOps, "exif_transpose", fail)
    picture = decode_image(saved(Image.fromarray(noise(8, 6, 3))), 3)
    assert picture.image.shape == (8, 6, 3)
    assert picture.warnings == ("EXIF cannot be read (not a TIFF file), taken as it lies",)


def test_each_thread_hears_its_own_warnings(recwarn):
    """What is warned of beside them goes where it went before, and all is put back at the end."""
    shown, filters = warnings.showwarning, list(warnings.filters)

    def decode(number):
        with hearing(__name__) as heard:
            for _ in range(20):
                warnings.warn(f"of {number}", stacklevel=1)
                time.sleep(1e-4)
        return heard

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        heard = list(pool.map(decode, range(40)))
    assert heard == [[f"of {number}"] for number in range(40)]
    assert warnings.showwarning is shown and warnings.filters == filters
    warnings.warn("beside", stacklevel=1)
    assert [str(one.message) for one in recwarn.list] == ["beside"]


def test_cmyk_photographs_keep_their_colours():
    red = Image.new("RGB", (16, 16), (250, 10, 10))
    decoded, mode, *_ = decode_image(saved(red.convert("CMYK"), "JPEG", quality=95), 3)
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
        (lambda: io.BytesIO(b"P5 2 2 65535\n" + b"\x0f\xff" * 4), "mode I: 32-bit values"),
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
