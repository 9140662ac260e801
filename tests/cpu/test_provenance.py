"""A plan after an upgrade: used by direct calls, measured again by `get_op`, told by `explain`."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace

import pytest
import torch

import gristmill as gm
from gristmill import tuning
from gristmill.cache.store import PlanStore, store
from gristmill.core.plan import Candidate
from gristmill.core.provenance import changed_since, provenance
from gristmill.core.registry import implementation, load
from gristmill.core.target import device_target
from gristmill.ops._dispatch import forget
from gristmill.selection.select import select

VALUES = (torch.randn(8, 64),)


def demoted(**versions):
    """This environment's versions, with others for some."""
    return json.dumps({**json.loads(provenance()), **versions}, sort_keys=True)


@pytest.fixture
def old_plan(fresh_store):
    """A plan for `VALUES` as an older Triton's environment kept it, for both objectives."""
    op = load("rms_norm")
    problem = op.problem(op.bind(VALUES))
    bucket, target = op.bucket(problem), device_target(torch.device("cpu"))
    for objective in ("eager", "graph"):
        plan = replace(
            select(op, problem, target, objective),
            candidate=Candidate("aten"),
            origin="tuned",
            source_hash=implementation("rms_norm", "aten").source_hash,
            reason="kept",
            provenance=demoted(triton="3.4.0"),
        )
        store().save_plan(plan, bucket.family(op.axes(problem)), dict(bucket.axes))
    forget("rms_norm")
    store().forget()
    return store().plan("rms_norm", bucket.key, target.key, "eager")


@pytest.fixture
def runs(monkeypatch):
    """Counts tuning runs, and lets none begin."""
    begun = []
    monkeypatch.setattr(
        tuning.TuningRun, "__init__", lambda self, *a, **k: begun.append(a) or pytest.fail("tuned")
    )
    return begun


def test_a_direct_call_uses_the_plan_and_says_nothing(old_plan, runs):
    assert old_plan.revalidate
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            y = gm.rms_norm(*VALUES)
    torch.testing.assert_close(y, torch.rms_norm(*VALUES, (64,), None, 1e-6))
    kept = gm.get_op("rms_norm", VALUES, tune="never").plan
    assert (kept.reason, kept.revalidate) == ("kept", True)
    assert not runs


def test_explain_says_what_has_changed(old_plan):
    explanation = gm.explain("rms_norm", VALUES)
    now = json.loads(provenance())["triton"]
    assert f"other versions (triton 3.4.0, here {now}): it is used as it is" in str(explanation)
    assert explanation.to_json()["plan"]["changed"] == f"triton 3.4.0, here {now}"


def test_get_op_measures_again_and_both_environments_keep_their_plans(old_plan, monkeypatch):
    bound = gm.get_op("rms_norm", VALUES, budget_s=5.0)
    assert not bound.plan.revalidate
    assert bound.plan.provenance == provenance()
    explanation = gm.explain("rms_norm", VALUES)
    assert "other versions" not in str(explanation)
    assert explanation.to_json()["plan"]["changed"] == ""
    key = (old_plan.op, old_plan.bucket, old_plan.target, "eager")
    monkeypatch.setattr(
        sys.modules["gristmill.cache.store"], "provenance", lambda: old_plan.provenance
    )
    theirs = PlanStore(store().folder).plan(*key)
    assert (theirs.reason, theirs.revalidate) == ("kept", False)


@pytest.mark.parametrize(
    ("kept", "changed"),
    [
        (provenance(), ""),
        ("", ""),
        ("interrupted", ""),
        ("[1]", ""),
        (demoted(driver="12040"), "driver 12040, here none"),
        (demoted(ptxas="12.9"), "ptxas 12.9, here none"),
    ],
)
def test_what_has_changed(kept, changed):
    if torch.cuda.is_available() and "driver" in changed:
        changed = f"driver 12040, here {json.loads(provenance())['driver']}"
    assert changed_since(kept) == changed
