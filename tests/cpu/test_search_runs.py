"""Strategies inside a tuning run: a user's own, broken ones, what is not timed, when to stop."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import gristmill as gm
from gristmill.cache.store import store
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.registry import load
from gristmill.core.space import Space, choice, pow2, require
from gristmill.measure.conditions import Conditions
from gristmill.measure.roofline import Roofline
from gristmill.tuning.budget import Budget
from gristmill.tuning.runner import TuningRun
from gristmill.tuning.strategies._pool import ENUMERATED_POINTS

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("fresh_store")
SPACE = Space(
    pow2("BLOCK", 1, 128),
    choice("num_warps", 1, 2, 4, 8),
    require("too many warps", lambda c, p, t: c["BLOCK"] >= c["num_warps"]),
)
LARGE_EMPTY = Space(
    *(choice(name, *range(60)) for name in "ABCD"), require("never", lambda c, p, t: c["A"] < 0)
)
EMPTY = Space(pow2("BLOCK", 1, 128), require("never", lambda c, p, t: c["BLOCK"] > 128))


def time_us(config):
    return 10.0 + abs(config["BLOCK"] - 32) + abs(config["num_warps"] - 4)


def spills(config):
    return 400 if config["BLOCK"] < 4 else 0


@dataclass(frozen=True)
class Kernel:
    """Something with a space, and no kernel behind it."""

    name: str
    space: Space = SPACE
    kind: str = "triton"
    source_hash: str = "0"

    def why_not(self, problem, target):
        return None

    def config(self, values, problem, target):
        return self.space.config(
            {"BLOCK": 128, "num_warps": 8} if values is None else values, problem, target
        )


class Measures:
    """Answers at once."""

    least_us = None
    seen = Conditions()

    def measure(self, candidate, best_us):
        us, words = time_us(candidate.config), spills(candidate.config)
        return Outcome("ok", device_us=us, host_us=1.0, spills=words)

    def race(self, candidates):
        outcomes = [self.measure(c, None) for c in candidates]
        return outcomes, [{"device": [o.device_us] * 9} for o in outcomes]

    def verify(self, candidates):
        return [Outcome("ok") for _ in candidates]

    def roofline(self):
        return None if self.least_us is None else Roofline(self.least_us, "memory")

    def conditions(self):
        return self.seen

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return None


class Compiles(Measures):
    """Compiles everything; what has small blocks spills."""

    def __init__(self):
        self.waiting = deque()

    @property
    def pending(self):
        return len(self.waiting)

    def submit(self, candidate):
        self.waiting.append(candidate)

    def collect(self):
        candidate = self.waiting.popleft()
        return candidate, Outcome("ok", spills=spills(candidate.config))


class Run(TuningRun):
    """A run over such kernels."""

    kernels = (Kernel("one"),)
    least_us: float | None = None

    def tunables(self):
        return self.kernels

    def tunable(self, name):
        return next(k for k in self.kernels if k.name == name)

    def make_measurer(self, seed):
        made = Measures()
        made.least_us = self.least_us
        return made

    def make_pool(self):
        return Compiles()


def start(strategy: Any, kind: type[Run] = Run, **budget: Any) -> TuningRun:
    op = load("rms_norm")
    problem = op.problem((torch.ones(4, 8), torch.ones(8), 1e-6))
    return kind(op, problem, CPU, store(), Budget(20.0, **budget), strategy)


class Listed:
    """A user's strategy: the space in order. `wrong` is what it gives in place of its third
    answer."""

    wrong: Any = None

    def __init__(self, space, problem, target, seed):
        self.left = list(space.valid(problem, target))
        self.check = lambda values: space.config(values, problem, target)
        self.told = []
        self.answers = 0

    def ask(self, count):
        self.answers += 1
        if self.answers == 3 and self.wrong is not None:
            return self.wrong(self)
        seen = {config for config, _ in self.told}
        new = [config for config in self.left if config not in seen][:count]
        self.left = [config for config in self.left if config not in new]
        return [config if i % 2 else dict(config.knobs) for i, config in enumerate(new)]

    def tell(self, config, outcome):
        self.told.append((config, outcome))


def test_a_users_class_searches_every_space_and_hears_of_the_prior_first():
    made = []

    class Two(Run):
        kernels = (Kernel("one"), Kernel("two"))

    def make(space, problem, target, seed):
        made.append(Listed(space, problem, target, seed))
        return made[-1]

    result = start(make, Two).run()
    assert len(made) == 2
    valid = set(SPACE.valid(None, None))
    for name, strategy in zip(("one", "two"), made, strict=True):
        configs = [config for config, _ in strategy.told]
        assert configs[0] == Kernel("one").config(None, None, None)
        assert set(configs) == valid
        assert {c.config for c in result.outcomes if c.implementation == name} == valid
    assert result.plans["graph"].candidate.config["BLOCK"] == 32


def test_a_users_object_searches_one_space_and_is_refused_for_several():
    assert isinstance(Listed(SPACE, None, None, 0), gm.tuning.Strategy)
    assert start(Listed(SPACE, None, None, 0)).run().plans

    class Two(Run):
        kernels = (Kernel("one"), Kernel("two"))

    with pytest.raises(gm.InvalidInputError, match=r"one Listed.*2 spaces.*Pass the class"):
        start(Listed(SPACE, None, None, 0), Two)


def test_the_strategy_of_the_documentation_searches():
    text = (Path(__file__).parents[2] / "docs/strategies.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^gm.tune", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    found = {c.config for c in start(names["Sprinkle"]).run().outcomes}
    assert found == set(SPACE.valid(None, None))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda s: 1 / 0, ("raised ZeroDivisionError", "without raising", "is kept")),
        (lambda s: s.check({"BLOCK": 3}), ("raised InvalidConfigError", "without raising")),
        (lambda s: (_ for _ in ()).throw(gm.TuningError("x")), ("raised TuningError", "is kept")),
        (lambda s: None, ("gave NoneType", "a list of configs", "Return one")),
        (lambda s: "BLOCK", ("gave str", "a list of configs", "Return one")),
        (lambda s: [3], ("gave 3 for a config", "a dict from knob to value", "Give such")),
        (lambda s: [s.told[0][0]], ("again", "measured once", "propose others")),
        (lambda s: [{"BLOCK": 3, "num_warps": 1}], ("not valid", "can be one of", "check them")),
        (lambda s: [{"BLOCK": 1, "num_warps": 4}], ("too many warps", "valid configs only")),
        (lambda s: [{"BLOCK": 8, "num_warps": 1}] * 999, ("gave 999", "at the most", "Keep")),
    ],
    ids=[
        "raises",
        "checks",
        "gives up",
        "None",
        "str",
        "number",
        "seen",
        "no value",
        "invalid",
        "too many",
    ],
)
def test_a_broken_strategy_is_said_and_what_was_measured_is_kept(wrong, words):
    class Broken(Listed):
        pass

    Broken.wrong = staticmethod(wrong)
    run = start(Broken)
    with pytest.raises(gm.StrategyError) as caught:
        run.run()
    for word in ("Broken", *words):
        assert word in str(caught.value)
    assert isinstance(caught.value, gm.TuningError)
    assert len(run.result.outcomes) > 1
    bucket, target = run.bucket.key, run.target.key
    assert len(store().measurements("rms_norm", bucket, target)) == len(run.result.outcomes)
    best = min(run.result.outcomes, key=lambda c: run.result.outcomes[c].device_us)
    kept = store().plan("rms_norm", bucket, target, "graph")
    assert kept is not None
    assert kept.candidate == best


@pytest.mark.parametrize("kind", [OSError, gm.InvalidConfigError])
def test_a_strategy_that_raises_when_told_is_said_too(kind):
    class Deaf(Listed):
        def tell(self, config, outcome):
            raise kind("no space left")

    run = start(Deaf)
    words = rf"`tell` of .*Deaf raised {kind.__name__}: no space left"
    with pytest.raises(gm.StrategyError, match=words):
        run.run()
    assert run.result.plans


@pytest.mark.parametrize(
    ("strategy", "error", "words"),
    [
        ("portfollio", gm.InvalidInputError, ("'portfollio'", "optuna", "'portfolio'")),
        (7, gm.InvalidInputError, ("`strategy` is int", "`ask` and `tell`", "Pass one")),
        (lambda *a: 3, gm.StrategyError, ("gave int", "`ask(count)`", "Return one")),
        (lambda: 3, gm.StrategyError, ("raised TypeError", "(space, problem, target, seed)")),
    ],
)
def test_what_is_no_strategy_is_refused(strategy, error, words):
    with pytest.raises(error) as caught:
        start(strategy)
    for word in words:
        assert word in str(caught.value)


def test_auto_is_exhaustive_where_that_fits_and_the_portfolio_elsewhere():
    assert start("auto").run().outcomes.keys() >= {
        Candidate("one", c) for c in SPACE.valid(None, None)
    }
    names = []

    class Large(Run):
        kernels = (Kernel("one", Space(*(pow2(n, 1, 128) for n in ("BLOCK", "num_warps")))),)

    for trials in (None, 64):
        run = start("auto", Large, trials=trials)
        names.append(run._strategies["one"].name)
    assert names == ["the strategy 'exhaustive'"] * 2
    three = Space(*(pow2(n, 1, 128) for n in ("BLOCK", "num_warps", "OTHER")))
    Large.kernels = (Kernel("one", three),)
    assert start("auto", Large)._strategies["one"].name == "the strategy 'portfolio'"
    assert start("auto", Large, trials=512)._strategies["one"].name == "the strategy 'exhaustive'"


def test_what_has_too_many_points_is_not_counted_however_many_trials_there_are():
    looked_at = []
    space = Space(
        *(choice(name, *range(48)) for name in "ABC"),
        require("never", lambda c, p, t: looked_at.append(c) is not None),
    )
    assert space.size > ENUMERATED_POINTS

    class Large(Run):
        kernels = (Kernel("one", space),)

    run = start("auto", Large, trials=3_000_000)
    assert run._strategies["one"].name == "the strategy 'portfolio'"
    assert len(looked_at) < 100


@pytest.mark.parametrize("strategy", ["random", "evolutionary", "bayesian", "optuna", "portfolio"])
@pytest.mark.parametrize("space", [EMPTY, LARGE_EMPTY], ids=["small", "large"])
def test_a_space_without_a_valid_point_is_a_row_and_the_others_are_searched(strategy, space):
    class Half(Run):
        kernels = (Kernel("none", space), Kernel("one"))

    result = start(strategy, Half, trials=20).run()
    assert result.outcomes[Candidate("none")].status == "unsupported"
    assert result.plans["graph"].candidate.implementation == "one"


def test_what_spills_heavily_beside_its_peers_is_a_row_and_not_timed():
    result = start("random").run()
    spilling = {c: o for c, o in result.outcomes.items() if c.config["BLOCK"] < 4}
    assert len(spilling) == 3
    rejected = [o for o in spilling.values() if o.status == "slow"]
    assert rejected  # and any that came before there were peers was timed
    for outcome in rejected:
        assert outcome.device_us is None
        assert outcome.reason.startswith("not timed: it spills 400 words a thread")
    assert all(o.ok for c, o in result.outcomes.items() if c not in spilling)


def test_a_search_stops_within_a_share_of_the_roofline_and_says_so():
    class Near(Run):
        least_us = 9.9

    result = start("exhaustive", Near, roofline_stop=0.02).run()
    assert "within 2.0% of the roofline (9.90 us, memory)" in result.stopped
    whole = start("exhaustive", Near, roofline_stop=0.0).run()
    assert not whole.stopped
    assert len(result.outcomes) < len(whole.outcomes) == sum(1 for _ in SPACE.valid(None, None))
    with pytest.raises(gm.InvalidInputError, match=r"`roofline_stop` is 2; .*Pass one"):
        Budget(roofline_stop=2)


def test_the_worker_measures_the_roofline(monkeypatch):
    x = torch.randn(256, 256)
    result = gm.tune("rms_norm", (x,), budget_s=5.0, roofline_stop=0.999)
    assert not result.stopped or "of the roofline" in result.stopped
    from gristmill.tuning.trial import Trials

    monkeypatch.setattr("gristmill.measure.ceilings.MATRIX_SIZE", {"cpu": 64})
    for name, values, limit in (
        ("rms_norm", (x,), "memory"),
        ("matmul", (torch.randn(512, 512), torch.randn(512, 512)), "compute"),
    ):
        op = load(name)
        problem = op.problem(op.bind(values))
        found = Trials(problem, CPU, 0).roofline()
        assert found.limit == limit
        assert found.time_us > 0
