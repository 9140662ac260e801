"""Numbers that artifacts in C pass: each float rounded once, to nearest with ties to even, in the
bytes of its type. In a process over the fake driver."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import pytest

import aot_c_cases as cases
from aot_c_process import Library, Number
from gristmill.native.runtime import ELEMENTS

pytestmark = pytest.mark.skipif(not cases.HAS["gcc"], reason="needs gcc")

SCRATCH = [b"\0" * 8] * 2


def floats(path, values):
    lib = Library(path, "many")
    found = []
    for value in values:
        number = Number(value, ELEMENTS["fp16"])
        launch = lib.ok("scalars", value, value, value, value, number, 5, -7, 2**32 - 1)
        found.append(launch.parameters[:5])
        flag, i8, u32 = b"\1", struct.pack("<b", -7), struct.pack("<I", 2**32 - 1)
        assert launch.parameters[5:] == [flag, i8, u32, *SCRATCH]
    wide = Number(0.1, ELEMENTS["fp64"])
    launch = lib.ok("scalars", 0.0, 0.0, 0.0, 0.0, wide, 0, 0, 0)
    assert launch.parameters[4:6] == [struct.pack("<d", 0.1), b"\0"]
    return found


def halfway(exponents, mantissa_bits):
    """Ties, their neighbours and powers of two, at the given exponents."""
    for exponent in exponents:
        for mantissa in (0, 1, 2, 3, (1 << mantissa_bits) - 2, (1 << mantissa_bits) - 1):
            tie = math.ldexp(1 + (mantissa + 0.5) / (1 << mantissa_bits), exponent)
            yield from (tie, -tie, math.nextafter(tie, 0), math.nextafter(tie, math.inf))
            yield math.ldexp(1 + mantissa / (1 << mantissa_bits), exponent)


def test_floats_are_rounded_once_to_nearest_even(child, library):
    generator = np.random.default_rng(7)
    values = [
        0.0,
        -0.0,
        math.inf,
        -math.inf,
        65504.0,
        65519.99,
        65520.0,
        1e300,
        5e-324,
        3.4028236e38,
    ]
    values += [math.ldexp(k + 0.5, -24) for k in range(5)]  # ties of fp16's subnormals
    values += [math.ldexp(k + 0.5, -133) for k in range(5)]  # and of bf16's
    values += [math.ldexp(1, -25), math.nextafter(math.ldexp(1, -25), 1), math.ldexp(1, -134)]
    values += [*halfway((-14, -15, 0, 3, 15), 10), *halfway((-126, -127, 0, 3, 127), 7)]
    bits = generator.integers(0, 2**64, 200, dtype=np.uint64).view(np.float64)
    values += [float(v) for v in bits if not math.isnan(v)]
    values += [
        float(v) for v in generator.standard_normal(200) * 10.0 ** generator.integers(-9, 6, 200)
    ]
    with np.errstate(over="ignore", under="ignore"):
        halves = [np.float64(v).astype(np.float16).tobytes() for v in values]
        singles = [np.float64(v).astype(np.float32).tobytes() for v in values]
    for value, half, single, passed in zip(
        values, halves, singles, child.run(floats, library, values), strict=True
    ):
        bf16 = nearest_bf16(value)
        assert passed == [half, bf16, single, struct.pack("<d", value), half], value.hex()


def nearest_bf16(value):
    """By the definition: of the neighbours the nearest one, the even one if it is a tie.

    torch's own conversion rounds twice, through float32.
    """
    with np.errstate(over="ignore", under="ignore"):
        code = int(np.float64(value).astype(np.float32).view(np.uint32)) >> 16
    sign, magnitude = code & 0x8000, code & 0x7FFF
    exact = abs(value)
    if math.isinf(exact):
        return struct.pack("<H", sign | 0x7F80)

    def worth(code):  # what lies past the largest number stands for infinity
        exponent, mantissa = code >> 7, code & 127
        return (
            math.ldexp(mantissa, -133)
            if not exponent
            else math.ldexp(128 + mantissa, exponent - 134)
        )

    near = [c for c in (magnitude - 1, magnitude, magnitude + 1) if 0 <= c <= 0x7F80]
    best = min(near, key=lambda c: (abs(Fraction(worth(c)) - Fraction(exact)), c & 1))
    return struct.pack("<H", sign | best)


def test_nan_stays_nan(child, library):
    (passed,) = child.run(floats, library, [math.nan])
    half, bf16, single, double, number = passed
    assert math.isnan(struct.unpack("<e", half)[0])
    assert half == number
    code = struct.unpack("<H", bf16)[0]
    assert code & 0x7F80 == 0x7F80
    assert code & 0x7F
    assert math.isnan(struct.unpack("<f", single)[0])
    assert math.isnan(struct.unpack("<d", double)[0])
