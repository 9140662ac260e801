"""How well strategies search, on made-up landscapes of four kinds (`landscapes.py`).

The bounds hold for the mean over the landscapes, as the published figures do that they are held
against (random .68, .77, .84 and the best of the others .88, .94, .99 after 50, 100, 200
evaluations); no landscape's parameters enter a strategy.
"""

from __future__ import annotations

import time
from functools import cache

import numpy as np
import pytest

from gristmill.tuning.strategies import make_strategy
from landscapes import BATCH, LANDSCAPES

SEEDS = range(10)
AFTER = np.array([50, 100, 200])


@cache
def reached(strategy: str, name: str) -> np.ndarray:
    """The share of the optimum after 50, 100 and 200 evaluations, mean over the seeds."""
    runs = [LANDSCAPES[name].search(strategy, seed, AFTER[-1])[AFTER - 1] for seed in SEEDS]
    return np.mean(runs, axis=0)


def over_all(strategy: str) -> np.ndarray:
    return np.mean([reached(strategy, name) for name in LANDSCAPES], axis=0)


@pytest.mark.parametrize("name", LANDSCAPES)
def test_landscapes_are_what_they_say(name):
    times = LANDSCAPES[name].times_us
    assert len(times) >= 1000
    fails = ~np.isfinite(times)
    assert 0.01 < fails.mean() < 0.3
    assert (times <= 1.05 * times.min()).mean() <= 0.02
    # Rugged: of configs that one knob tells apart, one is often half as fast again.
    assert np.median(times[~fails]) > 1.5 * times.min()


@pytest.mark.usefixtures("one_pool")
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_portfolio_reaches_what_it_has_to_without_hints():
    assert (over_all("portfolio") >= (0.90, 0.95, 0.98)).all()
    assert over_all("portfolio")[0] >= over_all("random")[0] + 0.05


@pytest.mark.usefixtures("one_pool")
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LANDSCAPES)
def test_on_every_landscape_the_portfolio_is_above_chance(name):
    above = reached("portfolio", name) - reached("random", name)
    assert (above > (0.05, 0.03, 0.03)).all()


@pytest.mark.usefixtures("one_pool")
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["bayesian", "evolutionary", "optuna"])
def test_those_that_learn_are_nearer_to_the_optimum_than_chance(strategy):
    kinds = [LANDSCAPES["rows"], LANDSCAPES["stencil"]]
    runs = [kind.search(strategy, seed, 104)[-1] for kind in kinds for seed in range(3)]
    chance = [kind.search("random", seed, 104)[-1] for kind in kinds for seed in range(3)]
    assert np.mean(runs) > np.mean(chance) + 0.02


def test_a_batch_costs_less_than_a_compile():
    """The median of a search's asks, in the process's own time (a neighbour's load counts not)."""
    landscape = LANDSCAPES["wide_gemm"]
    strategy = make_strategy("portfolio", landscape.space, landscape.problem, landscape.target, 0)
    times = []
    for _ in range(20):
        start = time.process_time()
        asked = strategy.ask(BATCH)
        times.append(time.process_time() - start)
        for config in asked:
            strategy.tell(config, landscape.measure(config))
    assert np.median(times) < 0.1
