"""Search strategies: what each promises of its proposals, and that those that learn do learn.

The landscape is made up (waves, intensity, pipelining, and a little of chance for each config): it
has the interactions of a product's, not its figures.
"""

from __future__ import annotations

import math
import sys
import zlib

import numpy as np
import pytest

from gristmill.core.plan import Outcome
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.registry import implementation
from gristmill.core.space import Space, choice, derive, flag, pow2, require, when
from gristmill.core.target import named_target
from gristmill.errors import MissingExtraError
from gristmill.tuning.strategies import STRATEGIES, make_strategy
from gristmill.tuning.strategies._pool import Pool

HOPPER = named_target("sm_90")
PROBLEM = Problem("op", (("x", TensorSpec.contiguous((64, 64), "float16")),))
SMALL = Space(
    pow2("BLOCK", 16, 128),
    choice("MODE", "a", "b", "c"),
    flag("SPLIT"),
    when(lambda c, p, t: c["SPLIT"], choice("PARTS", 2, 3, 4)),
    derive("AREA", lambda c, p, t: c["BLOCK"] ** 2),
    require("too large", lambda c, p, t: c["BLOCK"] < 128 or not c["SPLIT"]),
)
HUGE = Space(*(pow2(f"KNOB_{i}", 1, 64) for i in range(20)))  # 7**20 points
LEARNED = ("bayesian", "evolutionary", "portfolio")


def outcome(config):
    """A time, or a failure for some."""
    number = zlib.crc32(config.key.encode())
    if number % 5 == 0:
        return Outcome("compile_error", "too large")
    return Outcome("slow" if number % 7 == 0 else "ok", device_us=1.0 + number % 1000)


def proposals(name, space, seed, limit, batch=8):
    strategy = make_strategy(name, space, PROBLEM, HOPPER, seed)
    found = []
    while len(found) < limit and (asked := strategy.ask(batch)):
        assert len(asked) <= batch
        found += asked
        for config in asked:
            strategy.tell(config, outcome(config))
    return found


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_valid_config_is_proposed_once(name):
    valid = set(SMALL.valid(PROBLEM, HOPPER))
    found = proposals(name, SMALL, seed=1, limit=1000)
    assert len(found) == len(set(found))
    assert set(found) == valid


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_same_seed_and_answers_give_the_same_proposals(name):
    first, second = (proposals(name, SMALL, seed=3, limit=30) for _ in range(2))
    assert first == second
    if name != "exhaustive":
        assert proposals(name, SMALL, seed=4, limit=30) != first


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_was_told_is_not_asked_for(name):
    strategy = make_strategy(name, SMALL, PROBLEM, HOPPER, 0)
    told = list(SMALL.valid(PROBLEM, HOPPER))[:20]
    for config in told:
        strategy.tell(config, outcome(config))
    asked = [c for _ in range(20) for c in strategy.ask(4)]
    assert not set(asked) & set(told)
    assert set(asked) | set(told) == set(SMALL.valid(PROBLEM, HOPPER))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_space_that_cannot_be_enumerated_is_sampled(name):
    found = proposals(name, HUGE, seed=0, limit=40)
    assert len(set(found)) >= 40


@pytest.mark.parametrize("name", LEARNED)
def test_only_failures_so_far_are_no_end(name):
    strategy = make_strategy(name, SMALL, PROBLEM, HOPPER, 0)
    for _ in range(4):
        for config in strategy.ask(8):
            strategy.tell(config, Outcome("crash", "it died"))
    assert strategy.ask(1) or strategy.seen == set(SMALL.valid(PROBLEM, HOPPER))


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(MissingExtraError, match=r"gristmill\[tune\]"):
        make_strategy("bayesian", SMALL, PROBLEM, HOPPER, 0)
    assert len(proposals("portfolio", SMALL, seed=0, limit=30)) >= 30


def test_neighbours_differ_in_one_knob_and_are_valid():
    pool = Pool(SMALL, PROBLEM, HOPPER, 0)
    config = SMALL.config({"BLOCK": 64, "MODE": "a", "SPLIT": True, "PARTS": 3}, PROBLEM, HOPPER)
    found = list(pool.neighbours(config))
    for other in found:
        names = {*other.knobs, *config.knobs}
        changed = {n for n in names if other.knobs.get(n) != config.knobs.get(n)}
        assert len(changed) == 1 or changed == {"SPLIT", "PARTS"}
        assert SMALL.config(other.knobs, PROBLEM, HOPPER) == other
    assert len(found) == 2 + 2 + 1 + 2  # BLOCK (128 is too large), MODE, SPLIT off, PARTS
    assert np.isfinite(pool.features(found)).all()


TMA = implementation("matmul", "persistent_tma")
SQUARE = TMA.op.workload("square-4096").problem


def made_up_us(config):
    """A time with a product's interactions."""
    (m, k), (_, n) = SQUARE["a"].shape, SQUARE["b"].shape
    block_m, block_n, block_k = (config[f"BLOCK_{axis}"] for axis in "MNK")
    tiles = math.ceil(m / block_m) * math.ceil(n / block_n)
    programs = HOPPER.num_sms * config["PROGRAMS_PER_SM"]
    share = 1 - math.exp(-block_m * block_n / (block_m + block_n) / 28)
    share *= 1 - 0.5 * math.exp(-config["num_stages"] * block_k * (block_m + block_n) / 30e3)
    held = block_m * block_n / (config["num_warps"] * 32)
    share *= (0.8 if held < 16 else 1.0) / (1 + max(0.0, held - 120) / 60)
    share *= {1: 0.86, 4: 0.95, 8: 1.0, 16: 0.99}[config["GROUP_M"]]
    share *= 1.0 if config["FLATTEN"] == (tiles > programs) else 0.96
    share *= 1 - 0.06 * (zlib.crc32(config.key.encode()) / 2**32) ** 2
    share *= tiles / programs / math.ceil(tiles / programs)
    return 2 * m * n * k / 8e14 * 1e6 / share


@pytest.fixture(scope="module")
def fastest_us():
    return min(map(made_up_us, TMA.space.valid(SQUARE, HOPPER)))


def share_of_the_optimum(name, seed, evaluations, fastest_us):
    strategy = make_strategy(name, TMA.space, SQUARE, HOPPER, seed)
    best = math.inf
    while len(strategy.seen) < evaluations:
        for config in strategy.ask(8):
            best = min(best, made_up_us(config))
            strategy.tell(config, Outcome("ok", device_us=made_up_us(config)))
    return fastest_us / best


@pytest.mark.parametrize("name", LEARNED)
def test_those_that_learn_are_nearer_to_the_optimum_than_chance(name, fastest_us):
    seeds = range(3)
    learned = np.mean([share_of_the_optimum(name, s, 104, fastest_us) for s in seeds])
    chance = np.mean([share_of_the_optimum("random", s, 104, fastest_us) for s in seeds])
    assert learned > chance + 0.03
    assert learned > 0.96
