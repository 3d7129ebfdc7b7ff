"""Pictures from files that people have, made to fit a model."""

import pathlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from guided_distill.errors import UserError

MODE_OF_CHANNELS = {1: "L", 3: "RGB"}


def read_pictures(paths, image_shape, *, skip_broken=False):
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
    for path in map(pathlib.Path, paths):
        files += sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    images, notices, broken = [], [], []
    for path in files:
        try:
            images.append(_read_picture(path, image_shape, notices))
        except UserError as error:
            if not skip_broken:
                raise
            broken.append(str(error).removeprefix("--images: "))
    if broken:
        notices.append(f"{len(broken)} of {len(files)} files left out: {'; '.join(broken)}")
    if not images:
        what = "no file that can be used" if files else "no files"
        raise UserError(f"--images={','.join(map(str, paths))} holds {what}")
    return np.stack(images), notices


def _read_picture(path, image_shape, notices):
    """One picture, `[H, W, C]` uint8; adds a line to `notices` for each conversion."""
    height, width, channels = image_shape
    try:
        with Image.open(path) as opened:
            picture = opened.copy()
    except (OSError, UnidentifiedImageError) as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "no such file" if missing else "not a picture, or a broken one"
        raise UserError(f"--images: {path} cannot be read: {reason}") from error
    mode = MODE_OF_CHANNELS[channels]
    if picture.mode != mode:
        notices.append(f"{path}: converted from {picture.mode} to {mode}")
        picture = picture.convert(mode)
    if picture.size != (width, height):
        if picture.size[0] != picture.size[1]:
            raise UserError(
                f"--images: {path} is {picture.size[0]}x{picture.size[1]}, the model takes "
                f"{width}x{height}: crop it to a square first"
            )
        size = f"{picture.size[0]}x{picture.size[1]}"
        notices.append(f"{path}: resized from {size} to {width}x{height}")
        picture = picture.resize((width, height), Image.Resampling.BOX)
    return np.asarray(picture, np.uint8).reshape(height, width, channels)
