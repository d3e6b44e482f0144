"""Joint decoding: who is in a (noisy) sum, by one who knows what everybody would have sent.

With V the candidates' contributions as rows, s the unknown 0/1 memberships with mean p and variance w, and noise of std
sigma on every coordinate,

    R = V' s + noise,    E[s | R] ~ p + (V V' + (sigma^2 / w) I)^-1 V (R - p V' 1)

is the best linear estimate: it takes the other candidates out of each one's inner product instead of treating them as
noise. Conjugate gradients solve it without ever forming V V'.

Source: Kay, Fundamentals of Statistical Signal Processing, 1993, theorem 11.1 (linear Gaussian model).
"""

from __future__ import annotations

from typing import Any

import numpy as np

MAX_STEPS = 300
_RIDGE = 1e-9


def decode(candidates: Any, residual: np.ndarray, noise_std: float, variance: float) -> np.ndarray:
    """Estimate memberships, less their mean.

    Args:
        candidates: (n, size) CSR matrix V.
        residual: (size,) R less everything known, p V' 1 included.
        noise_std: on every coordinate of R; 0 for an exact sum.
        variance: of a membership, p (1 - p).

    Returns:
        (n,) float64; 0 says nothing either way.
    """
    from scipy.sparse.linalg import LinearOperator, cg

    norms = np.asarray(candidates.multiply(candidates).sum(axis=1)).reshape(-1)
    ridge = max(noise_std**2 / variance, _RIDGE * float(norms.mean()) if len(norms) else 1.0, 1e-300)
    scale = 1 / np.sqrt(norms + ridge)  # users of different norms are brought to one scale first
    columns = candidates.T.tocsr()

    def apply(vector: np.ndarray) -> np.ndarray:
        inner = scale * np.asarray(vector).reshape(-1)
        return np.asarray(scale * (candidates @ (columns @ inner) + ridge * inner))

    operator = LinearOperator((len(norms), len(norms)), matvec=apply, dtype=np.float64)
    solution, _ = cg(operator, scale * (candidates @ residual), rtol=1e-8, maxiter=MAX_STEPS)
    return np.asarray(scale * solution)


def inner_products(candidates: Any, residual: np.ndarray) -> np.ndarray:
    """Return <v, R> / |v|^2 of each candidate: the test that takes everybody else for noise; 0 where v = 0."""
    norms = np.asarray(candidates.multiply(candidates).sum(axis=1)).reshape(-1)
    return np.asarray((candidates @ residual) / np.where(norms > 0, norms, np.inf))
