"""Picture files as arrays: decoded, or refused with the reason."""

import numpy as np
from PIL import Image, ImageOps

from guided_distill.data.pixels import FITS, area_resize
from guided_distill.errors import UserError
from guided_distill.system.files import local_path

MODE_OF_CHANNELS = {1: "L", 3: "RGB"}
STILLS = ("MPO", "TIFF")  # whose further frames are previews, depths or pages: the first is taken
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N")
ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")


class BrokenImageError(ValueError):
    """Why a file is no picture that a model can learn from."""


def decode_image(file, channels, *, follow_exif=True):
    """One picture, whatever it is stored as.

    Colours are converted (CMYK, palettes, grey), 16 bits are scaled to 8, transparent parts are
    laid on white.

    Args:
      file: path, or file object of the encoded bytes.
      channels: 1 or 3.
      follow_exif: turn it as its EXIF tag says, as viewers do.

    Returns:
      (image `[H, W, channels]` uint8, mode it was stored in, as Pillow names it).

    Raises:
      BrokenImageError: where it cannot be read, is animated, or has no stated range of values.
    """
    try:
        with Image.open(file) as opened:
            frames = getattr(opened, "n_frames", 1)
            if frames > 1 and opened.format not in STILLS:
                raise BrokenImageError(f"animated: {frames} frames instead of one picture")
            opened.load()
            pil_image = ImageOps.exif_transpose(opened) if follow_exif else opened.copy()
    except BrokenImageError:
        raise
    except FileNotFoundError:
        raise BrokenImageError("no such file") from None
    except PermissionError:
        raise BrokenImageError("permission denied") from None
    except Exception as error:  # Decoders fail in many ways on damaged files.
        raise BrokenImageError(f"not a picture, or a broken one ({_reason(error)})") from error
    stored_mode = pil_image.mode
    image = np.asarray(_convert(pil_image, MODE_OF_CHANNELS[channels]), np.uint8)
    return image.reshape(pil_image.height, pil_image.width, channels), stored_mode


def _reason(error):
    text = str(error).splitlines()[0] if str(error) else ""
    return "unknown format" if "cannot identify" in text else text or type(error).__name__


def _convert(pil_image, mode):
    if pil_image.mode in SIXTEEN_BIT_MODES:
        values = np.asarray(pil_image).astype(np.float32)
        pil_image = Image.fromarray(np.round(values / 257.0).astype(np.uint8))
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


def read_images(paths, image_shape, *, skip_broken=False):
    """Picture files as one array; colours and square sizes are converted with a word.

    Args:
      paths: files, or folders whose files are taken in order of name.
      image_shape: (H, W, C) of the model.
      skip_broken: leave out files that cannot be used, instead of refusing them.

    Returns:
      (images `[n, H, W, C]` uint8, notices): what was converted or left out, a list of lines.

    Raises:
      UserError: where a path is no picture, or a picture is not square; where none is left.
    """
    files = []
    for path in (local_path(path, "`images`") for path in paths):
        files += sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    images, notices, broken = [], [], []
    for path in files:
        try:
            images.append(_read_square(path, image_shape, notices))
        except BrokenImageError as error:
            if not skip_broken:
                raise UserError(f"`images`: {printable(path)} cannot be used: {error}") from error
            broken.append(f"{printable(path)}: {error}")
    if broken:
        notices.append(f"{len(broken)} of {len(files)} files left out: {'; '.join(broken)}")
    if not images:
        what = "no file that can be used" if files else "no files"
        raise UserError(f"`images` {','.join(map(str, paths))} holds {what}")
    return np.stack(images), notices


def _read_square(path, image_shape, notices):
    """One picture, `[H, W, C]` uint8; adds a line to `notices` for each conversion."""
    height, width, channels = image_shape
    image, mode = decode_image(path, channels)
    wanted = MODE_OF_CHANNELS[channels]
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
    return image
