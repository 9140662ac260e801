"""Mean and variance of rows without cancellation: a row's mean comes off before squares are summed.

A float32 mean of values around 10,000 is off by 0.0005, and so would be all that is left of a row:
its own mean, the *slip*, comes off as well (the corrected two-pass of Chan, Golub and LeVeque,
1983). The slip is summed with the squares, in one exchange between the warps.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pair_sums(first, second):
    """The sums of two tiles' rows by one exchange between the warps."""
    return tl.split(tl.sum(tl.join(first, second), axis=1))


@triton.jit
def slip_and_rstd(gaps, squares, N, eps):
    """Of rows, from the sums of what is left of them and of its squares: its mean, and the
    reciprocal of the standard deviation."""
    slip = gaps / N
    return slip, tl.rsqrt(tl.maximum(squares / N - slip * slip, 0.0) + eps)


@triton.jit
def row_moments(x, mask, N, eps):
    """Mean, slip and reciprocal standard deviation of a tile's rows."""
    mean = tl.sum(x, axis=1) / N
    left = tl.where(mask, x - mean[:, None], 0.0)
    gaps, squares = pair_sums(left, left * left)
    slip, rstd = slip_and_rstd(gaps, squares, N, eps)
    return mean, slip, rstd


@triton.jit
def welford(x, mask, seen, mean, squares):
    """A lane's mean and squared distances from it, with one more value of it: its `seen`-th
    (Welford, 1962)."""
    step = tl.where(mask, x - mean, 0.0)
    mean += step / seen
    return mean, squares + step * (x - mean)


@triton.jit
def lane_moments(lane_mean, lane_squares, count, N, eps):
    """`row_moments` from those of lanes that have seen `count` values each (Chan, Golub and
    LeVeque, 1979)."""
    mean = tl.sum(lane_mean * count, axis=1) / N
    left = lane_mean - mean[:, None]
    gaps, squares = pair_sums(left * count, lane_squares + left * left * count)
    slip, rstd = slip_and_rstd(gaps, squares, N, eps)
    return mean, slip, rstd
