"""The paper's figures of samples, drawn anew from finished stages."""

import numpy as np

from guided_distill.distill.distillations import DISTILLATIONS, students_of
from guided_distill.report.grids import save_strips

COLUMNS = 8
ROWS = 10
DDIM_STEPS = (8, 16)  # Figures 6 and 7


class FigureMaker:
    """Draws samples of stages and lays them out as the paper does.

    Args:
      stages: `{name: FinishedStage}`.
      generators: `Generators`.
      folder: where images go.
      num_steps: N of the students shown.
      weights: guidance weights shown.
      seed: of the noise, the same in all pictures.
      see: samples as pictures, uint8.
    """

    def __init__(self, stages, generators, folder, *, num_steps, weights, seed, see):
        self.stages, self.generators, self.folder = stages, generators, folder
        self.num_steps, self.weights, self.seed = sorted(num_steps), weights, seed
        self.see = see

    def draw_all(self):
        """Writes every figure that the stages allow; returns `{caption: file name}`."""
        figures = {}
        for row in DISTILLATIONS.values():
            dial_caption, samples_caption = row.figures
            students = students_of(self.stages, row)
            students = {n: students[n] for n in self.num_steps if n in students}
            if students and dial_caption:
                figures[dial_caption] = self._draw_dial(f"{row.name}_dial.png", students)
            for n, stage in students.items() if samples_caption else ():
                figures[f"{samples_caption}, N = {n}"] = self._draw_samples(
                    f"{row.name}_{n:04d}.png", stage, n
                )
        baselines = {n: self.stages["teacher"] for n in DDIM_STEPS}
        figures["Figures 6 and 7: guided DDIM"] = self._draw_dial("ddim.png", baselines)
        return figures

    def _draw_dial(self, name, models):
        """One block per N, one strip per w, all on the same noise."""
        labels = np.arange(10)
        blocks = {
            f"N = {n}": {f"w = {w:g}": self._draw(stage, n, w, labels) for w in self.weights}
            for n, stage in models.items()
        }
        save_strips(self.folder / name, blocks, "")
        return name

    def _draw_samples(self, name, stage, num_steps):
        """Random labels, then a row per class; one block of each for every w."""
        num_classes = stage.record["num_classes"]
        rng = np.random.Generator(np.random.Philox(self.seed))
        random_labels = rng.integers(num_classes, size=(ROWS, COLUMNS))
        classes = np.arange(min(ROWS, num_classes))
        class_labels = np.repeat(classes[:, None], COLUMNS, axis=1)
        blocks = {}
        for w in self.weights:
            for kind, labels, names in (
                ("random labels", random_labels, [" " * k for k in range(ROWS)]),
                ("by class", class_labels, [str(k) for k in classes]),
            ):
                x = self._draw(stage, num_steps, w, labels.ravel())
                rows = x.reshape(*labels.shape, *x.shape[1:])
                blocks[f"{kind}, w = {w:g}"] = dict(zip(names, rows, strict=True))
        save_strips(self.folder / name, blocks, "")
        return name

    def _draw(self, stage, num_steps, w, labels):
        """`[n, H, W, C]` uint8; sample k of every picture starts from noise k."""
        x = self.generators.of(stage)(
            stage.params,
            cond=np.asarray(labels, np.int32),
            w=np.full(len(labels), w),
            indices=np.arange(len(labels)),
            num_steps=num_steps,
            seed=self.seed,
        )
        return self.see(x)
