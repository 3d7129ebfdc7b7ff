"""Measures of samples, in float64."""

import numpy as np

from guided_distill.errors import UserError

ROWS_AT_ONCE = 1_000
NEIGHBOURS = 3  # of precision and recall


class Moments:
    """Mean and covariance of features that come in batches, in float64 and constant memory.

    Attributes:
      n: features seen.
    """

    def __init__(self):
        self.n, self._mean, self._scatter = 0, 0.0, 0.0

    def add(self, features):
        """Adds a batch `[B, D]` (Chan et al. 1983, so that large means cost no digits)."""
        features = np.asarray(features, np.float64)
        if not np.isfinite(features).all():
            raise UserError("a sample has features that are not finite")
        n, mean = len(features), features.mean(axis=0)
        centered = features - mean
        shift = mean - self._mean
        total = self.n + n
        between = np.outer(shift, shift) * (self.n * n / total)
        self._scatter = self._scatter + centered.T @ centered + between
        self._mean = self._mean + shift * (n / total)
        self.n = total
        return self

    @property
    def mean(self):
        """`[D]`."""
        return self._mean

    @property
    def covariance(self):
        """`[D, D]`, unbiased."""
        return self._scatter / (self.n - 1)


def moments(features):
    """Mean `[D]` and covariance `[D, D]` of features `[n, D]`."""
    streamed = Moments().add(features)
    return streamed.mean, streamed.covariance


def frechet_distance(mean_a, cov_a, mean_b, cov_b):
    """Fréchet distance between two Gaussians (Heusel et al. 2017).

    |μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a^½ Σ_b Σ_a^½)^½); the symmetric form needs only
    eigenvalues of positive semi-definite matrices, so singular covariances do no harm.

    Args:
      mean_a: `[D]`.
      cov_a: `[D, D]`.
      mean_b: `[D]`.
      cov_b: `[D, D]`.

    Returns:
      A float, at least 0.
    """
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.linalg.eigvalsh(root_a @ cov_b @ root_a)
    trace_root = np.sqrt(np.maximum(cross, 0.0)).sum()
    distance = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b)
    return max(0.0, float(distance - 2.0 * trace_root))


class InceptionScore:
    """exp E[KL(p(y|x) ‖ p(y))] over consecutive splits, in batches (Salimans et al. 2016).

    Args:
      n: samples to come.
      num_splits: parts, each with a p(y) of its own.
    """

    def __init__(self, n, num_splits=10):
        self._bounds = [k * n // num_splits for k in range(1, num_splits + 1)]
        self._parts, self._seen = [[0, 0.0, 0.0] for _ in self._bounds], 0

    def add(self, log_probabilities):
        """Adds a batch `[B, classes]`, in the order of the samples."""
        log_p = np.asarray(log_probabilities, np.float64)
        position = self._seen + np.arange(len(log_p))
        split = np.searchsorted(self._bounds, position, side="right")
        for k in np.unique(split):
            part = log_p[split == k]
            entry = self._parts[k]
            entry[0] += len(part)
            entry[1] += np.sum(np.exp(part) * part)
            entry[2] = entry[2] + np.exp(part).sum(axis=0)
        self._seen += len(log_p)

    def result(self):
        """(mean, standard deviation) over the splits that hold samples."""
        scores = []
        for count, negative_entropy, total in self._parts:
            if count:
                mean = total / count
                divergence = negative_entropy / count - np.sum(mean * _log(mean))
                scores.append(np.exp(divergence))
        return float(np.mean(scores)), float(np.std(scores))


def _log(p):
    """log p, finite at 0, where p log p is 0."""
    return np.log(np.maximum(p, np.finfo(np.float64).tiny))


def inception_score(log_probabilities, num_splits=10):
    """(mean, standard deviation) of the score of `[n, classes]` at once: see `InceptionScore`."""
    score = InceptionScore(len(log_probabilities), num_splits)
    score.add(log_probabilities)
    return score.result()


def kernel_distance(features, reference, *, num_subsets=20, subset_size=1000, seed=0):
    """Kernel inception distance: unbiased squared MMD, kernel (xᵀy/D + 1)³ (Binkowski et al. 2018).

    Args:
      features: `[n, D]`.
      reference: `[m, D]`.
      num_subsets: how many pairs of random subsets are averaged.
      subset_size: features in each; no more than there are.
      seed: of the subsets.

    Returns:
      (mean, standard deviation) over the subsets.
    """
    features, reference = (np.asarray(a, np.float64) for a in (features, reference))
    size = min(subset_size, len(features), len(reference))
    rng = np.random.Generator(np.random.Philox(seed))
    distances = []
    for _ in range(num_subsets):
        x, y = (a[rng.choice(len(a), size, replace=False)] for a in (features, reference))
        distances.append(squared_mmd(x, y))
    return float(np.mean(distances)), float(np.std(distances))


def squared_mmd(x, y):
    """Unbiased squared maximum mean discrepancy of `[n, D]` and `[n, D]`, cubic kernel."""
    n, dimension = x.shape
    kernel = lambda a, b: (a @ b.T / dimension + 1.0) ** 3  # noqa: E731
    within = sum(k.sum() - np.trace(k) for k in (kernel(x, x), kernel(y, y)))
    return within / (n * (n - 1)) - 2.0 * kernel(x, y).mean()


def precision_recall(features, reference, *, reference_radii=None):
    """Improved precision and recall (Kynkäänniemi et al. 2019).

    Precision: the share of samples inside some reference's ball, whose radius is the distance to
    its third neighbour. Recall: the same with the roles exchanged.

    Args:
      features: `[n, D]` of samples.
      reference: `[m, D]`.
      reference_radii: `neighbour_radii(reference)`, where it is known already.

    Returns:
      (precision, recall).
    """
    features, reference = (np.asarray(a, np.float64) for a in (features, reference))
    if reference_radii is None:
        reference_radii = neighbour_radii(reference)
    return (
        coverage(features, reference, reference_radii),
        coverage(reference, features, neighbour_radii(features)),
    )


def neighbour_radii(points):
    """Distance of each of `[n, D]` to its third neighbour, `[n]`."""
    points = np.asarray(points, np.float64)
    return np.concatenate(
        [
            np.partition(distances(part, points), NEIGHBOURS, axis=1)[:, NEIGHBOURS]
            for part in _blocks(points)
        ]
    )


def coverage(points, centres, radii):
    """Share of points `[n, D]` that lie in the ball of some centre `[m, D]`, radii `[m]`."""
    inside = [(distances(part, centres) <= radii).any(axis=1) for part in _blocks(points)]
    return float(np.mean(np.concatenate(inside)))


def _blocks(points):
    """Parts whose distance matrices fit in memory."""
    return np.array_split(points, -(-len(points) // ROWS_AT_ONCE))


def distances(a, b):
    """Euclidean distances `[n, m]` of `[n, D]` and `[m, D]`."""
    squared = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1)[None] - 2.0 * a @ b.T
    return np.sqrt(np.maximum(squared, 0.0))


def rmse(a, b):
    """Root mean square difference over samples and pixels of two `[n, H, W, C]`."""
    return float(np.sqrt(np.mean(np.square(np.asarray(a, np.float64) - b))))
