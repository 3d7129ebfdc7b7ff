"""Measures of samples, in float64."""

import numpy as np


def moments(features):
    """Mean `[D]` and covariance `[D, D]` of features `[n, D]`."""
    features = np.asarray(features, np.float64)
    return features.mean(axis=0), np.cov(features, rowvar=False)


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


def inception_score(probabilities):
    """exp E[KL(p(y|x) ‖ p(y))] over all samples at once (Salimans et al. 2016); `[n, classes]`."""
    p = np.asarray(probabilities, np.float64)
    tiny = np.finfo(np.float64).tiny
    divergence = np.sum(p * (np.log(p + tiny) - np.log(p.mean(axis=0) + tiny)), axis=1)
    return float(np.exp(divergence.mean()))


def rmse(a, b):
    """Root mean square difference over samples and pixels of two `[n, H, W, C]`."""
    return float(np.sqrt(np.mean(np.square(np.asarray(a, np.float64) - b))))
