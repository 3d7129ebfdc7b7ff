"""The comparison: teacher, guided DDIM, step one and students on the same noise and labels."""

import dataclasses
import time

import numpy as np

from guided_distill.data.sources import to_uint8
from guided_distill.evaluation.generate import calls_per_step, choose_sampler
from guided_distill.evaluation.metrics import (
    frechet_distance,
    inception_score,
    kernel_distance,
    moments,
    precision_recall,
    rmse,
)
from guided_distill.training.progress import Progress

PICTURES_KEPT = 20


STUDENT_MODELS = {
    "deterministic": "student",
    "stochastic": "stochastic",
    "two_student": "two_student",
}


@dataclasses.dataclass(frozen=True)
class Contender:
    """One row's model.

    Attributes:
      model: "teacher" (all steps), "step_one", "ddim" and "ancestral" (the guided teacher at
        few steps), "student", "stochastic", "two_student", "single_w".
      sampler: the sampler's name.
      num_steps: N.
      calls_per_step: network calls per sampling step, 2 for a guided pair.
      folder: `StageFolder` of its parameters, read when they are needed.
      generator: draws its samples.
      only_w: the one guidance weight it knows; None for all.
    """

    model: str
    sampler: str
    num_steps: int
    calls_per_step: int
    folder: object
    generator: object
    only_w: float | None = None

    @property
    def network_calls(self):
        """Network calls per sample."""
        return self.num_steps * self.calls_per_step

    def knows(self, w):
        """Whether it has a row for this guidance weight."""
        return self.only_w in (None, w)


def list_contenders(
    stages, samplers, *, start_steps, num_steps, baselines=("ddim",), baseline_num_steps=()
):
    """Everything that is compared, references first.

    Args:
      stages: `{name: StageFolder}` of finished stages.
      samplers: `Samplers`.
      start_steps: steps of the full teacher and of the step-one model.
      num_steps: N of the students; those that were never distilled are left out.
      baselines: samplers of the guided teacher.
      baseline_num_steps: N of those.

    Returns:
      A list of `Contender`s.
    """

    def contender(name, model, steps, sampler=None):
        record = stages[name].record
        sampler = choose_sampler(record, sampler or "")
        only_w = record["w_range"][0] if model == "single_w" else None
        generator = samplers.of(record, sampler)
        calls = calls_per_step(record)
        return Contender(model, sampler, steps, calls, stages[name], generator, only_w)

    contenders = [contender("teacher", "teacher", start_steps)]
    if "step_one" in stages:
        contenders.append(contender("step_one", "step_one", start_steps))
    for sampler in baselines:
        contenders += [contender("teacher", sampler, n, sampler) for n in baseline_num_steps]
    for name, record in ((name, folder.record) for name, folder in stages.items()):
        if record["num_steps"] in num_steps and record["algorithm"] in STUDENT_MODELS:
            single = name.startswith("single_w")
            model = "single_w" if single else STUDENT_MODELS[record["algorithm"]]
            contenders.append(contender(name, model, record["num_steps"]))
    return contenders


class Evaluation:
    """Measures contenders against a data set.

    Args:
      reference: `ReferenceStats` of the data set, on the extractor's features.
      extractor: `FeatureExtractor` of distances and scores.
      classifier: `TrainedClassifier` of class accuracy; may be the extractor.
      num_classes: of the data set.
      num_samples: n, the same in every row.
      seed: of the noise; sample i has noise i and label i mod the number of classes.
    """

    def __init__(self, reference, extractor, classifier, *, num_classes, num_samples, seed):
        self.reference, self.extractor, self.classifier = reference, extractor, classifier
        self.seed = seed
        self.indices = np.arange(num_samples)
        self.labels = self.indices % num_classes

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
        total = n * sum(c.network_calls for w in weights for c in contenders if c.knows(w))
        progress = Progress("evaluation", total=total, unit="network call")
        rows, pictures, calls_done = [], {}, 0
        for w in weights:
            references = {}
            for contender in (c for c in contenders if c.knows(w)):

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
        params, _ = contender.folder.load()
        started = time.perf_counter()
        x = contender.generator(
            params,
            labels=self.labels,
            w=np.full(len(self.indices), w),
            indices=self.indices,
            num_steps=contender.num_steps,
            seed=self.seed,
            on_batch=on_batch,
        )
        return x, time.perf_counter() - started

    def _row(self, contender, w, x, seconds, references):
        images = to_uint8(x)
        features, log_p = self.extractor.apply(images)
        class_log_p = log_p
        if self.classifier is not self.extractor:
            _, class_log_p = self.classifier.apply(images)
        step_one = references.get("step_one") if contender.model == "student" else None
        return {
            "model": contender.model,
            "sampler": contender.sampler,
            "num_steps": contender.num_steps,
            "network_calls": contender.network_calls,
            "w": w,
            **measure_features(features, log_p, self.reference),
            "features": self.extractor.name,
            "accuracy": float(np.mean(class_log_p.argmax(axis=1) == self.labels)),
            "rmse_to_teacher": rmse(x, references["teacher"]),
            "rmse_to_step_one": None if step_one is None else rmse(x, step_one),
            "n": len(x),
            "images_per_second": len(x) / seconds,
        }


def measure_features(features, log_p, reference):
    """Every metric of samples' features `[n, D]` and log-probabilities, against `ReferenceStats`.

    `kid`, `precision` and `recall` are None where the reference has no features of its own.
    """
    score, score_std = inception_score(log_p)
    row = {
        "fid": frechet_distance(*moments(features), reference.mean, reference.covariance),
        "is": score,
        "is_std": score_std,
        "kid": None,
        "kid_std": None,
        "precision": None,
        "recall": None,
    }
    if reference.features is not None:
        row["kid"], row["kid_std"] = kernel_distance(features, reference.features)
        row["precision"], row["recall"] = precision_recall(
            features, reference.features, reference_radii=reference.radii
        )
    return row
