"""Which device takes which problem: by gain, with a clock that the test turns."""

from __future__ import annotations

import heapq

import pytest
from fleet_cases import AMPERE, HOPPER, job
from hypothesis import given
from hypothesis import strategies as st

from gristmill.cache.store import PlanStore
from gristmill.core.plan import Candidate, Outcome, Plan
from gristmill.tuning.fleet.gain import UNTUNED, Expectations
from gristmill.tuning.fleet.scheduler import LOSSES, TRIES, Scheduler, Task


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def scheduler(gains, budget_s=60.0, clock=None, sites=(("a", "x"), ("b", "x")), target="x"):
    tasks = [Task(name, target, budget_s) for name in gains]
    made = Scheduler(tasks, gains.__getitem__, clock or Clock())
    for name, of in sites:
        made.join(name, of)
    return made


def test_the_largest_gain_goes_first_and_a_site_that_is_done_takes_the_next():
    queue = scheduler({"small": 1.0, "large": 9.0, "middle": 3.0})
    assert queue.take("a").job == "large"
    assert queue.take("b").job == "middle"
    queue.done("b")
    assert queue.take("b").job == "small"
    queue.done("b")
    assert queue.take("b") is None
    assert queue.may_come("b")  # what a runs can be put back
    queue.done("a")
    assert not queue.may_come("b")


def test_what_cannot_run_beside_another_waits_for_it():
    tasks = [Task(name, "x", 1.0, alone) for name, alone in (("p", "k"), ("q", "k"), ("r", ""))]
    queue = Scheduler(tasks, {"p": 3.0, "q": 2.0, "r": 1.0}.__getitem__, Clock())
    queue.join("a", "x")
    queue.join("b", "x")
    assert queue.take("a").job == "p"
    assert queue.take("b").job == "r"
    queue.done("b")
    assert queue.take("b") is None
    assert queue.may_come("b")
    queue.done("a")
    assert queue.take("b").job == "q"


def test_gains_are_asked_anew_at_every_choice():
    gains = {"p": 5.0, "q": 4.0, "r": 3.0}
    queue = scheduler(gains)
    assert queue.take("a").job == "p"
    gains["r"] = 10.0  # what p's run found says that r has more to gain
    assert queue.take("b").job == "r"


def test_a_site_takes_what_is_for_its_target_only():
    tasks = [Task("h", HOPPER.key, 1.0), Task("a", AMPERE.key, 1.0)]
    queue = Scheduler(tasks, {"h": 1.0, "a": 2.0}.__getitem__, Clock())
    queue.join("h100", HOPPER.key)
    assert queue.take("h100").job == "h"
    queue.done("h100")
    assert queue.take("h100") is None
    assert not queue.may_come("h100")
    assert [t.job for t in queue.stranded()] == ["a"]


def test_a_lost_task_goes_to_another_site_first_and_is_given_up_after_three():
    queue = scheduler({"p": 5.0, "q": 1.0})
    assert queue.take("a").job == "p"
    assert queue.lost("a")
    assert queue.take("a").job == "q"  # p is left to b
    assert queue.take("b").job == "p"
    assert queue.lost("b")
    assert queue.take("b").job == "p"  # both have lost it: whoever is free
    assert not queue.lost("b")
    assert TRIES == 3
    queue.done("a")
    assert not queue.may_come("a")


def test_a_task_that_was_lost_on_the_only_site_is_tried_there_again():
    queue = scheduler({"p": 5.0}, sites=(("a", "x"),))
    for again in (True, True, False):
        assert queue.take("a").job == "p"
        assert queue.lost("a") is again


def test_a_site_that_loses_several_in_a_row_is_left_out():
    queue = scheduler(dict.fromkeys("pqrstu", 1.0))
    for _ in range(LOSSES):
        assert queue.take("a")
        queue.lost("a")
    assert not queue.alive("a")
    assert queue.take("a") is None
    taken = 0
    while queue.take("b"):
        taken += 1
        queue.done("b")
    assert taken == 6


def test_a_site_that_leaves_gives_its_task_back_and_without_any_all_are_stranded():
    queue = scheduler({"p": 5.0, "q": 1.0})
    assert queue.take("a").job == "p"
    queue.retire("a")
    assert not queue.stranded()
    assert queue.take("b").job == "p"
    queue.retire("b")
    assert {t.job for t in queue.stranded()} == {"p", "q"}
    assert not queue.stranded()


def test_what_remains_counts_what_runs_and_what_waits_on_the_sites_there_are():
    clock = Clock()
    queue = scheduler(dict.fromkeys("pqr", 1.0), 60.0, clock)
    assert queue.remaining_s() == 120.0  # two sites, three runs
    queue.take("a")
    queue.take("b")
    clock.now = 20.0
    assert queue.remaining_s() == 100.0  # 40 s of the first, then the third
    queue.done("a")
    queue.take("a")
    assert queue.remaining_s() == 60.0
    clock.now = 500.0  # longer than their budgets: any moment
    assert queue.remaining_s() == 0.0


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(1, 50)), min_size=1, max_size=20),
    st.integers(1, 4),
)
def test_no_site_idles_while_something_waits_and_the_largest_never_waits_for_a_smaller(runs, count):
    clock = Clock()
    names = {f"p{i}": run for i, run in enumerate(runs)}
    sites = [(f"s{i}", "x") for i in range(count)]
    queue = scheduler({n: gain for n, (gain, _) in names.items()}, clock=clock, sites=sites)
    running, started = [], []
    free = [name for name, _ in sites]
    while True:
        while free and (task := queue.take(free[0])):
            started.append(task.job)
            heapq.heappush(running, (clock.now + names[task.job][1], free.pop(0)))
        assert not (free and queue.waiting)
        if not running:
            break
        clock.now, site = heapq.heappop(running)
        queue.done(site)
        free.append(site)
    gains = [names[name][0] for name in started]
    assert gains == sorted(gains, reverse=True)
    busy = sum(seconds for _, seconds in runs)
    longest = max(seconds for _, seconds in runs)
    assert clock.now <= busy / count + longest + 1e-6  # Graham's bound for any list order


# --------------------------------------------------------------------------------- expected gains


@pytest.fixture
def store(tmp_path):
    return PlanStore(tmp_path)


def _keep(store, of, us):
    bucket = of.op.bucket(of.problem)
    plan = Plan(
        op=of.op.name,
        candidate=Candidate("aten"),
        bucket=bucket.key,
        target=of.target.key,
        objective="graph",
        origin="tuned",
        source_hash="s",
        evidence=Outcome("ok", device_us=us, graph_us=us),
    )
    store.save_plan(plan, bucket.family(of.op.axes(of.problem)), dict(bucket.axes))


def test_a_larger_problem_has_more_to_gain_and_one_that_is_called_more_often(store):
    gain = Expectations(store).gain
    small, large = job(64, width=4096), job(4096, width=4096)
    assert gain(large) > gain(small) > 0
    often = type(small)(small.name, small.op, small.problem, small.target, calls=100.0)
    assert gain(often) == pytest.approx(100 * gain(small))


def test_a_tuned_problem_has_little_to_gain_until_a_neighbour_does_better(store):
    expect = Expectations(store)
    op = job(1).op
    one, other = op.workloads[0].problem, op.workloads[1].problem
    first = type(job(1))("first", op, one, HOPPER)
    second = type(job(1))("second", op, other, HOPPER)
    untuned = expect.gain(first)
    _keep(store, first, 40.0)
    assert expect.gain(first) == pytest.approx(0.02 * 40.0)
    assert expect.gain(first) < untuned or untuned < 0.8
    # the neighbour reaches ten times nearer to its least
    least = expect._least_us
    ratio = 40.0 / least(op, one, HOPPER)
    _keep(store, second, least(op, other, HOPPER) * ratio / 10)
    assert expect.gain(first) == pytest.approx(40.0 * 0.9)
    third = job(4096, width=4096)
    best = least(op, third.problem, HOPPER) * ratio / 10
    assert expect.gain(third) == pytest.approx((UNTUNED - 1) * best)
    elsewhere = type(first)("a", op, one, AMPERE)  # of another device nothing is known
    assert expect.gain(elsewhere) != pytest.approx(expect.gain(first))
