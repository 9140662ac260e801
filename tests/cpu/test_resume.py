"""A tuning run that goes on where another ended: killed, interrupted, or with fewer candidates."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from dataclasses import replace

import pytest
import torch
from store_cases import FORKS, fork
from tuner_cases import CPU, Notebook, Number, best, kept, tune

import gristmill as gm
from gristmill import settings
from gristmill.cache.store import PlanStore, store
from gristmill.core.plan import Measurement, Outcome
from gristmill.core.registry import implementation, implementations
from gristmill.core.target import device_target
from gristmill.tuning.budget import Budget
from gristmill.tuning.measurer import Measurer

pytestmark = FORKS


@pytest.fixture(params=["database", "shards"])
def folder(request, tmp_path):
    """A folder for a store of either kind."""
    with settings.override(store=request.param):
        yield tmp_path / "store"


@pytest.fixture
def notebook(tmp_path):
    return Notebook(tmp_path / "measured")


def test_a_killed_run_loses_at_most_the_trial_in_flight_and_the_next_goes_on(
    folder, notebook, tmp_path
):
    """Killed five times at random points, by a signal that nothing can catch."""
    numbers = range(40)
    able = (Number(numbers=numbers),)
    rng = random.Random(7)
    kills = 0
    while kills < 5:
        done = len(notebook.lines())
        tuner = fork(lambda: tune(folder, notebook, tmp_path, able=able, trial_s=0.01))
        deadline = time.monotonic() + 30
        while len(notebook.lines()) < min(done + rng.randrange(1, 6), 39):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.02))
        os.kill(tuner, signal.SIGKILL)
        os.waitpid(tuner, 0)
        kills += 1
        missing = set(notebook.lines()) - set(kept(folder))
        assert len(missing) <= kills  # each took the trial in flight along, and no other
        assert len(notebook.lines()) - len(set(notebook.lines())) <= kills
    result = tune(folder, notebook, tmp_path, able=able)
    counts = notebook.counts()
    assert set(counts) == {f"a {able[0].config({'i': i}, None, None)}" for i in numbers}
    assert sum(counts.values()) <= len(numbers) + kills
    assert len(kept(folder)) == len(numbers)
    assert result.plans["graph"].candidate == best(numbers)
    assert len(result.outcomes) == len(numbers)


def test_a_run_with_nothing_new_measures_nothing_but_the_race(folder, notebook, tmp_path):
    first = tune(folder, notebook, tmp_path)
    measured = notebook.lines()
    again = tune(folder, notebook, tmp_path)
    assert notebook.lines() == measured
    assert [e.stage for e in again.trajectory] == ["race"] * 5
    assert again.plans["graph"].candidate == first.plans["graph"].candidate
    tune(folder, notebook, tmp_path, afresh=True)
    assert len(notebook.lines()) == 2 * len(measured)


def test_adding_a_config_measures_that_config(folder, notebook, tmp_path):
    tune(folder, notebook, tmp_path, able=(Number(numbers=range(10)),))
    before = len(notebook.lines())
    result = tune(folder, notebook, tmp_path, able=(Number(numbers=range(11)),))
    assert notebook.lines()[before:] == [str(best(range(11)))]
    assert result.plans["graph"].candidate == best(range(11))


def test_adding_an_implementation_measures_that_one(folder, notebook, tmp_path):
    tune(folder, notebook, tmp_path, able=(Number("a"),))
    before = len(notebook.lines())
    tune(folder, notebook, tmp_path, able=(Number("a"), Number("b", range(3))))
    assert all(line.startswith("b ") for line in notebook.lines()[before:])
    assert len(notebook.lines()) == before + 3


def test_a_config_that_was_taken_away_is_no_candidate(folder, notebook, tmp_path):
    tune(folder, notebook, tmp_path, able=(Number(numbers=range(11)),))
    result = tune(folder, notebook, tmp_path, able=(Number(numbers=range(10)),))
    assert result.plans["graph"].candidate == best(range(10))
    assert len(result.outcomes) == 10


@pytest.mark.parametrize("change", ["source", "versions", "problem", "failure"])
def test_what_is_measured_again(folder, notebook, tmp_path, monkeypatch, change):
    """Edited sources, other versions, another problem of the bucket, and what failed to launch."""
    tune(folder, notebook, tmp_path)
    before = len(notebook.lines())
    able = (Number(),)
    s = PlanStore(folder)
    bucket, target = "n=1|", device_target(CPU).key
    if change == "source":
        able = (Number(source="s2"),)
    elif change == "versions":
        monkeypatch.setattr("gristmill.tuning.runner.provenance", lambda: "newer")
    else:
        rows = s.measurements("numbers", bucket, target)
        if change == "problem":  # it is all that there is: a problem's own rows stay beside it
            s.prune(everything=True)
        for m in rows:
            if change == "problem":
                changed = replace(m, problem="numbers(n=0)", measured_at=s.now())
            else:
                failed = Outcome("launch_error", "out of memory")
                changed = replace(m, outcome=failed, measured_at=s.now())
            s.record([changed])
    tune(folder, notebook, tmp_path, able=able)
    assert len(notebook.lines()) == 2 * before


@pytest.mark.parametrize("change", [{"problem": "numbers(n=0)"}, {"provenance": "other"}])
def test_what_others_measured_later_hides_nothing_that_was_measured_here(
    folder, notebook, tmp_path, change
):
    """Another problem of the bucket, or another environment on the same store (or an import)."""
    first = tune(folder, notebook, tmp_path)
    before = len(notebook.lines())
    s = PlanStore(folder)
    rows = s.measurements("numbers", "n=1|", device_target(CPU).key)
    failed = Outcome("launch_error", "out of memory")
    s.record([replace(m, outcome=failed, measured_at=s.now(), **change) for m in rows])
    again = tune(folder, notebook, tmp_path)
    assert len(notebook.lines()) == before
    assert again.plans["graph"].candidate == first.plans["graph"].candidate


def test_trials_are_those_of_this_run(folder, notebook, tmp_path):
    for done in (4, 8, 10):
        tune(folder, notebook, tmp_path, budget=Budget(60.0, trials=4))
        assert len(notebook.lines()) == done
    assert len(set(notebook.lines())) == 10


def test_after_an_upgrade_the_top_few_are_measured_and_no_other(
    folder, notebook, tmp_path, monkeypatch
):
    numbers = range(30)
    able = (Number(numbers=numbers),)
    tune(folder, notebook, tmp_path, able=able)
    before = len(notebook.lines())
    for module in ("gristmill.cache.store", "gristmill.tuning.runner"):
        monkeypatch.setattr(sys.modules[module], "provenance", lambda: '{"triton":"9.9"}')
    assert PlanStore(folder).plans()[0].revalidate
    result = tune(folder, notebook, tmp_path, able=able, explore=False)
    again = notebook.lines()[before:]
    assert again == [f"a {able[0].config({'i': i}, None, None)}" for i in (0, 29, 28, 27, 26)]
    assert not result.plans["graph"].revalidate
    plans = [p for p in PlanStore(folder).plans() if p.objective == "graph"]
    assert [p.revalidate for p in plans] == [False]


@pytest.mark.usefixtures("fresh_store")
def test_get_op_goes_on_with_what_a_killed_process_kept(monkeypatch):
    """Its measurements are there, and no plan."""
    values = (torch.randn(8, 64),)
    measured = []
    real = Measurer.measure
    monkeypatch.setattr(
        Measurer,
        "measure",
        lambda self, c, best_us: measured.append(c.implementation) or real(self, c, best_us),
    )
    problem = gm.get_op("rms_norm", values, tune="never").problem
    bucket = gm.core.registry.load("rms_norm").bucket(problem).key
    rows = []
    for name in ("aten", "inductor"):
        impl = implementation("rms_norm", name)
        assert impl in implementations("rms_norm")
        rows.append(
            Measurement(
                "rms_norm",
                gm.core.plan.Candidate(name),
                impl.source_hash,
                bucket,
                device_target(CPU).key,
                str(problem),
                Outcome("ok", device_us=5.0, host_us=5.0, error=0.1, repeats=3),
                gm.core.provenance.provenance(),
                store().now(),
            )
        )
    store().record(rows[:1])
    bound = gm.get_op("rms_norm", values, budget_s=5.0)
    assert bound.plan.origin == "tuned"
    assert measured == ["inductor"]
    gm.tune("rms_norm", values, budget_s=5.0, afresh=True)
    assert sorted(measured) == ["aten", "inductor", "inductor"]
