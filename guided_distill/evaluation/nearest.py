"""Nearest training pictures of samples: whether a model repeats what it saw."""

import numpy as np

from guided_distill.evaluation.metrics import distances
from guided_distill.evaluation.report import STRIP_LENGTH, main_model

SHOWN = 3


def nearest_pictures(pictures, extractor, reference, source):
    """Samples of the student with the fewest steps beside the training pictures nearest to them.

    Args:
      pictures: `{(model, N, w): images}` of `Evaluation.run`.
      extractor: `FeatureExtractor`; nearness is distance of features.
      reference: `ReferenceStats` of the source's pictures.
      source: data source.

    Returns:
      Blocks for `save_strips`, one per w; empty where the reference's pictures are not known.
    """
    if reference.features is None or reference.provenance.get("data_sha256") != source.sha256:
        return {}
    stride = reference.provenance["stride"]
    model = main_model({name for name, _, _ in pictures})
    fewest = min(steps for name, steps, _ in pictures if name == model)
    blocks = {}
    for name, steps, w in pictures:
        if (name, steps) != (model, fewest):
            continue
        samples = pictures[name, steps, w][:STRIP_LENGTH]
        features, _ = extractor.apply(samples)
        order = np.argsort(distances(features.astype(np.float64), reference.features), axis=1)
        block = {"sample": samples}
        for k in range(SHOWN):
            block[f"nearest {k + 1}"], _ = source.read(order[:, k] * stride)
        blocks[f"N = {steps}, w = {w:g}"] = block
    return blocks
