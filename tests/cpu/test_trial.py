"""Trials in this process: what is blamed on whom, and what is alive when."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from gristmill.core.plan import Candidate
from gristmill.core.registry import implementation, load
from gristmill.errors import GristmillError
from gristmill.tuning import trial
from gristmill.tuning.timed import Effort
from gristmill.tuning.trial import Trials

CPU = torch.device("cpu")
BOTH = [Candidate("aten"), Candidate("aten")]


def problem():
    return load("rms_norm").sized({"rows": 4, "N": 32}, "float32")


@pytest.fixture
def trials():
    return Trials(problem(), CPU, 0)


def with_op(trials, **fields):
    trials.op = replace(trials.op, **fields)
    return trials


def test_verify_checks_every_variant_and_times_nothing(trials, monkeypatch):
    checked = []
    real = Trials.case
    monkeypatch.setattr(Trials, "case", lambda self, v: checked.append(v) or real(self, v))
    monkeypatch.setattr(trials.timer, "device_us", lambda *a: pytest.fail("timed"))
    outcomes = trials.verify(BOTH)
    assert checked == list(trials.op.variants)
    assert all(o.ok and o.device_us is None and 0 <= o.error <= 1 for o in outcomes)


def test_an_effort_without_host_and_graph_times_neither(monkeypatch):
    one = Trials(problem(), CPU, 0, Effort(host=False, graph=False))
    monkeypatch.setattr(one.timer, "host_us", lambda *a: pytest.fail("timed the host"))
    monkeypatch.setattr(one.timer, "graph_us", lambda *a: pytest.fail("timed a graph"))
    outcomes, samples = one.race(BOTH)
    assert all(o.ok and o.device_us and o.host_us is None and o.graph_us is None for o in outcomes)
    assert all(len(sample["device"]) == outcomes[0].repeats for sample in samples)
    assert one.measure(BOTH[0], None).host_us is None


def test_one_adversarial_variant_is_alive_at_a_time(trials, monkeypatch):
    alive: list[weakref.ref] = []
    real = trial.truth

    def truth(op, values):
        gc.collect()
        assert sum(r() is not None for r in alive) <= 1  # the usual one
        references, magnitudes = real(op, values)
        alive.append(weakref.ref(references[0]))
        return references, magnitudes

    monkeypatch.setattr(trial, "truth", truth)
    assert all(o.ok for o in trials.verify(BOTH))
    assert len(alive) == len(trials.op.variants)


@pytest.mark.parametrize("part", ["inputs", "reference"])
@pytest.mark.parametrize("kind", [RuntimeError, torch.OutOfMemoryError])
@pytest.mark.parametrize("do", ["verify", "race"])
def test_what_raises_on_one_variant_is_nobodys_outcome(trials, part, kind, do):
    last = trials.op.variants[-1]
    seen = []
    inputs, reference = trials.op.inputs, trials.op.reference

    def bad_inputs(problem, generator, variant):
        seen.append(variant)
        if part == "inputs" and variant == last:
            raise kind("no luck")
        return inputs(problem, generator, variant)

    def bad_reference(*values):
        if part == "reference" and seen[-1] == last:
            raise kind("no luck")
        return reference(*values)

    with_op(trials, inputs=bad_inputs, reference=bad_reference)
    with pytest.raises(GristmillError, match=r"no luck") as caught:
        getattr(trials, do)(BOTH)
    text = str(caught.value)
    assert repr(last) in text
    if kind is torch.OutOfMemoryError:
        assert "do not fit on cpu" in text
    else:
        assert ("input maker" if part == "inputs" else "reference") in text


def test_a_candidate_wrong_on_one_variant_is_wrong_and_is_not_timed(trials, monkeypatch):
    aten, calls = implementation("rms_norm", "aten"), []

    def wrong_for_large(x, weight, eps):
        calls.append(x)
        out = aten.call(x, weight, eps)
        return torch.zeros_like(out) if float(x.abs().max()) > 100 else out

    fake = replace(aten, call=wrong_for_large)
    named = {"aten": aten, "fake": fake}
    monkeypatch.setattr(trial, "implementation", lambda op, name: named[name])
    outcomes, samples = trials.race([Candidate("fake"), Candidate("aten")])
    assert [o.status for o in outcomes] == ["wrong", "ok"]
    assert "inputs: output 0 is wrong" in outcomes[0].reason
    assert not samples[0]
    assert samples[1]["device"]


def test_the_bound_call_of_a_kernel_is_checked_too(trials, monkeypatch):
    """The guarded run of a kernel is launched by Triton's JIT; users run the bound call."""
    row, aten = implementation("rms_norm", "row"), implementation("rms_norm", "aten")

    class Plain:
        def run(self, launches):
            for launch in launches:
                launch()

    def launcher(values, outputs, workspace, config):
        return (lambda: outputs[0].copy_(aten.call(*values)),)

    fake = replace(row, launcher=launcher, executor=Plain, supports=lambda p, t: None)
    monkeypatch.setattr(trial, "implementation", lambda op, name: fake)
    monkeypatch.setattr(Trials, "_with_resources", lambda self, outcome, *a: outcome)
    one = Candidate("row", row.config(None, trials.problem, trials.target))
    for bound, status, words in (
        (aten.call, "ok", ""),
        (lambda *v: aten.call(*v) * 1.5, "wrong", "bound, output 0 is wrong"),
        (lambda *v: aten.call(*v).double(), "wrong", "bound, output 0 has dtype float64"),
        (lambda *v: torch.nextafter(aten.call(*v), torch.tensor(9.0)), "ok", ""),
    ):
        monkeypatch.setattr(trial, "bind", lambda impl, config, values, bound=bound: bound)
        (outcome,) = trials.verify([one])
        assert outcome.status == status
        assert words in outcome.reason
