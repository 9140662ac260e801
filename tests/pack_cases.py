"""What tests of packs and of frozen plans share: plans of rms_norm on this CPU, packs of them."""

from __future__ import annotations

import torch

from gristmill.cache import shipped
from gristmill.cache.packs import KeptPlan, Pack
from gristmill.cache.shipped import pack_name
from gristmill.cache.store import store
from gristmill.core.plan import Candidate, Measurement, Outcome, Plan
from gristmill.core.provenance import provenance
from gristmill.core.registry import implementation, load
from gristmill.core.target import device_target
from gristmill.selection.select import select

TARGET = device_target(torch.device("cpu"))
OP = load("rms_norm")
OLD = {"source_hash": "old"}


def problem(rows=64):
    values = (torch.empty(rows, 256), torch.empty(256), 1e-6)
    return OP.problem(values)


def kept(rows=64, name="inductor", **fields):
    impl, bucket = implementation("rms_norm", name), OP.bucket(problem(rows))
    defaults = {
        "candidate": Candidate(name),
        "source_hash": impl.source_hash,
        "fallback": Candidate("aten"),
        "evidence": Outcome("ok", device_us=5.0, repeats=60),
        "reason": "fastest at 5.00 us",
        "provenance": provenance(),
    }
    plan = Plan(
        op="rms_norm",
        bucket=bucket.key,
        target=TARGET.key,
        objective="eager",
        origin="tuned",
        **{**defaults, **fields},
    )
    return KeptPlan(plan, bucket.family(OP.axes(problem(rows))), dict(bucket.axes), 1.0)


def beside(entry, name="aten", at=1.0):
    """A measurement of an implementation, for the bucket of a plan."""
    plan = entry.plan
    source = implementation("rms_norm", name).source_hash
    outcome = Outcome("ok", device_us=6.0)
    of = (plan.bucket, plan.target, str(problem()))
    return Measurement(plan.op, Candidate(name), source, *of, outcome, provenance(), at)


def ship(folder, *plans, measurements=()):
    Pack(plans, tuple(measurements)).write(folder / pack_name(TARGET.key))
    shipped._read.cache_clear()


def chosen(rows=64):
    return select(OP, problem(rows), TARGET, "eager")


def tuned(rows=64, name="aten", **fields):
    """A plan of the vendor's call, which is its own fallback."""
    return kept(rows, name, **{"fallback": Candidate("aten"), **fields})


def save(*entries):
    """Keep plans in the user's store."""
    for entry in entries:
        store().save_plan(entry.plan, entry.family, entry.axes)
