"""Tuning and selection on a CPU: strategies, budgets, the choice, what is stored, interruption,
explanations."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

import gristmill as gm
from gristmill import settings
from gristmill.cache.store import store
from gristmill.core.plan import Candidate, Measurement, Outcome
from gristmill.core.registry import implementation, implementations, load
from gristmill.core.target import device_target, named_target
from gristmill.measure.statistics import never_slower, paired_ratio, tied
from gristmill.ops._dispatch import forget
from gristmill.selection.explain import explain_problem
from gristmill.selection.select import select
from gristmill.tuning.budget import Budget, TuningInterrupted, TuningResult
from gristmill.tuning.choose import choose, tied_with_fastest
from gristmill.tuning.measurer import Measurer
from gristmill.tuning.runner import TuningRun
from gristmill.tuning.strategies import make_strategy

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("fresh_store")


def _problem(rows=8, width=64):
    return load("rms_norm").problem((torch.ones(rows, width), torch.ones(width), 1e-6))


def _rewrite(plan, **changes):
    """Keep a changed plan in its place."""
    axes = dict(pair.split("=") for pair in plan.bucket.split("|")[0].split(","))
    store().save_plan(replace(plan, **changes), plan.bucket, {n: int(s) for n, s in axes.items()})


@pytest.mark.parametrize("name", ["exhaustive", "random"])
def test_a_strategy_proposes_every_valid_config_once(name):
    impl = implementation("rms_norm", "row")
    target, problem = named_target("sm_90"), _problem(64, 4096)
    valid = set(impl.space.valid(problem, target))
    strategy = make_strategy(name, impl.space, problem, target, seed=3)
    told = next(iter(valid))
    strategy.tell(told, Outcome("ok", device_us=1.0))
    asked = []
    while batch := strategy.ask(100):
        assert len(batch) <= 100
        asked += batch
    assert len(asked) == len(set(asked))
    assert set(asked) == valid - {told}
    again = make_strategy(name, impl.space, problem, target, seed=3)
    again.tell(told, Outcome("ok"))
    assert again.ask(100) == asked[:100]


def test_an_unknown_strategy_is_refused_with_the_known_ones():
    impl = implementation("rms_norm", "row")
    with pytest.raises(gm.InvalidInputError, match=r"'randm'.*random"):
        make_strategy("randm", impl.space, _problem(), named_target("sm_90"), 0)


def test_tuning_measures_every_contender_and_keeps_the_plan():
    values = (torch.randn(8, 64), torch.randn(64))
    bound = gm.get_op("rms_norm", values, budget_s=5.0)
    assert bound.plan.origin == "tuned"
    assert bound.implementation in ("aten", "inductor")
    assert bound.plan.evidence.error <= 1
    key, target = bound.plan.bucket, device_target(CPU).key
    rows = store().measurements("rms_norm", key, target)
    assert {m.candidate.implementation for m in rows} == {"aten", "inductor"}
    assert all(m.outcome.ok for m in rows)
    start = time.perf_counter()
    again = gm.get_op("rms_norm", values)
    assert time.perf_counter() - start < 1.0
    assert again.plan.candidate == bound.plan.candidate
    expected = load("rms_norm").reference(*values)
    torch.testing.assert_close(again(*values), expected)
    near = gm.get_op("rms_norm", (torch.randn(30, 64), torch.randn(64)), tune="never")
    assert near.plan.origin == "neighbour"
    assert "rows=8" in near.plan.reason
    far = gm.get_op("rms_norm", (torch.randn(100, 64), torch.randn(64)), tune="never")
    assert far.plan.origin == "vendor"
    other = gm.get_op("rms_norm", (torch.randn(8, 65), torch.randn(65)), tune="never")
    assert other.plan.origin == "vendor"


def test_an_upgrade_revalidates_the_best_few_without_searching_again(monkeypatch):
    values = (torch.randn(8, 64),)
    gm.get_op("rms_norm", values, budget_s=5.0)
    for module in ("gristmill.cache.store", "gristmill.tuning.runner"):
        monkeypatch.setattr(sys.modules[module], "provenance", lambda: "newer versions")
    store().forget()
    plan = gm.get_op("rms_norm", values, tune="never").plan
    assert plan.revalidate
    assert "tune again" in str(gm.explain("rms_norm", values))
    runs = []
    real = TuningRun.__init__

    def spy(self, *args, **kwargs):
        real(self, *args, **kwargs)
        runs.append(self.explore)

    monkeypatch.setattr(TuningRun, "__init__", spy)
    assert not gm.get_op("rms_norm", values, budget_s=5.0).plan.revalidate
    assert runs == [False]


def test_a_process_with_a_plan_imports_the_kernel_it_names_and_no_other(tmp_path):
    values = (torch.randn(4, 16),)
    bound = gm.get_op("rms_norm", values, budget_s=5.0)
    _rewrite(
        bound.plan,
        candidate=Candidate("aten"),
        source_hash=implementation("rms_norm", "aten").source_hash,
    )
    code = (
        "import sys, torch, gristmill as gm\n"
        "gm.get_op('rms_norm', (torch.randn(4, 16),))\n"
        "print(*sorted(m for m in sys.modules if m.startswith('gristmill.')))"
    )
    environment = {**os.environ, "GRISTMILL_CACHE_DIR": str(settings.current().cache_dir)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    kernels = [m for m in loaded if m.startswith("gristmill.kernels.rms_norm.")]
    assert kernels == ["gristmill.kernels.rms_norm.aten"]
    assert not [m for m in loaded if m.startswith(("gristmill.tuning.", "gristmill.verify"))]


def test_the_never_policy_tunes_nothing():
    with settings.override(tune="never"):
        assert gm.get_op("rms_norm", (torch.randn(4, 16),)).plan.origin == "vendor"
    assert not store().plans()


def test_faulty_candidates_are_rows_and_the_right_one_wins(faulty, tmp_path, monkeypatch):
    monkeypatch.setattr("gristmill.tuning.measurer.FIRST_TIMEOUT_S", 10.0)
    op = load("twice")
    problem = op.problem((torch.ones(16, 16),))
    with settings.override(candidate_timeout_s=2.0):
        result = TuningRun(op, problem, CPU, store(), Budget(30.0)).run()
    status = {c.implementation: o.status for c, o in result.outcomes.items()}
    assert status == {
        "right": "ok",
        "sly": "wrong",
        "traps": "crash",
        "hangs": "timeout",
        "garbage": "wrong",
        "unwritten": "wrong",
        "misshapen": "wrong",
        "raises": "launch_error",
        "mistyped": "wrong",
        "mutates": "wrong",
        "strided": "wrong",
        "in_place": "wrong",
    }
    assert result.plans["eager"].candidate.implementation == "right"
    text = str(explain_problem(op, problem, device_target(CPU), "eager"))
    assert "SIGSEGV" in text
    assert "no answer within" in text
    assert "Triton kernels need a GPU" in text


def test_a_reference_that_raises_is_a_tuning_error(faulty):
    with pytest.raises(gm.TuningError, match="thirteen is unlucky"):
        gm.tune("twice", (torch.ones(2, 13),), budget_s=5.0)


def test_no_right_candidate_is_a_tuning_error_that_lists_them(faulty, monkeypatch):
    bad = tuple(i for i in implementations("twice") if i.name in ("garbage", "raises"))
    monkeypatch.setattr("gristmill.tuning.runner.implementations", lambda op: bad)
    with pytest.raises(gm.TuningError, match=r"gave right results.*garbage: wrong.*doctor"):
        gm.tune("twice", (torch.ones(2, 2),), budget_s=5.0)


def _interrupted_at(monkeypatch, name):
    real = Measurer.measure

    def measure(self, candidate, best_us):
        if candidate.implementation == name:
            raise KeyboardInterrupt
        return real(self, candidate, best_us)

    monkeypatch.setattr(Measurer, "measure", measure)


def test_interruption_keeps_what_was_measured_and_the_next_run_goes_on(monkeypatch):
    values = (torch.randn(8, 64),)
    with monkeypatch.context() as patch:
        _interrupted_at(patch, "inductor")
        with pytest.raises(KeyboardInterrupt):
            gm.tune("rms_norm", values, budget_s=5.0)
    explanation = gm.explain("rms_norm", values)
    assert explanation.plan.candidate.implementation == "aten"
    assert "search was interrupted" in str(explanation)
    assert [r.implementation for r in explanation.rows if r.status == "ok"] == ["aten"]
    bound = gm.get_op("rms_norm", values, budget_s=5.0)
    assert not bound.plan.revalidate
    rows = gm.explain("rms_norm", values).rows
    assert {r.implementation for r in rows if r.status == "ok"} == {"aten", "inductor"}


def test_an_interrupted_plan_has_passed_every_variant(faulty, monkeypatch):
    """`sly` is fast, and wrong on large values alone."""
    op = load("twice")
    monkeypatch.setattr("gristmill.tuning.measurer.FIRST_TIMEOUT_S", 20.0)
    _interrupted_at(monkeypatch, "traps")
    run = TuningRun(op, op.problem((torch.ones(16, 16),)), CPU, store(), Budget(30.0))
    run._fixed = [implementation("twice", n) for n in ("sly", "right", "traps")]
    result = run.run()
    assert result.interrupted
    assert result.plans["eager"].candidate.implementation == "right"
    status = {c.implementation: o.status for c, o in result.outcomes.items()}
    assert status == {"sly": "wrong", "right": "ok"}


def test_a_direct_call_never_builds_a_compiled_plan(monkeypatch):
    values = (torch.randn(8, 64), torch.randn(64), 1e-6)
    gm.tune("rms_norm", values, budget_s=5.0)
    plan = select(load("rms_norm"), _problem(), device_target(CPU), "eager")
    _rewrite(
        plan,
        candidate=Candidate("inductor"),
        source_hash=implementation("rms_norm", "inductor").source_hash,
        fallback=Candidate("aten"),
    )
    forget("rms_norm")
    built = []
    monkeypatch.setattr(torch, "compile", lambda *a, **k: built.append(a) or (lambda *v: values[0]))
    gm.rms_norm(*values)
    assert not built
    gm.get_op("rms_norm", values)
    assert len(built) == 1


def test_a_plan_of_another_source_is_not_used():
    values = (torch.randn(8, 64),)
    bound = gm.get_op("rms_norm", values, budget_s=5.0)
    _rewrite(bound.plan, source_hash="0" * 16)
    plan = select(load("rms_norm"), bound.problem, device_target(CPU), "eager")
    assert plan.origin == "vendor"


def _entry(name, times, host=1.0, config=None):
    outcome = Outcome("ok", device_us=sorted(times)[len(times) // 2], host_us=host, error=0.5)
    return Candidate(name), outcome, {"device": times}


def test_the_choice_takes_the_fastest_and_ties_go_to_who_needs_least():
    fast, slow = (
        [10.0 + 0.01 * (i % 3) for i in range(50)],
        [12.0 + 0.01 * (i % 3) for i in range(50)],
    )
    chosen, _, reason = choose("rms_norm", [_entry("aten", slow), _entry("row", fast)], "eager")
    assert chosen.implementation == "row"
    assert "fastest" in reason
    noisy = [10.0 + (i % 7) * 0.5 for i in range(50)]
    shifted = [10.0 + ((i + 3) % 7) * 0.5 for i in range(50)]
    entries = [_entry("inductor", noisy), _entry("row", shifted), _entry("aten", noisy)]
    assert choose("rms_norm", entries, "eager")[0].implementation == "aten"
    assert choose("rms_norm", entries, "eager", Candidate("row"))[0].implementation == "row"


@pytest.mark.parametrize(("share", "name"), [(1.015, "aten"), (1.03, "inductor")])
def test_a_compiler_at_run_time_has_to_pay_more_than_what_never_slower_allows(share, name):
    built = _entry("inductor", [60.0] * 50, host=45.0)
    other = _entry("aten", [60.0 * share] * 50, host=12.0)
    assert choose("rms_norm", [built, other], "eager")[0].implementation == name
    assert choose("rms_norm", [built, other], "graph")[0].implementation == "inductor"
    long = _entry("inductor", [125.0] * 50, host=45.0), _entry("aten", [127.0] * 50, host=12.0)
    assert choose("rms_norm", long, "eager")[0].implementation == "inductor"


def test_what_takes_a_compiled_choices_place_is_not_called_a_tie():
    built, other = _entry("inductor", [60.0] * 50, host=45.0), _entry("aten", [61.1] * 50, host=9.0)
    chosen, _, reason = choose("rms_norm", [built, other], "eager")
    assert tied_with_fastest([built, other], "eager") == [built]
    assert chosen.implementation == "aten"
    assert reason == "61.10 us, within 2% of a compiled choice that keeps the host busy longer"
    busy = _entry("aten", [61.1] * 50, host=50.0)  # longer than the compiled one: no gain
    chosen, _, reason = choose("rms_norm", [built, busy], "eager")
    assert chosen.implementation == "inductor"
    assert reason == "fastest at 60.00 us; the next takes 1.02x as long"


def test_a_host_that_stays_ahead_of_the_device_decides_a_tie():
    times = [14.0 + 0.01 * (i % 3) for i in range(50)]
    entries = [_entry("aten", times, host=13.0), _entry("row", times, host=6.0)]
    chosen, _, reason = choose("rms_norm", entries, "eager", Candidate("aten"))
    assert chosen.implementation == "row"
    assert reason.endswith("it keeps the host the shortest time")
    assert choose("rms_norm", entries, "graph")[0].implementation == "aten"


def test_the_eager_objective_counts_the_host():
    a = _entry("inductor", [4.0] * 50, host=36.0)
    b = _entry("aten", [8.4] * 50, host=10.0)
    assert choose("rms_norm", [a, b], "eager")[0].implementation == "aten"
    assert choose("rms_norm", [a, b], "graph")[0].implementation == "inductor"


def test_wrong_candidates_never_win():
    wrong = (Candidate("row"), Outcome("wrong", device_us=1.0), {"device": [1.0] * 50})
    assert choose("rms_norm", [wrong], "eager") is None
    assert choose("rms_norm", [wrong, _entry("aten", [9.0] * 50)], "eager")[0] == Candidate("aten")


def test_paired_statistics():
    base = [100.0 + (i % 10) for i in range(60)]
    assert paired_ratio([t * 1.05 for t in base], base).low > 1.0
    assert tied(base, base)
    assert not tied([t * 1.05 for t in base], base)
    assert never_slower([t * 1.01 for t in base], base)
    assert not never_slower([t * 1.05 for t in base], base)
    assert never_slower([4.2] * 50, [4.0] * 50)


def test_explain_shows_measurements_and_rejections():
    op, target = load("rms_norm"), named_target("sm_90")
    problem = load("rms_norm").workload("16384x4096").problem
    impl = implementation("rms_norm", "row")
    config = impl.config(None, problem, target)
    outcome = Outcome("ok", device_us=65.0, host_us=6.0, error=0.99, registers=38)
    store().record(
        [
            Measurement(
                "rms_norm",
                Candidate("row", config),
                impl.source_hash,
                op.bucket(problem).key,
                target.key,
                str(problem),
                outcome,
            )
        ]
    )
    explanation = explain_problem(op, problem, target, "eager")
    assert explanation.plan.candidate.implementation == "row"
    assert explanation.rows[0].chosen
    assert explanation.rows[0].device_us == 65.0
    assert explanation.rejections["row"]
    assert "points rejected" in str(explanation)
    assert explanation.to_json()["plan"]["implementation"] == "row"


def test_the_reason_of_a_tie_is_what_decided_it():
    noisy = [10.0 + (i % 7) * 0.5 for i in range(50)]
    entries = [_entry("row", noisy), _entry("aten", noisy)]
    assert choose("rms_norm", entries, "eager")[2].endswith("it needs the least")
    assert choose("rms_norm", entries, "eager", Candidate("row"))[2].endswith("the incumbent")
    wide = [10.0 + (i % 7) * 2.0 for i in range(50)]  # the medians 5% apart, and yet tied
    late = [10.8 + ((i + 3) % 7) * 2.0 for i in range(50)]
    chosen, _, reason = choose(
        "rms_norm", [_entry("inductor", wide), _entry("aten", late)], "eager"
    )
    assert chosen.implementation == "inductor"
    assert "tied with 1" in reason
    assert reason.endswith("it keeps the device the shortest time")


def test_an_interruption_says_what_is_kept():
    assert str(TuningInterrupted(TuningResult())).endswith("nothing is kept")
    result = TuningResult(outcomes={Candidate("aten"): Outcome("ok")})
    assert "1 candidates were measured" in str(TuningInterrupted(result))
