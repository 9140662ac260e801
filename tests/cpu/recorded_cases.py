"""Made-up recordings of made-up spaces."""

from __future__ import annotations

import math
import zlib

from gristmill.core.config import Config
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.space import Space, choice, derive, flag, pow2, require, when
from gristmill.core.target import named_target
from gristmill.tuning.recorded import Point, RecordedSource, Recording

HOPPER = named_target("sm_90")
PROBLEM = Problem("op", (("x", TensorSpec.contiguous((64, 64), "float16")), ("eps", 1e-6)))
SMALL = Space(
    pow2("TILE", 16, 128),
    choice("MODE", "a", "b", None, 1),
    flag("SPLIT"),
    when(lambda c, p, t: c["SPLIT"], choice("PARTS", 2, 3, 4)),
    when(lambda c, p, t: c["SPLIT"] and c["PARTS"] == 4, flag("ATOMIC")),
    derive("AREA", lambda c, p, t: c["TILE"] ** 2),
    require("too large", lambda c, p, t: c["TILE"] < 128 or not c["SPLIT"]),
)
WIDE = Space(
    pow2("M", 16, 256),
    pow2("N", 16, 256),
    pow2("K", 16, 128),
    choice("STAGES", 2, 3, 4, 5, 6),
    pow2("WARPS", 2, 16),
    choice("ORDER", "rows", "columns", "groups"),
)


def wide_us(config: Config) -> float:
    """A time whose knobs act on each other, with a fifth of the configs refused by chance."""
    m, n, k = (math.log2(config[name]) for name in "MNK")
    reuse = 2 ** -abs(m + n - 14.5) * 2 ** (-0.5 * abs(m - n))
    depth = math.exp(-0.25 * abs(config["STAGES"] * k - 24))
    held = math.exp(-0.5 * abs(m + n - 10 - math.log2(config["WARPS"])))
    order = {"rows": 0.8, "columns": 0.7, "groups": 1.0}[config["ORDER"]]
    return 100.0 / (0.2 + 0.8 * reuse**0.3 * depth**0.5 * held**0.3 * order)


def source(space: Space, name: str = "tiles") -> RecordedSource:
    return RecordedSource(
        name,
        "0123",
        tuple((knob.name, knob.values) for knob in space.knobs),
        tuple(rule.name for rule in space.derived),
        sum(1 for _ in space.valid(PROBLEM, HOPPER)),
    )


def recording(space: Space = SMALL, time_us=None, names=("tiles",)) -> Recording:
    """Every valid config of a space, some failed, for each of these implementations."""
    points = {}
    for name in names:
        for config in space.valid(PROBLEM, HOPPER):
            number = zlib.crc32(f"{name}{config.key}".encode())
            us = 10.0 + number % 90 if time_us is None else time_us(config)
            outcome = Outcome("ok", device_us=us, repeats=9, error=0.5, registers=64)
            if number % 5 == 0:
                outcome = Outcome("wrong" if number % 2 else "crash", "it did not", error=2.0)
            points[Candidate(name, config)] = Point(outcome)
    sources = tuple(source(space, name) for name in names)
    stamp = {"versions": {"torch": "2"}, "commit": "abc", "date": "2026-11-20"}
    return Recording(PROBLEM, HOPPER, stamp, 3, len(points), sources, None, points)
