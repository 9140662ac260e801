"""A Gaussian process: what few outcomes let expect of configs that were not measured.

Times of kernels are smooth in the logarithms of most knobs, which a process assumes and a forest
has to find out in steps: of 16 or 32 outcomes it expects more of what is fast (docs/strategies.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Logarithms of a column's length scale, of the deviation of the times, and of that of their noise;
# columns and times have unit variance. Centres and spreads of normal priors, which decide where few
# outcomes do not.
LENGTH, LENGTH_SPREAD = 1.5, 0.7
DEVIATION, DEVIATION_SPREAD = 0.0, 0.5
NOISE, NOISE_SPREAD = -3.0, 1.0
WITHIN = 4.0  # spreads of a prior, beyond which nothing is looked for
STEPS = 30  # of the optimiser,
MORE_STEPS = 12  # and where it starts at what fewer outcomes gave
JITTER = 1e-6
ROOT5 = math.sqrt(5.0)


@dataclass(frozen=True, eq=False)
class Expected:
    """What is expected of some configs.

    Attributes:
        mean, spread: of each config's goal.
        scales: the logarithms that were found, to start from with more outcomes.
    """

    mean: np.ndarray
    spread: np.ndarray
    scales: np.ndarray


def gaussian_process(
    known: np.ndarray, goal: np.ndarray, asked: np.ndarray, scales: np.ndarray | None = None
) -> Expected:
    """Expect goals by a process with a Matern 5/2 kernel and a length scale for every column, which
    are the most probable ones (Rasmussen & Williams, 2006, sections 4.2 and 5.4)."""
    from scipy.linalg import cho_solve
    from scipy.optimize import minimize

    both = np.concatenate([known, asked]).astype(np.float64)
    columns = (both - both.mean(0)) / np.maximum(both.std(0), 1e-9)
    rows, others = columns[: len(known)], columns[len(known) :]
    unit = goal.std() + 1e-9
    values = (goal - goal.mean()) / unit
    centres, widths = _prior(rows.shape[1])
    found = minimize(
        _loss,
        centres if scales is None else scales,
        (rows, values),
        jac=True,
        method="L-BFGS-B",
        bounds=np.stack([centres - WITHIN * widths, centres + WITHIN * widths], 1),
        options={"maxiter": STEPS if scales is None else MORE_STEPS},
    ).x
    length, deviation = np.exp(found[:-2]), math.exp(2 * found[-2])
    factor = _factor(deviation * _matern(rows / length, rows / length)[0], found)
    cross = deviation * _matern(others / length, rows / length)[0]
    mean = cross @ cho_solve(factor, values)
    variance = deviation - np.einsum("ij,ji->i", cross, cho_solve(factor, cross.T))
    spread = np.sqrt(np.maximum(variance, 1e-9))
    return Expected(mean * unit + goal.mean(), spread * unit, found)


def _loss(at: np.ndarray, rows: np.ndarray, values: np.ndarray) -> tuple[float, np.ndarray]:
    """The negative logarithm of how probable these scales are (but for a constant), and its
    gradient."""
    from scipy.linalg import cho_solve

    scaled, deviation = rows / np.exp(at[:-2]), math.exp(2 * at[-2])
    shape, slope = _matern(scaled, scaled)
    factor = _factor(deviation * shape, at)
    inverse = cho_solve(factor, np.eye(len(values)))
    weights = inverse @ values
    centres, widths = _prior(rows.shape[1])
    away = (at - centres) / widths
    total = values @ weights / 2 + np.log(np.diag(factor[0])).sum() + away @ away / 2

    by_kernel = (inverse - np.outer(weights, weights)) / 2
    by_gap = by_kernel * slope * deviation
    # Its sum over a column's squared gaps, for which no array of all gaps of all columns is made.
    by_length = 2 * (by_gap.sum(1) @ scaled**2 - ((by_gap @ scaled) * scaled).sum(0))
    by_deviation = 2 * deviation * (by_kernel * shape).sum()
    by_noise = 2 * math.exp(2 * at[-1]) * np.trace(by_kernel)
    return float(total), np.append(by_length, [by_deviation, by_noise]) + away / widths


def _factor(kernel: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, bool]:
    """The Cholesky factor of a kernel with noise."""
    from scipy.linalg import cho_factor

    return cho_factor(kernel + (math.exp(2 * at[-1]) + JITTER) * np.eye(len(kernel)), lower=True)


def _prior(columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres and spreads: of every column's length scale, of the deviation, of the noise."""
    centres = np.append(np.full(columns, LENGTH), [DEVIATION, NOISE])
    return centres, np.append(np.full(columns, LENGTH_SPREAD), [DEVIATION_SPREAD, NOISE_SPREAD])


def _matern(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The correlation of every row of `a` with every row of `b`, and what its logarithmic length
    scales move of it for each unit of a squared gap."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    gap = np.sqrt(np.maximum(squares, 1e-12))
    decay = np.exp(-ROOT5 * gap)
    linear = 1 + ROOT5 * gap
    return (linear + 5 / 3 * gap**2) * decay, 5 / 3 * linear * decay
