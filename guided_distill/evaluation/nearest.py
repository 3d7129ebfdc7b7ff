"""Nearest training images of samples: whether a model repeats what it saw."""

import numpy as np

from guided_distill.evaluation.metrics import distances

SHOWN = 3


def nearest_images(samples, extractor, reference, source):
    """Samples beside the training images nearest to them.

    Args:
      samples: `{title: images [n, H, W, C] uint8}`.
      extractor: `FeatureExtractor`; nearness is distance of features.
      reference: `ReferenceStats` of the source's images.
      source: data source.

    Returns:
      Blocks for `save_strips`, one per title, with as many of the nearest as there are; empty
      where the reference's images are not known.
    """
    if reference.features is None or reference.provenance.get("data_sha256") != source.sha256:
        return {}
    stride = reference.provenance["stride"]
    blocks = {}
    for title, images in samples.items():
        features, _ = extractor.apply(images)
        order = np.argsort(distances(features.astype(np.float64), reference.features), axis=1)
        blocks[title] = {"sample": images}
        for k in range(min(SHOWN, order.shape[1])):
            blocks[title][f"nearest {k + 1}"], _ = source.read(order[:, k] * stride)
    return blocks
