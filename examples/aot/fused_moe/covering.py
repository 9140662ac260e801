"""A small set of cases with every pair of values of any two factors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

FACTORS = {
    "M": (1, 7, 83, 512, 2048),
    "N": (128, 4608, 13824),
    "K": (256, 7168, 13824),
    "E": (8, 24, 128, 256),
    "top_k": (1, 2, 6),
    "out": ("bfloat16", "float16", "float32"),
    "weighted": (False, True),
}
MAX_WEIGHT_BYTES = 8 << 30  # of FP8: what leaves room on any device


def fits(case: Mapping[str, Any]) -> bool:
    """Whether the weights of a case are not too many."""
    return case["E"] * case["N"] * case["K"] <= MAX_WEIGHT_BYTES


def pairwise(
    factors: Mapping[str, Sequence[Any]] = FACTORS,
    allowed: Callable[[Mapping[str, Any]], bool] = fits,
) -> list[dict[str, Any]]:
    """Cases that have every pair of values of two factors which any allowed case has: each time the
    case with most of the pairs that are left, the first of those."""
    names = list(factors)
    every = [
        dict(zip(names, values, strict=True)) for values in itertools.product(*factors.values())
    ]
    pairs = [(case, _pairs(case)) for case in every if allowed(case)]
    left = set().union(*(found for _, found in pairs))
    chosen = []
    while left:
        case, found = max(pairs, key=lambda one: len(one[1] & left))
        chosen.append(case)
        left -= found
    return chosen


def _pairs(case: Mapping[str, Any]) -> frozenset[tuple[tuple[str, Any], ...]]:
    return frozenset(itertools.combinations(case.items(), 2))
