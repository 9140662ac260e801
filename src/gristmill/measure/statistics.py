"""Comparison of samples: medians, bootstrap intervals of their ratio (paired, or of two runs), and
what counts as a tie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1_000
# two times this close are the same: the resolution of CUDA events and of what a caller notices
SAME_US = 0.3
# what the interval of a ratio of times (theirs over ours) has to reach for "never slower"
NEVER_SLOWER = 0.98


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median of `a` over median of `b` (or a median alone), with its 95% interval `low`..`high`."""

    value: float
    low: float
    high: float


def median(samples: Sequence[float]) -> float:
    return float(np.median(np.asarray(samples, dtype=np.float64)))


def median_interval(samples: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95% bootstrap interval of the median."""
    values = np.asarray(samples, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[picks], axis=1), [2.5, 97.5])
    return float(low), float(high)


def ratio_of_medians(a: Ratio, b: Ratio) -> Ratio:
    """`a` over `b`, medians of independent samples each with its own interval, as of two runs.

    The interval is by the method of variance estimates recovery on the logarithms (Zou and Donner,
    2008): its limits are recovered from those of the two, and may be asymmetric.
    """
    value = a.value / b.value
    below = math.hypot(math.log(a.value / a.low), math.log(b.high / b.value))
    above = math.hypot(math.log(a.high / a.value), math.log(b.value / b.low))
    return Ratio(value, value * math.exp(-below), value * math.exp(above))


def paired_ratio(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Ratio:
    """The ratio of medians of paired samples; pairs are resampled together, so a drift common to
    both cancels."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    count = min(len(x), len(y))
    x, y = x[:count], y[:count]
    picks = np.random.default_rng(seed).integers(0, count, size=(RESAMPLES, count))
    ratios = np.median(x[picks], axis=1) / np.median(y[picks], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Ratio(float(np.median(x) / np.median(y)), float(low), float(high))


def tied(a: Sequence[float], b: Sequence[float], slack: float = 0.0) -> bool:
    """Whether `a` and `b` cannot be told apart: the interval of their ratio comes within the share
    `slack` of 1, or they are within 0.3 us."""
    if abs(median(a) - median(b)) <= SAME_US:
        return True
    ratio = paired_ratio(a, b)
    return ratio.low <= 1.0 + slack and ratio.high >= 1.0 / (1.0 + slack)


def never_slower(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether `ours` is "never slower" than `theirs`: the 95% interval of theirs / ours reaches
    0.98, or within 0.3 us."""
    if median(ours) - median(theirs) <= SAME_US:
        return True
    return paired_ratio(theirs, ours).high >= NEVER_SLOWER
