"""Picture files as arrays: decoded, or refused with the reason."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from guided_distill.data.heard import hearing
from guided_distill.data.pixels import FITS, area_resize
from guided_distill.errors import UserError
from guided_distill.system.files import local_path

MODE_OF_CHANNELS = {1: "L", 3: "RGB"}
STILLS = ("MPO", "TIFF")  # whose further frames are previews, depths or pages: the first is taken
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N")
DEEP = (";16B", ";16L", ";16N")  # how Pillow's names of 16-bit pixels in files end
MAX_SIXTEEN_BITS = 2**16 - 1
FEWER_BITS = 2**14 - 1  # A set that stays below holds 14 bits or fewer, or nothing but night.
STATED_MAX = {"I;12": 2**12 - 1}  # of files that say how many bits they use
PILLOW = r"PIL\."  # modules whose warnings are heard
ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")


class BrokenImageError(ValueError):
    """Why a file is no picture that a model can learn from."""


class Picture(NamedTuple):
    """A picture as it was decoded.

    Attributes:
      image: `[H, W, channels]` uint8.
      mode: it was stored in, as Pillow names it.
      peak: largest value of one that is stored in 16 bits without a stated range, else None.
      warnings: what its decoder warned of, a tuple of lines.
    """

    image: np.ndarray
    mode: str = ""
    peak: int | None = None
    warnings: tuple = ()


def decode_image(file, channels, *, follow_exif=True, max_value=0):
    """One picture, whatever it is stored as.

    Colours are converted (CMYK, palettes, grey), 16 bits are scaled to 8, transparent parts are
    laid on white.

    Args:
      file: path, or file object of the encoded bytes.
      channels: 1 or 3.
      follow_exif: turn it as its EXIF tag says, as viewers do.
      max_value: what is white in 16 bits; 0 = what the file states, or 65535.

    Returns:
      A `Picture`.

    Raises:
      BrokenImageError: where it cannot be read, is animated, or has no stated range of values.
    """
    with hearing(PILLOW) as heard:
        pil_image, raw_mode = _open(file, follow_exif, heard)
        peak = None if max_value or raw_mode in STATED_MAX else _peak(pil_image, raw_mode)
        max_value = max_value or STATED_MAX.get(raw_mode, MAX_SIXTEEN_BITS)
        if max_value != MAX_SIXTEEN_BITS and _has_deep_colours(pil_image, raw_mode):
            raise BrokenImageError(
                f"16 bits a colour are scaled from {MAX_SIXTEEN_BITS} alone, not from "
                f"data.max_value={max_value}: save it in 8 bits"
            )
        converted = _convert(pil_image, MODE_OF_CHANNELS[channels], max_value)
        image = np.asarray(converted, np.uint8).reshape(*converted.size[::-1], channels)
    return Picture(image, pil_image.mode, peak, tuple(heard))


def _open(file, follow_exif, heard):
    """(Pillow's image, how Pillow names the pixels in the file); adds to the warnings `heard`."""
    try:
        with Image.open(file) as opened:
            frames = getattr(opened, "n_frames", 1)
            if frames > 1 and opened.format not in STILLS:
                raise BrokenImageError(f"animated: {frames} frames instead of one picture")
            raw_mode = _raw_mode(opened)
            opened.load()
            return (_turn(opened, heard) if follow_exif else opened.copy()), raw_mode
    except BrokenImageError:
        raise
    except FileNotFoundError:
        raise BrokenImageError("no such file") from None
    except PermissionError:
        raise BrokenImageError("permission denied") from None
    except Exception as error:  # Decoders fail in many ways on damaged files.
        raise BrokenImageError(f"not a picture, or a broken one ({_reason(error)})") from error


def _raw_mode(opened):
    """Pillow's name of the pixels as they lie in the file, such as `RGB;16B`; "" for none."""
    arguments = opened.tile[0][3] if opened.tile else ""
    return str(arguments if isinstance(arguments, str) else next(iter(arguments or ()), ""))


def _turn(pil_image, heard):
    """The picture as its EXIF tag says; as it lies, with a warning, where that cannot be read."""
    try:
        return ImageOps.exif_transpose(pil_image)
    except Exception as error:  # The pixels are whole, whatever is wrong with the EXIF block.
        heard.append(f"EXIF cannot be read ({_reason(error)}), taken as it lies")
        return pil_image.copy()


def _peak(pil_image, raw_mode):
    """Largest value of a picture stored in 16 bits, None of others.

    Of 16 bits a colour it is the largest that the upper eight leave open.
    """
    if pil_image.mode in SIXTEEN_BIT_MODES:
        return int(np.asarray(pil_image).max())
    if _has_deep_colours(pil_image, raw_mode):
        extrema = dict(zip(pil_image.getbands(), pil_image.getextrema(), strict=True))
        return max(high for band, (_, high) in extrema.items() if band != "A") * 256 + 255
    return None


def _has_deep_colours(pil_image, raw_mode):
    """Whether it is stored in 16 bits a colour, of which Pillow keeps the upper eight."""
    return raw_mode.endswith(DEEP) and len(pil_image.getbands()) > 1


def check_range(peaks, what, key="data.max_value"):
    """Refuses 16-bit pictures none of which comes near 65535: 10, 12 or 14 bits, not told.

    One dark picture, or a set that is all black, says nothing of its range.

    Args:
      peaks: `Picture.peak` of all pictures.
      what: they are, for people.
      key: that states the range.

    Raises:
      UserError: naming their number, the largest value and the key.
    """
    peaks = [peak for peak in peaks if peak is not None]
    if len(peaks) > 1 and 0 < max(peaks) <= FEWER_BITS:
        bits = max(peaks).bit_length()
        raise UserError(
            f"{what}: {len(peaks)} pictures are stored in 16 bits, but no value is above "
            f"{max(peaks)}, so they would turn nearly black: set {key} to what is white, "
            f"such as {2**bits - 1} of {bits} bits, or {MAX_SIXTEEN_BITS} where they are so dark"
        )


def _reason(error):
    text = str(error).splitlines()[0] if str(error) else ""
    return "unknown format" if "cannot identify" in text else text or type(error).__name__


def _convert(pil_image, mode, max_value):
    if pil_image.mode in SIXTEEN_BIT_MODES:
        values = np.asarray(pil_image).astype(np.float32)
        if values.max() > max_value:
            raise BrokenImageError(f"value {values.max():.0f} is above data.max_value={max_value}")
        pil_image = Image.fromarray(np.round(values * (255.0 / max_value)).astype(np.uint8))
    if pil_image.mode in ("I", "F"):
        raise BrokenImageError(f"mode {pil_image.mode}: 32-bit values without a stated range")
    if pil_image.mode in ALPHA_MODES or "transparency" in pil_image.info:
        pil_image = pil_image.convert("RGBA")
        white = Image.new("RGBA", pil_image.size, "white")
        pil_image = Image.alpha_composite(white, pil_image).convert("RGB")
    return pil_image if pil_image.mode == mode else pil_image.convert(mode)


def fit_image(image, size, fit):
    """`[H, W, C]` made to `[size, size, C]` as `FITS[fit]` does."""
    try:
        return FITS[fit](image, size)
    except ValueError as error:
        raise BrokenImageError(str(error)) from error


def printable(path):
    """A path as text that can be printed, whatever bytes its name holds."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_images(paths, image_shape, *, skip_broken=False, max_value=0):
    """Picture files as one array; colours and square sizes are converted with a word.

    Args:
      paths: files, or folders whose files are taken in order of name.
      image_shape: (H, W, C) of the model.
      skip_broken: leave out files that cannot be used, instead of refusing them.
      max_value: as in `decode_image`.

    Returns:
      (images `[n, H, W, C]` uint8, notices): what was converted, doubtful or left out, a list of
      lines.

    Raises:
      UserError: where a path is no picture, or a picture is not square; where none is left, or
        as `check_range` says.
    """
    files = []
    for path in (local_path(path, "`images`") for path in paths):
        files += sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    images, peaks, notices, broken = [], [], [], []
    for path in files:
        try:
            picture = _read_square(path, image_shape, max_value, notices)
            images.append(picture.image)
            peaks.append(picture.peak)
        except BrokenImageError as error:
            if not skip_broken:
                raise UserError(f"`images`: {printable(path)} cannot be used: {error}") from error
            broken.append(f"{printable(path)}: {error}")
    if broken:
        notices.append(f"{len(broken)} of {len(files)} files left out: {'; '.join(broken)}")
    if not images:
        what = "no file that can be used" if files else "no files"
        raise UserError(f"`images` {','.join(map(str, paths))} holds {what}")
    check_range(peaks, "`images`")
    return np.stack(images), notices


def _read_square(path, image_shape, max_value, notices):
    """One `Picture` of that shape; adds a line to `notices` for each conversion and warning."""
    height, width, channels = image_shape
    picture = decode_image(path, channels, max_value=max_value)
    image, mode, wanted = picture.image, picture.mode, MODE_OF_CHANNELS[channels]
    notices += [f"{printable(path)}: {warning}" for warning in picture.warnings]
    if mode != wanted:
        notices.append(f"{printable(path)}: converted from {mode} to {wanted}")
    if image.shape[0] != image.shape[1]:
        raise BrokenImageError(
            f"{image.shape[1]}x{image.shape[0]} where the model takes {width}x{height}: crop it "
            "to a square first"
        )
    if image.shape[:2] != (height, width):
        size = f"{image.shape[1]}x{image.shape[0]}"
        notices.append(f"{printable(path)}: resized from {size} to {width}x{height}")
        image = area_resize(image, height)
    return picture._replace(image=image)
