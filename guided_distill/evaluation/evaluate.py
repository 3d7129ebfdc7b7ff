"""The comparison: teacher, guided DDIM, step one and students on the same noise and labels."""

import dataclasses
import time

import numpy as np

from guided_distill.data.sources import to_float, to_uint8
from guided_distill.evaluation.metrics import (
    frechet_distance,
    inception_score,
    moments,
    rmse,
)
from guided_distill.training.progress import Progress

PICTURES_KEPT = 20


@dataclasses.dataclass(frozen=True)
class Contender:
    """One row's model.

    Attributes:
      model: "teacher" (all steps), "ddim" (the guided teacher at few), "step_one", "student".
      num_steps: N.
      calls_per_step: network calls per sampling step, 2 for a guided pair.
      params: its parameters.
      generator: draws its samples.
    """

    model: str
    num_steps: int
    calls_per_step: int
    params: object
    generator: object

    @property
    def network_calls(self):
        """Network calls per sample."""
        return self.num_steps * self.calls_per_step


def list_contenders(stages, samplers, *, start_steps, num_steps):
    """Everything that is compared, references first.

    Args:
      stages: `{"teacher": (params, record), "step_one": …, N: …}`, finished stages.
      samplers: `Samplers`.
      start_steps: steps of the full teacher and of the step-one model.
      num_steps: N of the students and of guided DDIM.

    Returns:
      A list of `Contender`s.
    """

    def contender(stage, model, steps):
        params, record = stages[stage]
        calls_per_step = 2 if stage == "teacher" else 1
        return Contender(model, steps, calls_per_step, params, samplers.of(record))

    return [
        contender("teacher", "teacher", start_steps),
        contender("step_one", "step_one", start_steps),
        *(contender("teacher", "ddim", steps) for steps in num_steps),
        *(contender(steps, "student", steps) for steps in num_steps),
    ]


class Evaluation:
    """Measures contenders against a data set.

    Args:
      reference: the data set's training split.
      extractor: `FeatureExtractor`.
      num_samples: n, the same in every row.
      seed: of the noise; sample i has noise i and label i mod the number of classes.
    """

    def __init__(self, reference, extractor, *, num_samples, seed):
        self.extractor, self.seed = extractor, seed
        self.indices = np.arange(num_samples)
        self.labels = self.indices % reference.num_classes
        features, _ = extractor.apply(to_float(reference.images))
        self.reference_moments = moments(features)

    def run(self, contenders, weights):
        """All rows, and the first samples of each.

        Args:
          contenders: as `list_contenders` orders them.
          weights: guidance weights.

        Returns:
          (rows, pictures): rows as in `results.json`; pictures maps (model, N, w) to
          `[PICTURES_KEPT, H, W, C]` uint8.
        """
        self._warm_up(contenders)
        n = len(self.indices)
        total = n * len(weights) * sum(c.network_calls for c in contenders)
        progress = Progress("evaluation", total=total, unit="network call")
        rows, pictures, calls_done = [], {}, 0
        for w in weights:
            references = {}
            for contender in contenders:

                def on_batch(done, before=calls_done, calls=contender.network_calls):
                    progress(before + done * calls)

                x, seconds = self._draw(contender, w, on_batch)
                calls_done += n * contender.network_calls
                references.setdefault(contender.model, x)
                rows.append(self._row(contender, w, x, seconds, references))
                kept = to_uint8(x[:PICTURES_KEPT])
                pictures[contender.model, contender.num_steps, w] = kept
        progress.close()
        return rows, pictures

    def _warm_up(self, contenders):
        """Compiles every generator, so that no row's speed holds a compilation."""
        for contender in {id(c.generator): c for c in contenders}.values():
            one_step = dataclasses.replace(contender, num_steps=1)
            self._draw(one_step, 0.0, on_batch=None)

    def _draw(self, contender, w, on_batch):
        started = time.perf_counter()
        x = contender.generator(
            contender.params,
            labels=self.labels,
            w=np.full(len(self.indices), w),
            indices=self.indices,
            num_steps=contender.num_steps,
            seed=self.seed,
            on_batch=on_batch,
        )
        return x, time.perf_counter() - started

    def _row(self, contender, w, x, seconds, references):
        features, probabilities = self.extractor.apply(to_float(to_uint8(x)))
        to_step_one = rmse(x, references["step_one"]) if contender.model == "student" else None
        return {
            "model": contender.model,
            "sampler": "ddim",
            "num_steps": contender.num_steps,
            "network_calls": contender.network_calls,
            "w": w,
            "fid": frechet_distance(*moments(features), *self.reference_moments),
            "features": self.extractor.name,
            "is": inception_score(probabilities),
            "accuracy": float(np.mean(probabilities.argmax(axis=1) == self.labels)),
            "rmse_to_teacher": rmse(x, references["teacher"]),
            "rmse_to_step_one": to_step_one,
            "n": len(x),
            "images_per_second": len(x) / seconds,
        }
