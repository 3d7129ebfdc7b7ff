"""Sheets of named samples: a row per guidance weight, a column per class."""

import pathlib

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from guided_distill.report.grids import picture_of

CELL_SIDE = 64  # pixels of a sample's longer side, at least: smaller ones are enlarged
GAP = 4
FONT_SIZE = 14
NOTES_WIDTH = 640  # pixels that notes may widen a sheet to


def save_sheet(path, lines, command="", notes=()):
    """Writes `draw_sheet`; a PNG keeps the command that made it as its text `Command`."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = draw_sheet(lines, notes=notes)
    if path.suffix.lower() != ".png":
        sheet.save(path)
        return
    info = PngInfo()
    info.add_text("Command", command)
    sheet.save(path, pnginfo=info)


def draw_sheet(lines, left=None, notes=()):
    """Lines of samples with names, as a Pillow image.

    Args:
      lines: `[(name, names of its samples, images [k, H, W, C] uint8), …]`. The names of samples
        stand above a line where they are not those above the line before; those too long for
        their column end in "…".
      left: pixels for the names of lines; None for as many as they take.
      notes: texts below all lines, one below the other; those too long for the sheet end in "…".
    """
    font, text_height = name_font(), FONT_SIZE + GAP
    cell = enlarged(lines[0][2][0])
    left = left or names_width(name for name, _, _ in lines)
    headed = heads(lines)
    width = left + max(len(x) for _, _, x in lines) * (cell.width + GAP)
    notes_width = 2 * GAP + max((round(font.getlength(note)) for note in notes), default=0)
    width = max(width, min(notes_width, NOTES_WIDTH))
    height = GAP + len(lines) * (cell.height + GAP)
    height += (sum(headed) + len(notes)) * text_height
    sheet = Image.new(cell.mode, (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    y = GAP
    for (name, names, x), has_head in zip(lines, headed, strict=True):
        columns = [left + k * (cell.width + GAP) for k in range(len(x))]
        if has_head:
            for at, text in zip(columns, names, strict=True):
                text = shortened(text, cell.width, font)
                draw.text((at + cell.width / 2, y), text, "black", font, anchor="ma")
            y += text_height
        draw.text((GAP, y + cell.height / 2), name, "black", font, anchor="lm")
        for at, sample in zip(columns, x, strict=True):
            sheet.paste(enlarged(sample), (at, y))
        y += cell.height + GAP
    for note in notes:
        draw.text((GAP, y), shortened(note, width - 2 * GAP, font), "black", font)
        y += text_height
    return sheet


def name_font():
    """The font of names."""
    return ImageFont.truetype(findfont("DejaVu Sans"), FONT_SIZE)


def names_width(names):
    """Pixels that names of lines take beside them."""
    font = name_font()
    return GAP + max(round(font.getlength(name)) for name in names) + 2 * GAP


def heads(lines):
    """Whether names stand above each line: where they are others than those above it."""
    above, has = [], []
    for _, names, _ in lines:
        new = any(names) and list(names) != above[: len(names)]
        has.append(new)
        above = list(names) if new else above
    return has


def enlarged(x):
    """One sample `[H, W, C]` as an image of at least that side, by a whole factor."""
    picture = picture_of(x)
    factor = max(1, -(-CELL_SIDE // max(picture.size)))
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.BOX)


def shortened(text, width, font):
    """A name as far as it fits into so many pixels."""
    if font.getlength(text) <= width:
        return text
    fits = [k for k in range(len(text)) if font.getlength(text[:k] + "…") <= width]
    return text[: max(fits, default=0)] + "…"
