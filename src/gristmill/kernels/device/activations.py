"""Activation functions on float32 values, and their slopes.

`ACTIVATION` is a name of `specs/_activations.py`. Nothing here calls libdevice: its `erf` is 34
instructions of a forward pass on Hopper and its `tanh` 29, of the 28 to 41 that the copy rate
leaves (docs/performance/activations.md); the forms below are 15 and 17, run wherever Triton does,
and keep the digits of a left tail that `1 + erf` and `1 + tanh` lose.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoids(z):
    """The sigmoids of `z` and of `-z` (which is one minus the first, without the cancellation); the
    exponential does not overflow."""
    return _sides(z, tl.exp(-tl.abs(z)))


@triton.jit
def _sides(z, small):
    """The sigmoids of `z` and of `-z`, from `exp(-|z|)`."""
    larger = 1.0 / (1.0 + small)
    smaller = small * larger
    return tl.where(z >= 0, larger, smaller), tl.where(z >= 0, smaller, larger)


@triton.jit
def normal_cdf(z):
    """The normal distribution's Phi: `log2(Phi(-|z|))` as a polynomial, one exponential, and one
    minus that on the right.

    A minimax fit on [0, 9], where it is the smaller tail within 2^-13.4 of itself, and Phi within
    1.3 * 2^-24 before the exponential's own rounding. Past 9 (a tail of 1e-19) the leading term
    takes it to zero: it needs no clamp, and is right at infinity.
    """
    a = tl.abs(z)
    p = -6.05490991e-09 * a + 2.48770903e-07
    p = p * a - 4.20833339e-06
    p = p * a + 3.64878142e-05
    p = p * a - 1.43515383e-04
    p = p * a - 2.70467281e-04
    p = p * a + 7.25237187e-03
    p = p * a - 5.26247248e-02
    p = p * a - 4.59169984e-01
    p = p * a - 1.15110874e00
    tail = tl.exp2(p * a - 1.0)
    return tl.where(z >= 0, 1.0 - tail, tail)


@triton.jit
def tanh_sides(z):
    """`(1 + tanh(u)) / 2` and `(1 - tanh(u)) / 2` for the `u` of gelu's approximation: the sigmoids
    of `2u`, which do not cancel. The factors are those of `2u`, times log2(e)."""
    w = z * (2.30220819 + 0.102943240 * (z * z))
    return _sides(z, tl.exp2(-tl.abs(w)))


@triton.jit
def sides(z, ACTIVATION: tl.constexpr):
    """What an activation and its slope have in common: its share of `z`, and one minus that where a
    slope needs it; of relu2, the part above zero."""
    if ACTIVATION == "silu":
        return sigmoids(z)
    elif ACTIVATION == "gelu":
        cdf = normal_cdf(z)
        return cdf, cdf
    elif ACTIVATION == "gelu_tanh":
        return tanh_sides(z)
    else:
        tl.static_assert(ACTIVATION == "relu2")
        positive = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
        return positive, positive


@triton.jit
def activated(z, side, ACTIVATION: tl.constexpr):
    """The activation of `z`, from its `sides`."""
    return side * side if ACTIVATION == "relu2" else z * side


@triton.jit
def slope(z, side, rest, ACTIVATION: tl.constexpr):
    """The activation's derivative at `z`, from its `sides`."""
    if ACTIVATION == "silu":
        return side * (1 + z * rest)
    elif ACTIVATION == "gelu":
        return side + z * (0.398942280 * tl.exp2(-0.721347520 * (z * z)))
    elif ACTIVATION == "gelu_tanh":
        # Twice the derivative of `u`; past 1e19, where a square is infinite, the sides' product is
        # zero and the two together would be NaN.
        inner = 1.59576912 + 0.214064499 * tl.minimum(z * z, 1e30)
        return side + z * (side * rest) * inner
    else:
        return 2 * side
