"""Metrics of samples that come in batches: constant memory, whatever their number."""

import numpy as np

from guided_distill.errors import UserError
from guided_distill.evaluation.metrics import (
    NEIGHBOURS,
    InceptionScore,
    Moments,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from guided_distill.evaluation.reference import FEATURES_KEPT


class Measurement:
    """Everything that is measured of one model at one guidance weight.

    Args:
      n: samples to come.
      extractor: `FeatureExtractor` of distances and scores.
      classifier: `TrainedClassifier` of class accuracy; may be the extractor. None measures none.
      reference: `ReferenceStats`.
      clip: `ClipScorer` of samples with their captions. None measures none.
    """

    def __init__(self, n, extractor, classifier, reference, clip=None):
        self.n, self.extractor, self.classifier, self.reference = (
            n,
            extractor,
            classifier,
            reference,
        )
        self.clip, self._clip_scores = clip, 0.0
        self._moments, self._score = Moments(), InceptionScore(n)
        self._kept, self._correct, self._squares = [], 0, {}

    def add(self, x, labels, others, captions=None):
        """Adds a batch.

        Args:
          x: samples, `[B, …]`: pictures in [-1, 1], or latents.
          labels: what was asked for, `[B]`; not looked at without a classifier.
          others: `{name: samples of another model on the same noise, or None}`.
          captions: a list of what was asked for; not looked at without `clip`.

        Returns:
          The samples as the extractor sees them.
        """
        if not np.isfinite(x).all():
            bad = self._moments.n + int(
                np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(1))[0]
            )
            raise UserError(f"sample {bad} is not finite: the model that drew it has diverged")
        images = self.extractor.see(x)
        features, log_p = self.extractor.apply(images)
        seen = self._moments.n
        self._moments.add(features)
        if log_p is None:
            self._score = None
        else:
            self._score.add(log_p)
        self._kept.append(np.asarray(features[: max(0, FEATURES_KEPT - seen)], np.float32))
        if self.classifier is not None:
            same = self.classifier is self.extractor
            class_log_p = log_p if same else self.classifier.apply(images)[1]
            self._correct += int(np.sum(class_log_p.argmax(axis=1) == labels))
        if self.clip is not None:
            self._clip_scores += float(self.clip(images, captions).sum())
        for name, other in others.items():
            if other is not None:
                error = np.square(np.asarray(x, np.float64) - other).mean() * len(x)
                self._squares[name] = self._squares.get(name, 0.0) + error
        return images

    def result(self):
        """The metrics as plain JSON; those that cannot be measured are None."""
        score, score_std = self._score.result() if self._score else (None, None)
        row = {
            "fid": frechet_distance(
                self._moments.mean,
                self._moments.covariance,
                self.reference.mean,
                self.reference.covariance,
            ),
            "is": score,
            "is_std": score_std,
            "kid": None,
            "kid_std": None,
            "precision": None,
            "recall": None,
            "features": self.extractor.name,
            "accuracy": self._correct / self.n if self.classifier else None,
            "clip_score": self._clip_scores / self.n if self.clip else None,
            **{name: None for name in ("rmse_to_teacher", "rmse_to_step_one")},
            **{f"rmse_to_{name}": (s / self.n) ** 0.5 for name, s in self._squares.items()},
            "n": self.n,
        }
        if self.reference.features is not None and self.extractor.of_pictures:
            features = np.concatenate(self._kept)
            row["kid"], row["kid_std"] = kernel_distance(features, self.reference.features)
            if min(len(features), len(self.reference.features)) > NEIGHBOURS:
                row["precision"], row["recall"] = precision_recall(
                    features, self.reference.features, reference_radii=self.reference.radii
                )
        return row
