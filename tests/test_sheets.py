"""Sheets of samples: rows are weights, columns classes, and a PNG says how it was made."""

import numpy as np
import pytest
from PIL import Image

from guided_distill.jobs.sample import Request, command_of, count_columns, sheet_lines
from guided_distill.report.sheets import NOTES_WIDTH, heads, save_sheet


def boxes(path, images):
    """(left, top, right, bottom) of each sample of one colour in a sheet."""
    sheet = np.asarray(Image.open(path))
    found = []
    for x in images:
        y, at = np.nonzero(np.all(sheet == x[0, 0], axis=-1))
        found.append((at.min(), y.min(), at.max() + 1, y.max() + 1))
    return np.array(found)


def colours(n, side):
    """`n` samples, each of a colour of its own, none of it a grey."""
    colour = np.stack([np.arange(n) + 20, 250 - np.arange(n), np.full(n, 90)], axis=-1)
    return np.broadcast_to(colour.astype(np.uint8)[:, None, None], (n, side, side, 3)).copy()


@pytest.mark.parametrize(("side", "cell"), [(8, 64), (28, 84), (64, 64), (100, 100)])
def test_rows_are_weights_and_columns_classes(tmp_path, side, cell):
    images = colours(6, side)
    save_sheet(tmp_path / "a.png", sheet_lines(images, (0.0, 4.0), ["zero", "one", "two"]), "do it")
    left, top, right, bottom = boxes(tmp_path / "a.png", images).T.reshape(4, 2, 3)
    assert np.all(right - left == cell) and np.all(bottom - top == cell)
    assert np.all(left[0] == left[1]) and np.all(left[:, :-1] + cell < left[:, 1:])
    assert np.all(top == top[:, :1]) and np.all(top[0] + cell < top[1])
    assert np.all(top[0] > 14) and np.all(left > 30)  # room for names above and beside
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.text["Command"] == "do it"
        above = np.asarray(sheet.convert("L"))[: top[0, 0], left[0, 1] : right[0, 1]]
    assert above.min() < 50  # a name is written there


def test_lines_name_weights_once_and_classes_where_they_change():
    images = colours(40, 2)
    lines = sheet_lines(images, (0.0, 0.3), list("abcde"))
    assert [name for name, _, _ in lines] == ["w = 0", "", "", "", "w = 0.3", "", "", ""]
    assert all(names == list("abcde") for _, names, _ in lines)
    np.testing.assert_array_equal(np.concatenate([x for _, _, x in lines]), images)
    assert heads(lines) == [True] + [False] * 7
    many = sheet_lines(images, (1.0,), [f"class {k}" for k in range(1000)])
    assert heads(many) == [True] * len(many)  # no column is of one class
    assert not any(heads(sheet_lines(images, (1.0,), [])))


@pytest.mark.parametrize(
    ("per_weight", "num_weights", "period", "columns"),
    [(64, 1, 10, 10), (64, 1, 2, 8), (10, 4, 10, 10), (32, 2, 10, 10), (64, 1, 1000, 8),
     (64, 1, 0, 8), (4, 1, 10, 4), (3, 1, 2, 2)],
)  # fmt: skip
def test_columns(per_weight, num_weights, period, columns):
    assert count_columns(per_weight, num_weights, period) == columns


def test_long_names_and_one_grey_sample_are_drawn(tmp_path):
    images = np.full((1, 8, 8, 1), 7, np.uint8)
    save_sheet(tmp_path / "a.png", sheet_lines(images, (0.0,), ["a name " * 20]), "a\u00e9\u4e2d")
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.mode == "L" and sheet.width < 200
        assert sheet.text["Command"] == "a\u00e9\u4e2d"
    save_sheet(tmp_path / "a.jpg", sheet_lines(images, (0.0,), []), "not in a JPEG")
    assert Image.open(tmp_path / "a.jpg").height == 72


def test_notes_stand_below_and_widen_a_sheet_so_far(tmp_path):
    images = np.full((1, 8, 8, 1), 7, np.uint8)
    lines = sheet_lines(images, (0.0,), [])
    sizes = {}
    for notes in ((), ("a cat",), ("a cat", "a dog"), ("a cat " * 500,)):
        save_sheet(tmp_path / "a.png", lines, notes=notes)
        with Image.open(tmp_path / "a.png") as sheet:
            sizes[notes] = sheet.size
            if notes:  # Each is written, on a line of its own below the samples.
                text = np.asarray(sheet)[72:].min(axis=1) < 100
                assert np.sum(np.diff(text.astype(int)) == 1) >= len(notes) - 1 and text.any()
    (plain, one, two, long) = sizes.values()
    assert plain[1] < one[1] < two[1] and one[1] == long[1]
    assert plain[0] <= one[0] < long[0] == NOTES_WIDTH


def test_the_command_asks_for_the_same():
    assert command_of(Request("my runs/a")) == (
        "python -m guided_distill.main --mode=sample '--workdir=my runs/a'"
    )
    asked = Request("a", w=(0.0, 0.3), labels=("cat", "dog, black"), force=True, num_steps=1)
    assert command_of(asked).endswith(
        """--workdir=a --num_steps=1 --w=0,0.3 '--labels=cat,"dog, black"' --force"""
    )
