"""Freezing: a lock file gives the same plans, bit for bit, whatever happens to the store, the code
or the device; and nothing is tuned meanwhile."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from store_cases import warns

import gristmill as gm
from gristmill import settings
from gristmill.cache.lockfile import Lock, LockedPlan, read_lock
from gristmill.cache.store import store
from gristmill.core.config import Config
from gristmill.core.plan import Candidate
from gristmill.core.registry import implementation, load
from gristmill.core.target import named_target
from gristmill.ops import _dispatch
from gristmill.ops._dispatch import dispatcher
from gristmill.ops.agree import _taken_over
from gristmill.selection import frozen
from gristmill.selection.frozen import FrozenWarning
from gristmill.selection.select import select
from pack_cases import OLD, OP, TARGET, beside, chosen, save, ship, tuned

pytestmark = pytest.mark.usefixtures("pack_dir")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock.json"


def say(match):
    return pytest.warns(FrozenWarning, match=match)


def test_a_frozen_plan_stays_whatever_the_store_learns(path):
    save(tuned(reason="first"))
    before = chosen()
    assert gm.freeze(path) == path
    save(tuned(name="inductor", reason="better"))
    store().forget()
    assert chosen() == before
    gm.thaw()
    assert chosen().reason == "better"
    assert path.exists()


def test_the_file_is_readable_sorted_and_the_same_for_the_same_plans(path):
    save(tuned(), tuned(96), tuned(1024))
    for rows in (1024, 64, 96):
        chosen(rows)
    gm.freeze(path)
    data = json.loads(path.read_text())
    assert (data["format"], data["version"], data["strict"]) == ("gristmill-lock", 1, False)
    assert [p["axes"]["rows"] for p in data["plans"]] == [1024, 64, 96]  # by the bucket's key
    assert data["plans"][0]["implementation"] == "aten"
    first = path.read_bytes()
    gm.freeze(path)
    assert path.read_bytes() == first
    gm.thaw()
    frozen.forget_used()
    for rows in (96, 64, 1024):
        chosen(rows)
    gm.freeze(path)
    assert path.read_bytes() == first


def test_a_lock_file_read_again_gives_the_same_plans(path):
    save(tuned(), tuned(96, "inductor"))
    store().record([beside(tuned(96))])
    plans = [chosen(rows) for rows in (64, 96, 128, 5000)]  # measured, measured, near, untuned
    assert [p.origin for p in plans] == ["tuned", "tuned", "neighbour", "vendor"]
    assert plans[1].fallback == Candidate("aten")
    gm.freeze(path)
    gm.thaw()
    store().prune(everything=True)
    assert chosen().origin == "vendor"
    gm.freeze(path, plans="file")
    with warns():
        assert [chosen(rows) for rows in (64, 96, 128, 5000)] == plans


START = """
import torch, gristmill as gm
values = torch.randn(64, 256), torch.randn(256)
print(gm.get_op("rms_norm", values).plan.reason)
gm.rms_norm(*values)
gm.get_op("rms_norm", (torch.randn(3, 999), None))
"""
COMPILED = """
import torch, gristmill as gm
torch.compile(gm.rms_norm, backend="eager", fullgraph=True)(torch.randn(3, 999), None)
"""


def test_a_process_that_starts_with_a_lock_file_selects_from_it(path):
    save(tuned(name="aten", reason="locked"))
    chosen()
    gm.freeze(path)
    environment = {
        **os.environ,
        "GRISTMILL_LOCK_FILE": str(path),
        "GRISTMILL_CACHE_DIR": str(path.parent / "another"),
    }

    def start(code):
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    done = start(START)
    assert (done.returncode, done.stdout) == (0, "locked\n"), done.stderr
    assert done.stderr.count("FrozenWarning") == 1
    made = {p.name for p in (path.parent / "another").glob("*")}
    assert made <= {"native"}  # the miss was not tuned
    Lock(path, read_lock(path).plans, strict=True).write()
    assert "it is strict" in start(COMPILED).stderr
    path.unlink()
    assert "does not exist" in start(START).stderr


def test_what_a_lock_has_no_plan_for_is_said_once_an_op_and_takes_what_is_near(path):
    save(tuned(64, "inductor"), tuned(1024))
    chosen()
    gm.freeze(path)
    with say(r"lock.json.*has no plan for rms_norm\(.*128x256.*nothing is tuned"):
        near = chosen(128)
    assert (near.origin, near.candidate) == ("neighbour", Candidate("inductor"))
    with warns():
        assert chosen(1024).origin == "vendor"  # the store has one, and has no say
        assert chosen(128) == near
    silu = load("silu_and_mul")
    with say("silu_and_mul"):
        select(silu, silu.problem((torch.empty(4, 8), None)), TARGET, "eager")


def test_a_strict_lock_refuses_what_it_has_no_plan_for(path):
    save(tuned())
    plan = chosen()
    gm.freeze(path, strict=True)
    assert chosen() == plan
    for ask in (lambda: chosen(128), lambda: gm.rms_norm(torch.randn(128, 256), torch.randn(256))):
        with pytest.raises(gm.FrozenError, match=r"no plan for .* it is strict.* Freeze again"):
            ask()
    gm.freeze(path, plans="file", strict=False)
    with say("no plan for"):
        chosen(128)


def test_a_plan_of_other_code_does_not_run(path):
    save(tuned())
    untuned = chosen(128 << 5)
    chosen()
    gm.freeze(path)
    gm.thaw()
    text = path.read_text()
    source = implementation("rms_norm", "aten").source_hash
    path.write_text(text.replace(source, "0123456789abcdef"))
    gm.freeze(path, plans="file")
    with say("a plan of rms_norm/aten as it was in another version"):
        found = chosen()
    assert (found.origin, found.candidate) == (untuned.origin, untuned.candidate)
    with warns():
        chosen()
    assert len(list(read_lock(path).stale())) == 2
    gm.freeze(path, plans="file", strict=True)
    with pytest.raises(gm.FrozenError, match="as it was in another version"):
        chosen()


def test_a_lock_of_another_device_says_so(path):
    elsewhere = dataclasses.replace(tuned().plan, target="cuda:sm_90:132:NVIDIA H200")
    entry = dataclasses.replace(tuned(), plan=elsewhere)
    Lock(path, [LockedPlan(entry)]).write()
    gm.freeze(path, plans="file")
    with say(rf"on {TARGET.name} \(it is of NVIDIA H200\)"):
        assert chosen().origin == "vendor"


def test_nothing_is_tuned_while_frozen(path, monkeypatch):
    values = (torch.randn(64, 256), torch.randn(256))
    gm.rms_norm(*values)
    gm.freeze(path)
    before = store().summary().measurements
    with warns():
        op = gm.get_op("rms_norm", values, tune="now")  # untuned: outside a freeze it is tuned
    assert op.plan.origin == "vendor"
    with pytest.raises(gm.FrozenError, match=r"rms_norm\(.* is not tuned: plans are frozen"):
        gm.tune("rms_norm", values)
    assert store().summary().measurements == before == 0


def test_freezing_what_the_store_has_takes_unused_plans_along(path, pack_dir):
    save(tuned(64, reason="mine"), tuned(96, **OLD))
    ship(pack_dir, tuned(64), tuned(1024, "inductor"), measurements=[beside(tuned(1024))])
    gm.freeze(path, plans="stored")
    found = {p.kept.axes["rows"]: p for p in read_lock(path).plans}
    assert {rows: p.plan.reason for rows, p in found.items()} == {
        64: "mine",
        1024: "fastest at 5.00 us",
    }
    with warns():
        assert chosen(1024).fallback == Candidate("aten")
    store().prune(everything=True)
    with warns():
        assert chosen().reason == "mine"


def test_what_was_used_goes_before_what_is_stored(path):
    save(tuned(reason="used"))
    chosen()
    save(tuned(reason="stored"))
    gm.freeze(path, plans="stored")
    assert chosen().reason == "used"


def test_of_several_plans_of_a_bucket_the_first_that_can_run_is_taken(path):
    """As where a kernel refuses one problem of a bucket: it used a neighbour there."""
    gone = dataclasses.replace(tuned().plan, candidate=Candidate("aten", Config({"NO": 1})))
    near = dataclasses.replace(tuned(name="inductor").plan, origin="neighbour", fallback=None)
    entries = [dataclasses.replace(tuned(), plan=p) for p in (gone, near)]
    Lock(path, map(LockedPlan, entries)).write()
    gm.freeze(path, plans="file")
    with warns():
        assert chosen().candidate == Candidate("inductor")


def test_the_order_of_a_buckets_plans_is_measured_then_near_then_untuned(path):
    made = tuned().plan
    family, axes = tuned().family, tuned().axes
    for origin, octaves, name in (
        ("vendor", 0.0, "aten"),
        ("neighbour", 1.0, "aten"),
        ("neighbour", 0.5, "inductor"),
        ("tuned", 0.0, "aten"),
        ("tuned", 0.0, "inductor"),
    ):
        source = implementation("rms_norm", name).source_hash
        candidate = {"candidate": Candidate(name), "source_hash": source}
        plan = dataclasses.replace(made, origin=origin, **candidate)
        frozen.record(plan, family, axes, octaves)
    found = [(u.plan.origin, u.plan.candidate.implementation) for u in frozen.used()]
    assert found == [
        ("tuned", "inductor"),  # the last one
        ("neighbour", "inductor"),
        ("neighbour", "aten"),
        ("vendor", "aten"),
    ]


def test_what_was_only_explained_or_is_tuned_since_is_not_frozen(path):
    values = (torch.randn(64, 256), torch.randn(256))
    gm.explain("rms_norm", values)
    assert frozen.used() == []
    op = gm.get_op("rms_norm", values, budget_s=1, trials=1)
    assert op.plan.origin == "tuned"
    assert [u.plan for u in frozen.used()] == [op.plan]
    gm.freeze(path)
    assert len(read_lock(path).plans) == 1


def test_what_was_used_and_is_tuned_since_is_frozen_as_it_was_tuned(path):
    values = (torch.randn(64, 256), torch.randn(256))
    save(tuned(name="inductor", reason="before"))
    assert chosen().reason == "before"  # under `eager` only
    assert gm.tune("rms_norm", values, budget_s=1, trials=1).plans
    gm.freeze(path)
    (entry,) = read_lock(path).plans
    assert entry.plan == chosen()
    assert entry.plan.reason != "before"


def test_what_was_used_untuned_and_is_tuned_since_is_frozen(path):
    values = (torch.randn(64, 256), torch.randn(256))
    with pytest.raises(gm.FrozenError, match=r'nothing to freeze.*`plans="stored"`'):
        gm.freeze(path)
    gm.rms_norm(*values)
    plans = gm.tune("rms_norm", values, budget_s=1, trials=1).plans
    gm.freeze(path)
    (entry,) = read_lock(path).plans
    assert (entry.plan.origin, entry.plan.candidate) == ("tuned", plans["eager"].candidate)


def test_a_frozen_rank_has_its_locks_plan_and_keeps_no_other(path):
    save(tuned(reason="locked"))
    chosen()
    gm.freeze(path)
    store().prune(everything=True)
    problem = OP.problem((torch.empty(64, 256), torch.empty(256), 1e-6))
    elsewhere = tuned(name="inductor", reason="another rank's").plan
    found = _taken_over(elsewhere, (OP, (), problem, TARGET), 1)
    assert found.reason == "locked"
    assert store().plans() == []
    gm.thaw()
    assert _taken_over(elsewhere, (OP, (), problem, TARGET), 1).reason == "another rank's"


def test_bound_calls_ask_again_when_plans_are_frozen_and_thawed(path):
    values = (torch.randn(64, 256), torch.randn(256))
    bound = dispatcher("rms_norm").bound
    gm.rms_norm(*values)
    assert bound
    gm.freeze(path)
    assert not bound
    gm.rms_norm(*values)
    assert bound
    gm.thaw()
    assert not bound


def test_a_call_that_plans_change_under_runs_its_plan_once_and_asks_again(path, monkeypatch):
    values = (torch.randn(64, 256), torch.randn(256))
    save(tuned(reason="locked"))
    chosen()
    bound = dispatcher("rms_norm").bound

    def slowly(*question):
        plan = select(*question)
        if not path.exists():
            gm.freeze(path)
        return plan

    monkeypatch.setattr(_dispatch, "select", slowly)
    gm.rms_norm(*values)
    assert path.exists()
    assert not bound  # the plan was the store's, and now the lock's holds
    gm.rms_norm(*values)
    assert len(bound) == 1


def test_thawing_wins_over_the_setting(path):
    save(tuned(reason="locked"))
    chosen()
    gm.freeze(path)
    gm.thaw()
    save(tuned(reason="stored"))
    with settings.override(lock_file=path):
        frozen._read.cache_clear()
        assert chosen().reason == "locked"
        gm.thaw()
        assert chosen().reason == "stored"
        gm.freeze(plans="file")  # the setting names the file
        assert chosen().reason == "locked"


def test_explain_says_that_plans_are_frozen(path):
    save(tuned())
    values = (torch.randn(64, 256), torch.randn(256))
    gm.rms_norm(*values)
    gm.freeze(path)
    explanation = gm.explain("rms_norm", values)
    assert explanation.frozen_to == explanation.to_json()["frozen_to"] == str(path)
    assert f"plans are frozen to {path}" in str(explanation)


@pytest.fixture
def uneven_prior():
    """The `row` kernel's prior, made to differ within a bucket."""
    impl = implementation("rms_norm", "row")
    usual = impl.prior

    def prior(problem, target):
        warps = 2 if problem["x"].shape[0] < 62 else 4
        return {**usual(problem, target), "num_warps": warps}

    object.__setattr__(impl, "prior", prior)
    yield
    object.__setattr__(impl, "prior", usual)


def test_an_untuned_choice_is_the_rule_of_its_implementation(path, uneven_prior):
    """Two problems of one bucket may have two priors: both run as they did."""
    target = named_target("sm_90")
    problems = [OP.sized({"rows": rows, "N": 4096}, "bfloat16") for rows in (60, 64)]
    assert len({OP.bucket(p) for p in problems}) == 1
    plans = [select(OP, p, target, "eager") for p in problems]
    assert [(p.origin, p.candidate.config["num_warps"]) for p in plans] == [
        ("prior", 2),
        ("prior", 4),
    ]
    gm.freeze(path)
    gm.freeze(path, plans="file")
    with warns():
        assert [select(OP, p, target, "eager") for p in problems] == plans
