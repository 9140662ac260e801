"""Search strategies: what each promises of its proposals. How well they search:
`test_landscapes.py`."""

from __future__ import annotations

import resource
import sys
import time
import zlib

import numpy as np
import pytest

from gristmill.core.plan import Outcome
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.space import Space, choice, derive, flag, pow2, require, when
from gristmill.core.target import named_target
from gristmill.errors import MissingExtraError
from gristmill.tuners.choices import Choices
from gristmill.tuning.strategies import STRATEGIES, Hints, make_strategy
from gristmill.tuning.strategies._pool import Pool
from gristmill.tuning.strategies.portfolio import DRAWN

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
LEARNED = ("bayesian", "evolutionary", "optuna", "portfolio")
THOUSANDS = Space(
    *(pow2(f"KNOB_{i}", 1, 64) for i in range(2000)),
    *(
        require(f"pair {i}", lambda c, p, t, i=i: c[f"KNOB_{i}"] * c[f"KNOB_{i + 1}"] <= 256)
        for i in range(1999)
    ),
)


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


# Exhaustive search looks at them in order, and Optuna asks for its knobs one by one.
@pytest.mark.parametrize("name", ["random", "evolutionary", "bayesian", "portfolio"])
def test_thousands_of_knobs_are_searched_in_bounded_time_and_memory(name):
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = proposals(name, THOUSANDS, seed=0, limit=40)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(set(found)) == len(found) >= 40
    for config in found:
        assert THOUSANDS.config(config.knobs, PROBLEM, HOPPER) == config
    assert peak - before < 300_000  # KiB
    assert time.process_time() - start < 120


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_list_of_configs_is_searched_to_its_end(name):
    """A space without knobs: what its configs differ in stands for them."""
    triton = [{"BLOCK": 2**i, "num_warps": w} for i in range(4, 10) for w in (1, 2, 4, 8)]
    space = Choices([*triton, {"BLOCK": 16, "mode": "odd"}, {"BLOCK": None, "num_warps": 4}])
    found = proposals(name, space, seed=0, limit=100)
    assert len(found) == len(set(found)) == 26
    assert set(found) == set(space.values)


def test_without_optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"`gristmill\[tune\]`.*'portfolio'"):
        make_strategy("optuna", SMALL, PROBLEM, HOPPER, 0)


def test_what_was_fast_elsewhere_is_a_quarter_of_the_proposals_and_comes_in_order():
    space = Space(*(pow2(name, 1, 64) for name in "ABCD"))
    fast = tuple(space.valid(PROBLEM, HOPPER))[1200:1212]
    strategy = make_strategy("portfolio", space, PROBLEM, HOPPER, 0, Hints(neighbours=fast))
    found = []
    while len(found) < 60:
        asked = strategy.ask(5)
        found += asked
        for config in asked:
            strategy.tell(config, outcome(config))
    for count in (5, 20, 40):
        taken = set(found[:count]) & set(fast)
        assert set(fast[: count // 4]) <= taken
        assert len(taken) <= count // 4 + 1  # one more by chance
    plain = make_strategy("portfolio", space, PROBLEM, HOPPER, 0)
    assert not set(plain.ask(20)) & set(fast)


def test_an_estimate_orders_the_first_proposals():
    space = Space(*(pow2(name, 1, 128) for name in "ABCD"))

    def estimate(config):
        return float(config["A"] * config["B"])

    hints = Hints(estimate=estimate)
    configs = [make_strategy("portfolio", space, PROBLEM, HOPPER, s, hints).ask(16) for s in (0, 1)]
    limit = sorted(map(estimate, space.valid(PROBLEM, HOPPER)))[int(0.15 * space.size)]
    for asked in configs:
        assert sum(estimate(config) <= limit for config in asked) >= 12
        assert any(estimate(config) > limit for config in asked)  # it may be wrong


@pytest.mark.parametrize("count", [DRAWN, DRAWN + 1, 400])
def test_as_many_as_are_asked_for_come_first_each_once(count):
    space = Space(*(choice(name, *range(8)) for name in "ABC"))
    asked = make_strategy("portfolio", space, PROBLEM, HOPPER, 0).ask(count)
    assert len(asked) == len(set(asked)) == count


def test_without_an_estimate_the_first_ones_have_every_value():
    space = Space(*(choice(name, *range(8)) for name in "ABCD"))
    for seed in range(3):
        strategy = make_strategy("portfolio", space, PROBLEM, HOPPER, seed)
        first = [*strategy.ask(4), *strategy.ask(4)]  # evenly, across batches too
        had = [len({config[name] for config in first}) for name in "ABCD"]
        assert min(had) >= 6
        assert sum(had) >= 28  # of 32; 8 draws have 5.3 of 8 values


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
