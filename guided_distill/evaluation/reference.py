"""Statistics of a data set that samples are measured against: computed once, kept, checked."""

import dataclasses
import functools
import hashlib
import json
import pathlib

import numpy as np

from guided_distill.data.decoded import DecodedSource
from guided_distill.errors import UserError
from guided_distill.evaluation.metrics import Moments, neighbour_radii
from guided_distill.system.files import DIGEST, json_sha256, replacing
from guided_distill.system.processes import first_only
from guided_distill.system.progress import Progress

IMAGES_AT_ONCE = 1_000
SLACK = 1e-5  # of the largest entry of a covariance, for what other tools rounded
FEATURES_KEPT = 10_000  # for what needs features themselves: kernel distance, precision, recall


@dataclasses.dataclass(frozen=True)
class ReferenceStats:
    """Statistics of one data set's features.

    Attributes:
      mean: `[D]` float64.
      covariance: `[D, D]` float64.
      features: `[m, D]` float32, an even share of all of them; None in files of other tools.
      provenance: `data`, `data_sha256`, `n`, `features` (the extractor), `resize`, `stride` (of
        the pictures whose features are kept), `decoder` where the pictures are decoded latents; of
        other tools' files only what is known.
    """

    mean: np.ndarray
    covariance: np.ndarray
    features: np.ndarray | None
    provenance: dict

    @functools.cached_property
    def sha256(self):
        """Digest of the statistics themselves, wherever they come from."""
        digest = hashlib.sha256()
        for array in (self.mean, self.covariance, self.features):
            if array is not None:
                digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()

    @property
    def digest(self):
        """Digest of the statistics and of what is known of them."""
        return json_sha256(self.provenance | {"sha256": self.sha256})

    @functools.cached_property
    def radii(self):
        """Radii of the features' balls, for precision."""
        return neighbour_radii(self.features)


def compute_reference(source, extractor):
    """`ReferenceStats` of a data source's x, without augmentation, in constant memory."""
    moments, kept = Moments(), []
    stride = -(-len(source) // FEATURES_KEPT)
    progress = Progress("reference statistics", total=len(source), unit="example")
    for start in range(0, len(source), IMAGES_AT_ONCE):
        indices = np.arange(start, min(start + IMAGES_AT_ONCE, len(source)))
        images, _ = source.read(indices)
        features, _ = extractor.apply(images)
        moments.add(features)
        kept.append(np.asarray(features[indices % stride == 0], np.float32))
        progress(int(indices[-1]) + 1)
    progress.close()
    decoded = {"decoder": source.decoder.name} if isinstance(source, DecodedSource) else {}
    return ReferenceStats(
        moments.mean,
        moments.covariance,
        np.concatenate(kept),
        {
            "data": source.name,
            "data_sha256": source.sha256,
            "n": len(source),
            "features": extractor.name,
            "resize": extractor.resize,
            "stride": stride,
            **decoded,
        },
    )


@first_only
def save_reference(path, stats):
    """Writes statistics as `.npz`, with the field's names `mu` and `sigma`."""
    with replacing(path, ".npz") as partial:
        np.savez(
            partial,
            mu=stats.mean,
            sigma=stats.covariance,
            features=stats.features,
            provenance=json.dumps(stats.provenance | {DIGEST: stats.digest}),
        )


def load_kept_reference(path, source, extractor):
    """Statistics of `save_reference`, just as they were saved.

    Raises:
      UserError: as `load_reference`, and where they do not match their digest.
    """
    stats, digest = _read_reference(path, source, extractor)
    if digest != stats.digest:
        raise UserError(f"{path} is damaged")
    return stats


def load_reference(path, source, extractor):
    """Statistics from a file, ours or any with `mu` and `sigma`, checked against what is used.

    Raises:
      UserError: where the file is something else, or of another data set, size or extractor.
    """
    stats, _ = _read_reference(path, source, extractor)
    provenance = {"file": pathlib.Path(path).name} | stats.provenance
    return dataclasses.replace(stats, provenance=provenance)


def _read_reference(path, source, extractor):
    """(`ReferenceStats`, the digest they were written with or None) of a file."""
    path = pathlib.Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (np.asarray(file[name], np.float64) for name in ("mu", "sigma"))
            features = file.get("features", None)
            provenance = json.loads(str(file["provenance"])) if "provenance" in file else {}
            digest = provenance.pop(DIGEST, None)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the job reference_stats makes it") from None
    except Exception as error:  # A damaged archive fails in many ways.
        raise UserError(f"{path} is no reference statistics with mu and sigma") from error
    dimension = extractor.num_features
    if mean.shape != (dimension,) or covariance.shape != (dimension, dimension):
        raise UserError(
            f"{path} has statistics of shape {mean.shape} and {covariance.shape}, but "
            f"{extractor.name} gives {dimension} features"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path} holds values that are not finite")
    largest = np.abs(covariance).max()
    if not np.allclose(covariance, covariance.T, rtol=0.0, atol=SLACK * largest):
        raise UserError(f"{path}: sigma is not symmetric, so it is no covariance")
    if np.linalg.eigvalsh(covariance).min() < -SLACK * largest:
        raise UserError(f"{path}: sigma has a negative eigenvalue, so it is no covariance")
    here = {
        "data_sha256": source.sha256,
        "features": extractor.name,
        "resize": extractor.resize,
    }
    for key, value in here.items():
        if key in provenance and provenance[key] != value:
            raise UserError(
                f"{path} was made with another {key}: {provenance[key]} there, {value} here"
            )
    return ReferenceStats(mean, covariance, features, provenance), digest
