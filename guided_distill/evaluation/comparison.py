"""The comparison: teacher, guided DDIM, step one and students on the same noise and labels."""

import dataclasses
import pathlib
import time

import numpy as np

from guided_distill.evaluation.contenders import REFERENCES
from guided_distill.evaluation.measure import Measurement
from guided_distill.evaluation.sample_store import SampleStore, key_of, load_array
from guided_distill.system.files import array_sha256, json_sha256, read_json, write_json
from guided_distill.system.processes import array_from_first, is_first
from guided_distill.system.progress import Progress

MEAN_OVER_DRAWS = (
    "fid", "is", "kid", "precision", "recall", "accuracy", "rmse_to_teacher", "rmse_to_step_one",
    "clip_score",
)  # fmt: skip
IMAGES_KEPT = 20
IMAGES_SHA256 = "images_sha256"  # of the first samples, in a row's file


def merge_draws(draws):
    """One row from those of the same model and weight in several draws.

    Args:
      draws: rows in `results.json`'s keys, one per draw.

    Returns:
      The row of the means; `<metric>_std` is the deviation over the draws where there are several.
    """
    if len(draws) == 1:
        return draws[0]
    merged = dict(draws[0]) | {"draws": len(draws)}
    for metric in MEAN_OVER_DRAWS:
        values = [row.get(metric) for row in draws]  # Rows of earlier versions lack the last.
        if None not in values:
            merged[metric] = float(np.mean(values))
            merged[f"{metric}_std"] = float(np.std(values, ddof=1))
    return merged


class Comparison:
    """Measures contenders against a data set; what it had measured when it was stopped, it keeps.

    Args:
      folder: where finished rows, and the references' samples, are kept.
      reference: `ReferenceStats` of the data set, on the extractor's features.
      extractor: `FeatureExtractor` of distances and scores.
      classifier: `TrainedClassifier` of class accuracy; may be the extractor. None measures none.
      asked: `AskedClasses` or `AskedExamples`: what each sample is conditioned on.
      sample_shape: of one x, such as (H, W, C).
      num_samples: n, the same in every row.
      batch_size: samples drawn and measured at a time.
      seed: of the noise; sample i has noise i.
      clip: `ClipScorer` of samples with the captions that `asked` has; None measures none.
    """

    def __init__(
        self,
        folder,
        reference,
        extractor,
        classifier,
        *,
        asked,
        sample_shape,
        num_samples,
        batch_size,
        seed,
        clip=None,
    ):
        self.folder, self.reference, self.extractor = folder, reference, extractor
        self.classifier, self.asked, self.sample_shape = classifier, asked, sample_shape
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.clip, self._stores = clip, {}
        self._captions, self._compared_by = None, {}
        if clip:
            self._captions = asked.captions(0, num_samples)
            self._compared_by = {"clip": clip.name, "captions": json_sha256(self._captions)}

    def run(self, contenders, weights):
        """All rows, and the first samples of each.

        Args:
          contenders: as `list_contenders` orders them.
          weights: guidance weights.

        Returns:
          (rows, images): rows as in `results.json`; images maps (model, N, w) to
          `[IMAGES_KEPT, …]`, uint8 where they are pictures.
        """
        work = [(w, c) for w in weights for c in contenders if c.knows(w)]
        for w, contender in work:
            self._store(contender, w)
        missing = [(w, c) for w, c in work if self._finished(c, w) is None]
        self._warm_up([c for _, c in missing])
        calls_left = sum(self._left(c, w) * c.network_calls for w, c in missing)
        progress = Progress("evaluation", total=calls_left, unit="network call")
        calls_done = 0
        for w, contender in missing:

            def on_batch(drawn, calls=contender.network_calls):
                nonlocal calls_done
                calls_done += drawn * calls
                progress(calls_done)

            self._measure(contender, w, on_batch)
        progress.close()
        rows, images = [], {}
        for w, contender in work:
            row, kept = self._finished(contender, w)
            rows.append(row)
            images[contender.model, contender.num_steps, w] = kept
        return rows, images

    def _identity(self, contender, w):
        """What samples depend on, as plain JSON."""
        return {
            "params_sha256": contender.stage.record["params_sha256"],
            "sampler": contender.sampler,
            "ancestral_mix": contender.ancestral_mix,
            "num_steps": contender.num_steps,
            "w": w,
            "n": self.num_samples,
            "labels": self.asked.sha256,
            "seed": self.seed,
        }

    def _row_path(self, contender, w):
        """Where a row lies once it is measured."""
        identity = self._compared_by | self._identity(contender, w)
        identity |= {
            "model": contender.model,
            "features": self.extractor.name,
            "classifier": self.classifier and self.classifier.name,
            "reference": self.reference.sha256,
        }
        return pathlib.Path(self.folder, "rows", f"{key_of(identity)}.json")

    def _finished(self, contender, w):
        """(row, first samples) of what was measured before and is whole, else None."""
        path = self._row_path(contender, w)
        row = read_json(path, derived=True)
        images = row and array_from_first(lambda: load_array(path.with_suffix(".npy")))
        if images is None or array_sha256(images) != row.get(IMAGES_SHA256):
            return None
        return {key: value for key, value in row.items() if key != IMAGES_SHA256}, images

    def _store(self, contender, w):
        """The `SampleStore` of a reference, which other rows are compared with; else None."""
        if contender.model not in REFERENCES:
            return None
        key = (contender.model, w)
        if key not in self._stores:
            shape = (self.num_samples, *self.sample_shape)
            folder = pathlib.Path(self.folder, "samples")
            self._stores[key] = SampleStore(folder, self._identity(contender, w), shape)
        return self._stores[key]

    def _left(self, contender, w):
        """Samples still to draw for a row."""
        store = self._store(contender, w)
        return self.num_samples - (store.done if store else 0)

    def _warm_up(self, contenders):
        """Compiles every generator, so that no row's speed holds a compilation."""
        for contender in {id(c.generator): c for c in contenders}.values():
            params = contender.generator.place(contender.stage.params)
            self._draw(dataclasses.replace(contender, num_steps=1), params, 0.0, 0, 1)

    def _draw(self, contender, params, w, start, stop):
        """Samples start, …, stop − 1, and the seconds they took."""
        indices = np.arange(start, stop)
        started = time.perf_counter()
        x = contender.generator(
            params,
            cond=self.asked.read(start, stop),
            w=np.full(len(indices), w),
            indices=indices,
            num_steps=contender.num_steps,
            seed=self.seed,
        )
        return x, time.perf_counter() - started

    def _measure(self, contender, w, on_batch):
        """Draws and measures one row, batch by batch, and writes it."""
        params = contender.generator.place(contender.stage.params)
        store = self._store(contender, w)
        of = self.extractor, self.classifier, self.reference, self.clip
        measurement = Measurement(self.num_samples, *of)
        kept, seconds = [], 0.0
        for start in range(0, self.num_samples, self.batch_size):
            stop = min(start + self.batch_size, self.num_samples)
            first = start if store is None else max(start, store.done)
            if first < stop:
                x, spent = self._draw(contender, params, w, first, stop)
                seconds += spent
                on_batch(stop - first)
                if store is not None:
                    store.append(x, spent)
            if store is not None:
                x = store.read(start, stop)
            others = {name: self._compared(contender, name, w, start, stop) for name in REFERENCES}
            captions = self._captions[start:stop] if self.clip else None
            seen = measurement.add(x, self.asked.read(start, stop), others, captions)
            if start < IMAGES_KEPT:
                kept.append(seen)
        row = {
            "model": contender.model,
            "sampler": contender.sampler,
            "num_steps": contender.num_steps,
            "network_calls": contender.network_calls,
            "w": w,
            **measurement.result(),
            "images_per_second": self.num_samples / (store.seconds if store else seconds),
        }
        path, images = self._row_path(contender, w), np.concatenate(kept)[:IMAGES_KEPT]
        if is_first():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path.with_suffix(".npy"), images)
        write_json(path, row | {IMAGES_SHA256: array_sha256(images)})

    def _compared(self, contender, name, w, start, stop):
        """The reference's samples that a contender's are compared with; None for no comparison."""
        store = self._stores.get((name, w))
        if store is None or name not in contender.compares_with:
            return None
        return store.read(start, stop)
