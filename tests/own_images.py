"""Pictures that look like something, for tests: discs, rings, squares, crosses and stripes."""

import numpy as np
from PIL import Image

SHAPES = {
    "disc": lambda x, y, r: x**2 + y**2 < r**2,
    "ring": lambda x, y, r: abs(np.hypot(x, y) - r) < 0.12,
    "square": lambda x, y, r: np.maximum(abs(x), abs(y)) < r,
    "cross": lambda x, y, r: np.minimum(abs(x), abs(y)) < r / 3,
    "stripes": lambda x, y, r: np.sin(6 * (x + y) / r) > 0,
}


def draw(shape, seed, height, width):
    """One shape in a colour, a place and a size of its own: `[height, width, 3]` uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    inside = SHAPES[shape](x - rng.uniform(-0.3, 0.3), y - rng.uniform(-0.3, 0.3),
                           rng.uniform(0.4, 0.7))  # fmt: skip
    colours = rng.integers(0, 256, (2, 3))
    return np.where(inside[..., None], *colours).astype(np.uint8)


def write_folder(folder, per_class):
    """`per_class` JPEGs of different sizes in each of five subfolders."""
    for number, shape in enumerate(SHAPES):
        (folder / shape).mkdir(parents=True)
        for k in range(per_class):
            height, width = np.random.default_rng([number, k]).integers(24, 96, 2)
            image = Image.fromarray(draw(shape, [number, k], height, width))
            image.save(folder / shape / f"{k:03d}.jpg", quality=92)
