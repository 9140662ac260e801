"""Many problems on many devices: who tunes what, what a lost worker costs, Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch
from fleet_cases import AMPERE, HOPPER, WAIT_S, FakeSite, Log, job

import gristmill as gm
from gristmill import settings
from gristmill.cache.store import PlanStore, store
from gristmill.core.plan import INTERRUPTED, Candidate
from gristmill.core.registry import load
from gristmill.errors import TuningError, WorkerLostError
from gristmill.measure.conditions import Conditions
from gristmill.ops.tune_many import FleetInterrupted, tune_many
from gristmill.tuning.budget import Budget
from gristmill.tuning.fleet import fleet as fleet_module
from gristmill.tuning.fleet.fleet import Fleet
from gristmill.tuning.fleet.lines import NoLines, lines
from gristmill.tuning.fleet.local import HeldSite, LocalFleet, devices_named
from gristmill.tuning.fleet.run import Wishes

WISHES = Wishes(Budget(60.0, trials=4), "random")


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def plans(tmp_path):
    return PlanStore(tmp_path / "store")


def run(sites, jobs, plans, said=None, tell=lambda ended: None, shown=None):
    shown = shown or NoLines(([] if said is None else said).append)
    return Fleet(sites, jobs, plans, WISHES, shown).run(tell)


def plan_of(plans, of, objective="graph"):
    return plans.plan(of.op.name, of.op.bucket(of.problem).key, of.target.key, objective)


def test_every_problem_is_tuned_once_and_its_candidates_are_compared_on_one_device(log, plans):
    together = threading.Barrier(2)

    def before(site, problem, candidate):
        if candidate.implementation == "aten" and problem["x"].shape[0] in (1024, 512):
            together.wait(WAIT_S)  # the two largest are measured at the same time

    sites = [FakeSite("a", log, before=before), FakeSite("b", log, before=before)]
    jobs = [job(rows) for rows in (64, 128, 256, 512, 1024)]
    told = []
    result = run(sites, jobs, plans, tell=lambda ended: told.append(ended.job.name))
    assert sorted(told) == sorted(j.name for j in jobs)
    assert {e.site for e in result.ended} == {"a", "b"}
    assert all(e.error is None and not e.why for e in result.ended)
    assert all(len(found) == 1 for found in log.by_problem().values())
    assert len(log.entries) == len(set(log.entries))
    assert all(plan_of(plans, j).origin == "tuned" for j in jobs)
    assert [site.state for site in sites] == ["closed", "closed"]
    assert not result.interrupted


def test_a_device_that_is_done_takes_what_is_left_while_another_is_busy(log, plans):
    others_done = threading.Event()

    def slow(site, problem, candidate):
        assert others_done.wait(WAIT_S)

    jobs = [job(rows) for rows in (64, 128, 256, 512)]
    ended = []

    def tell(one):
        ended.append((one.site, one.job.name))
        if len(ended) == 3:
            others_done.set()

    run([FakeSite("slow", log, before=slow), FakeSite("quick", log)], jobs, plans, tell=tell)
    assert [site for site, _ in ended] == ["quick"] * 3 + ["slow"]


def test_two_problems_of_one_bucket_are_tuned_one_after_the_other(log, plans):
    first, second = job(1000), job(1024)
    assert first.op.bucket(first.problem) == second.op.bucket(second.problem)
    result = run([FakeSite("a", log), FakeSite("b", log)], [first, second], plans)
    assert [e.why for e in result.ended] == ["", ""]
    assert len(log.by_problem()) == 2


def test_devices_of_different_targets_tune_plans_of_their_own(log, plans):
    sites = [FakeSite("h", log, HOPPER), FakeSite("a", log, AMPERE)]
    jobs = [job(64, HOPPER), job(64, AMPERE), job(128, AMPERE)]
    result = run(sites, jobs, plans)
    assert sorted((e.site, e.job.target.arch) for e in result.ended) == [
        ("a", "sm_80"),
        ("a", "sm_80"),
        ("h", "sm_90"),
    ]
    assert plan_of(plans, jobs[0]).target != plan_of(plans, jobs[1]).target
    assert plan_of(plans, job(128, HOPPER)) is None


def test_a_lost_worker_costs_the_trial_in_flight_and_the_problem_goes_on_elsewhere(log, plans):
    both_began = threading.Barrier(2)
    began, lost = set(), []

    def before(site, problem, candidate):
        if site.name not in began:
            began.add(site.name)
            both_began.wait(WAIT_S)
        if site.name == "a" and len(log.by_problem()[problem]) and not lost:
            lost.append((problem, candidate))
            raise WorkerLostError("its machine is gone")

    said = []
    sites = [FakeSite("a", log, before=before), FakeSite("b", log, before=before)]
    jobs = [job(rows) for rows in (64, 128, 256, 512)]
    result = run(sites, jobs, plans, said)
    assert sorted(e.job.name for e in result.ended) == sorted(j.name for j in jobs)
    assert all(e.error is None for e in result.ended)
    ((problem, candidate),) = lost
    (again,) = [e for e in result.ended if e.job.problem == problem]
    assert again.site == "b"
    assert log.by_problem()[problem] == {"a", "b"}
    # nothing that a had measured was measured again, and the trial in flight was
    assert len(log.entries) == len({(p, c) for _, p, c in log.entries})
    assert ("b", problem, candidate) in log.entries
    (line,) = said
    assert line.startswith("a lost its worker with ")
    assert "it is put back" in line


def test_a_problem_that_loses_every_worker_is_given_up_and_the_others_are_tuned(log, plans):
    def before(site, problem, candidate):
        if problem["x"].shape[0] == 512:
            raise WorkerLostError("the machine is out of memory")

    said = []
    sites = [FakeSite("a", log, before=before), FakeSite("b", log, before=before)]
    jobs = [job(rows) for rows in (64, 128, 256, 512)]
    result = run(sites, jobs, plans, said)
    status = {e.job.name: e.error for e in result.ended}
    assert len(result.ended) == 4
    assert "out of memory" in str(status.pop("rows-512"))
    assert set(status.values()) == {None}
    assert len(said) == 3
    assert "it is given up" in said[-1]


def test_a_device_that_cannot_be_had_is_left_out_and_without_any_every_problem_says_so(log, plans):
    busy, free = FakeSite("busy", log), FakeSite("free", log)
    busy.refusal = "another process is measuring on busy"
    said = []
    result = run([busy, free], [job(64), job(128)], plans, said)
    assert {e.site for e in result.ended} == {"free"}
    assert said == ["busy is left out: another process is measuring on busy"]
    assert busy.state == "closed"
    free.refusal = "its lease is gone"
    result = run([busy, free], [job(256), job(512)], plans, said)
    assert len(result.ended) == 2
    assert all("no device of NVIDIA H200 is left" in e.why for e in result.ended)


def test_an_error_of_one_problem_is_its_own(log, plans):
    def before(site, problem, candidate):
        if problem["x"].shape[0] == 64:
            raise TuningError("the reference of `rms_norm` raised")

    result = run([FakeSite("a", log, before=before)], [job(64), job(128)], plans)
    assert {e.job.name: e.why for e in result.ended} == {
        "rows-64": "the reference of `rms_norm` raised",
        "rows-128": "",
    }


def test_a_fault_of_ours_ends_the_fleet_and_is_raised(log, plans):
    def before(site, problem, candidate):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run([FakeSite("a", log, before=before), FakeSite("b", log)], [job(64), job(128)], plans)

    def tell(ended):
        raise OSError("no room for the report")

    sites = [FakeSite("a", log), FakeSite("b", log)]
    with pytest.raises(OSError, match="no room"):
        run(sites, [job(256), job(512)], plans, tell=tell)
    assert [site.state for site in sites] == ["closed", "closed"]


def test_control_c_ends_each_run_after_its_trial_and_keeps_everything(log, plans):
    both_began = threading.Barrier(2)
    fleets = []

    def before(site, problem, candidate):
        if len(log.by_problem()[problem]) == 0:
            return
        both_began.wait(WAIT_S)  # each has one candidate, and its second in flight
        if site.name == "a":
            os.kill(os.getpid(), signal.SIGINT)
        assert fleets[0]._halt_asked.wait(WAIT_S)

    class Watched(Fleet):
        def __init__(self, *args):
            super().__init__(*args)
            self._halt_asked = threading.Event()
            fleets.append(self)

        def _end(self):
            super()._end()
            self._halt_asked.set()

    sites = [FakeSite("a", log, before=before), FakeSite("b", log, before=before)]
    jobs = [job(rows) for rows in (64, 128, 256, 512)]
    said = []
    result = Watched(sites, jobs, plans, WISHES, NoLines(said.append)).run()
    assert result.interrupted
    (line,) = said
    assert line.startswith("ending: trials in flight have 3 s")
    assert len(result.ended) == 2  # the others never began
    assert len(log.entries) == 4
    for ended in result.ended:
        assert ended.result.interrupted
        plan = plan_of(plans, ended.job)
        assert plan.provenance == INTERRUPTED
        bucket = ended.job.op.bucket(ended.job.problem).key
        assert len(plans.measurements("rms_norm", bucket, HOPPER.key)) == 2


def test_a_trial_that_takes_longer_is_dropped_and_what_leads_is_checked(log, plans, monkeypatch):
    monkeypatch.setattr(fleet_module, "GRACE_S", 0.05)

    def before(site, problem, candidate):
        if log.entries:
            os.kill(os.getpid(), signal.SIGINT)
            assert site.dropped.wait(WAIT_S)
            raise KeyboardInterrupt  # as a measurer whose worker was killed

    site = FakeSite("a", log, before=before)
    result = run([site], [job(64), job(128)], plans)
    (ended,) = result.ended
    assert ended.result.interrupted
    assert not site.killed.is_set()
    assert plan_of(plans, ended.job).provenance == INTERRUPTED  # of the one that was measured
    assert len(log.entries) == 1


def test_a_second_control_c_kills_what_is_in_flight(log, plans):
    def before(site, problem, candidate):
        if not site.killed.is_set():
            os.kill(os.getpid(), signal.SIGINT)
            site.asked.wait(WAIT_S)
            os.kill(os.getpid(), signal.SIGINT)
        assert site.killed.wait(WAIT_S)
        raise KeyboardInterrupt  # as a measurer whose worker was killed

    site = FakeSite("a", log, before=before)
    site.asked = threading.Event()

    class Shown(NoLines):
        def say(self, text):
            site.asked.set()

    result = run([site], [job(64), job(128)], plans, shown=Shown())
    assert result.interrupted
    assert not log.entries
    assert site.state == "closed"


def test_a_line_for_each_device_and_one_for_all(log, plans, capsys):
    with settings.override(progress=True):
        shown = lines(["a", "b"], print)
        run([FakeSite("a", log), FakeSite("b", log)], [job(64), job(128)], plans, shown=shown)
    text = capsys.readouterr().err
    assert "2 of 2 problems" in text
    for name in ("a", "b"):
        assert any(line.startswith(f"{name} ") for line in text.splitlines())
    with settings.override(progress=False):
        assert isinstance(lines(["a"], print), NoLines)


def test_what_is_to_be_said_of_a_run_is_said_with_its_device_and_widens_its_ties_alone(
    log, plans, capsys
):
    noisy = FakeSite("noisy", log)
    noisy.conditions = Conditions(anchors=20, noise=0.08, drift=0.0)
    with settings.override(progress=True):
        shown = lines(["noisy", "calm"], print)
        jobs = [job(64, HOPPER), job(64, AMPERE)]
        result = run([noisy, FakeSite("calm", log, AMPERE)], jobs, plans, shown=shown)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "is noisy" in line]
    assert [line.partition(":")[0] for line in warnings] == ["noisy"]
    by_site = {e.site: e.result for e in result.ended}
    assert by_site["noisy"].conditions.noisy
    assert "a noisy machine" in by_site["noisy"].plans["graph"].reason
    assert by_site["calm"].conditions == Conditions()
    assert "noisy" not in by_site["calm"].plans["graph"].reason


# ------------------------------------------------------------------------- this machine's devices


class Seat(HeldSite):
    """A CPU as a device of its own: the real worker and compile server, and nobody's lease."""

    def __init__(self, name, server):
        super().__init__(torch.device("cpu"), server, 2)
        self.name = name

    def open(self):
        pass


@pytest.mark.usefixtures("fresh_store")
def test_real_workers_of_two_devices_share_the_problems_and_crashes_are_rows(only):
    only("right", "traps", "garbage")
    op = load("twice")
    problems = [op.problem((torch.ones(rows, 64),)) for rows in (16, 64, 256)]
    with LocalFleet([torch.device("cpu")]) as (site,):
        sites = [Seat("a", site._server), Seat("b", site._server)]
        jobs = [fleet_module.Job(str(p), op, p, site.target) for p in problems]
        result = Fleet(sites, jobs, store(), Wishes(Budget(20.0))).run()
    assert {e.site for e in result.ended} == {"a", "b"}
    for ended in result.ended:
        status = {c.implementation: o.status for c, o in ended.result.outcomes.items()}
        assert status == {"right": "ok", "traps": "crash", "garbage": "wrong"}
        assert ended.result.plans["eager"].candidate.implementation == "right"


@pytest.mark.usefixtures("fresh_store")
def test_a_worker_that_is_killed_from_another_thread_interrupts_whoever_waits(faulty):
    problem = load("twice").problem((torch.ones(16, 16),))
    with LocalFleet([torch.device("cpu")]) as (site,), site.measurer(problem, 0) as measurer:
        right = measurer.measure(Candidate("right"), None)
        for for_good in (False, True):
            pid = measurer._child._process.pid
            killer = threading.Timer(0.2, measurer.kill, (for_good,))
            killer.start()
            with pytest.raises(KeyboardInterrupt):
                measurer.measure(Candidate("hangs"), None)
            killer.join()
            if not for_good:
                assert measurer.measure(Candidate("right"), None).status == right.status == "ok"
                assert measurer._child._process.pid != pid
        with pytest.raises(KeyboardInterrupt):
            measurer.measure(Candidate("right"), None)


@pytest.mark.usefixtures("fresh_store")
def test_tune_many_keeps_plans_that_calls_then_use(only):
    only("aten")
    values = (torch.randn(8, 64), torch.randn(64))
    problem = load("rms_norm").problem((torch.ones(4, 32), None, 1e-6))
    ended = tune_many([("rms_norm", values), problem], devices="cpu", budget_s=5.0)
    assert [e.site for e in ended] == ["cpu", "cpu"]
    assert {e.job.problem["x"].shape for e in ended} == {(8, 64), (4, 32)}
    assert gm.get_op("rms_norm", values, tune="never").plan.origin == "tuned"


@pytest.mark.usefixtures("fresh_store")
def test_an_interrupt_of_tune_many_is_a_keyboard_interrupt_with_the_result(monkeypatch):
    def interrupted(self, tell):
        return fleet_module.FleetResult(interrupted=True)

    monkeypatch.setattr(Fleet, "run", interrupted)
    with pytest.raises(FleetInterrupted) as caught:
        tune_many([("rms_norm", (torch.ones(2, 8),))], devices="cpu")
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.result.interrupted


def test_what_tune_many_refuses():
    with pytest.raises(gm.InvalidInputError, match="'nine' is none of them"):
        devices_named(["cpu", "nine"])
    with pytest.raises(gm.InvalidInputError, match="each counts once"):
        devices_named(["cpu", "cpu"])
    with pytest.raises(gm.InvalidInputError, match="`problems` has"):
        tune_many(["rms_norm"], devices="cpu")
    with pytest.raises(gm.InvalidInputError, match="given together with `ray`"):
        tune_many([("rms_norm", (torch.ones(2, 8),))], devices="cpu", ray="auto")
