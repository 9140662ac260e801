"""Benchmarks: providers, correctness first, statistics, reports, the generated tables."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from gristmill.bench import checking, runner
from gristmill.bench.plain import plain_call
from gristmill.bench.providers import GRISTMILL, Provider, default_names
from gristmill.bench.report import print_compact, print_report
from gristmill.bench.roofline import roofline
from gristmill.bench.suite import bench, fits_cpu
from gristmill.core.op import Cost, Workload, as_tuple
from gristmill.core.problem import TensorSpec
from gristmill.core.registry import load, op_names
from gristmill.errors import InvalidInputError
from gristmill.measure.ceilings import Ceilings
from gristmill.specs.matmul import problem_of as matmul_problem
from gristmill.specs.rms_norm import problem_of
from gristmill.verify import compare, truth

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TINY = Workload("tiny", problem_of((4, 64), "float32"))
CEILINGS = Ceilings(CPU, copy_bytes_per_s=1e9, flops_per_s={"float32": 1e9})

pytestmark = pytest.mark.usefixtures("fresh_store")


def tiny(providers=(GRISTMILL, "copy", "aten"), workload=TINY, pairs=50, op="rms_norm", **options):
    return bench(
        load(op), [workload], providers, device=CPU, pairs=pairs, ceilings=CEILINGS, **options
    )


def test_a_report_has_every_provider_checked_timed_and_judged():
    report = tiny()
    (result,) = report.results
    assert [row.provider for row in result.rows] == [GRISTMILL, "copy", "aten"]
    ours, copy, aten = result.rows
    assert ours.what == "aten [vendor]"
    assert ours.error is not None
    assert 0 <= ours.error <= 1
    assert copy.error is None
    assert copy.speedup is None
    assert aten.speedup == 1
    assert result.baseline == "aten"
    assert result.limit == "memory"
    assert result.roofline_us == copy.device_us
    assert result.size_bytes == 2 * 4 * 64 * 4 + 64 * 4
    assert ours.bytes_per_s == pytest.approx(result.size_bytes / ours.device_us * 1e6)
    (versus,) = result.versus
    assert (versus.provider, versus.objective) == ("aten", "eager")
    assert versus.low <= versus.speedup <= versus.high
    assert isinstance(versus.never_slower, bool)
    assert not report.failed
    console = Console(width=160, record=True, file=io.StringIO())
    print_report(console, report)
    assert "aten [vendor]; not tuned for this problem: `gristmill tune`" in console.export_text()


def test_default_providers_are_the_plan_the_copy_and_what_a_user_has():
    assert default_names(load("matmul")) == (GRISTMILL, "copy", "torch", "aten", "inductor")


def test_few_pairs_give_no_verdict():
    (result,) = tiny(pairs=10).results
    assert result.versus[0].never_slower is None
    assert not result.slower


def test_an_unknown_provider_is_refused():
    with pytest.raises(InvalidInputError, match="aten"):
        tiny(["attn"])


def fake(monkeypatch, **calls):
    """Providers of these names, made of `call(values)`."""
    original = checking.make_provider

    def make(name, op, problem, values):
        if name not in calls:
            return original(name, op, problem, values)
        call = lambda: calls[name](*values)  # noqa: E731
        return Provider(name, "other", "fake", call, call)

    monkeypatch.setattr(checking, "make_provider", make)


def test_a_wrong_provider_is_a_row_that_is_not_timed(monkeypatch):
    fake(monkeypatch, aten=lambda x, weight, eps: torch.zeros_like(x))
    (result,) = tiny().results
    row = result.rows[2]
    assert row.status == "wrong"
    assert row.device_us is None
    assert "wrong in" in row.reason
    assert result.failed
    assert result.baseline is None


def test_a_provider_that_raises_is_a_row_with_its_reason(monkeypatch):
    def broken(x, weight, eps):
        raise RuntimeError("no such kernel")

    fake(monkeypatch, aten=broken)
    (result,) = tiny().results
    assert result.rows[2].reason == "RuntimeError: no such kernel"
    assert result.rows[0].status == "ok"


def test_torchs_own_call_is_timed_outside_the_bounds_but_judges_nothing(monkeypatch):
    fake(monkeypatch, torch=lambda x, weight, eps: torch.rms_norm(x, x.shape[-1:], weight) * 1.001)
    report = tiny((GRISTMILL, "torch", "aten"))
    (result,) = report.results
    row = result.rows[1]
    assert row.status == "outside"
    assert row.device_us is not None
    assert row.error is not None
    assert row.error > 1
    assert row.reason.startswith("outside the bounds by ")
    assert result.baseline == "aten"
    assert {v.provider for v in result.versus} == {"aten"}
    assert not report.failed
    console = Console(width=160, record=True, file=io.StringIO())
    print_report(console, report)
    print_compact(console, report)
    assert "timed, but in no verdict" in " ".join(console.export_text().split())


def test_torchs_own_call_within_the_bounds_is_judged_against():
    (result,) = tiny((GRISTMILL, "torch")).results
    assert result.rows[1].what == "torch.nn.functional.rms_norm"
    assert result.baseline == "torch"
    assert result.versus[0].provider == "torch"


def test_an_op_without_a_plain_call_falls_back_to_its_reference():
    op = replace(load("rms_norm"), schema="other(Tensor x) -> Tensor")
    what, call = plain_call(op, (x := torch.randn(3, 8),))
    assert what == "the op's reference"
    assert torch.equal(call(), op.reference(x))


@pytest.mark.parametrize("name", sorted(set(op_names()) - {"twice"}))
def test_plain_calls_give_what_the_op_gives(name):
    op = load(name)
    axes = op.axis_names
    base = op.sized(dict(zip(axes, (5, 24, 16), strict=False)), "float32")
    for problem in (base, *op.forms(base).values()):
        values = op.inputs(problem, torch.Generator().manual_seed(0), "normal")
        what, call = plain_call(op, values)
        assert what != "the op's reference"
        verdict = compare(as_tuple(call()), *truth(op, values), op.bounds(problem))
        assert verdict.ok, verdict.reason


def test_an_answer_kept_from_an_earlier_call_is_found(monkeypatch):
    kept = []

    def stale(x, weight, eps):
        kept.append(torch.rms_norm(x, x.shape[-1:], weight, eps))
        return kept[0]

    fake(monkeypatch, aten=stale)
    assert tiny().results[0].rows[2].status == "wrong"


def test_memory_is_poisoned_before_every_checked_call(monkeypatch):
    events = []
    original = checking.poison
    monkeypatch.setattr(checking, "poison", lambda t: (events.append("poison"), original(t))[1])

    def call(x, weight, eps):
        events.append("call")
        return torch.rms_norm(x, x.shape[-1:], weight, eps)

    fake(monkeypatch, aten=call)
    tiny(("aten",))
    checks = 2 * ["poison", "poison", "call"]
    assert events[: len(checks)] == checks
    assert "poison" not in events[len(checks) :]


@pytest.mark.parametrize("strides", [(64, 1), (1, 4), (0, 1), (70, 1)])
def test_values_are_renewed_in_place_whatever_their_layout(strides):
    spec = TensorSpec((4, 64), strides, "float32", aligned=False)
    old, new = spec.fill(torch.zeros(4, 64)), spec.fill(torch.randn(4, 64))
    pointer = old.data_ptr()
    checking.renew((old, None, 1e-6), (new, None, 1e-6))
    assert torch.equal(old, new)
    assert old.data_ptr() == pointer


def test_what_cannot_run_here_is_unsupported_and_no_failure():
    (result,) = tiny([GRISTMILL, "row"]).results
    assert result.rows[1].status == "unsupported"
    assert "Triton kernels need a GPU" in result.rows[1].reason
    assert not result.failed


def test_a_slower_plan_is_shown_as_a_loss(monkeypatch):
    original = load("rms_norm").reference
    fake(monkeypatch, aten=original)
    slow = lambda *args: (time.sleep(2e-3), original(*args))[1]  # noqa: E731

    def make(name, op, problem, values, made=checking.make_provider):
        if name != GRISTMILL:
            return made(name, op, problem, values)
        call = lambda: slow(*values)  # noqa: E731
        return Provider(name, "selected", "slow [tuned]", call, call)

    monkeypatch.setattr(checking, "make_provider", make)
    report = tiny()
    assert report.slower
    console = Console(width=120, record=True, file=io.StringIO())
    print_report(console, report)
    print_compact(console, report)
    text = console.export_text()
    assert "slower than aten (eager)" in text
    assert "not tuned" not in text
    assert "0." in text


def test_a_reference_that_raises_fails_its_workload_only(monkeypatch):
    monkeypatch.setattr(checking, "truth", lambda op, values: 1 / 0)
    report = tiny()
    assert "ZeroDivisionError" in report.results[0].reason
    assert report.failed


def test_a_deadline_skips_and_says_so():
    report = tiny(deadline=time.monotonic() - 1)
    assert report.results == ()
    assert report.skipped == ("tiny",)


def test_matmul_is_judged_by_its_operations():
    workload = Workload("small", matmul_problem(64, 64, 64, "float32"))
    report = tiny((GRISTMILL, "copy", "aten"), workload, op="matmul")
    (result,) = report.results
    assert result.limit == "compute"
    assert result.roofline_us == pytest.approx(2 * 64**3 / 1e9 * 1e6)
    assert result.rows[0].roofline_share == pytest.approx(
        result.roofline_us / result.rows[0].device_us
    )


def test_the_roofline_is_the_longer_of_bytes_and_operations():
    assert roofline(Cost(10**6, 100), 2.0, 1e12).limit == "memory"
    assert roofline(Cost(10**9, 100), 2.0, 1e12).time_us == pytest.approx(1000.0)
    assert roofline(Cost(10**9, 100), 2.0, None).time_us == 2.0


def test_ceilings_are_measured_here(monkeypatch):
    monkeypatch.setattr("gristmill.measure.ceilings.COPY_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr("gristmill.measure.ceilings.MATRIX_SIZE", {"cpu": 64})
    ceilings = Ceilings(CPU)
    assert ceilings.copy_bytes_per_s > 0
    assert ceilings.matrix("float32") == ceilings.matrix("float32") > 0
    assert ceilings.matrix("tf32") > 0
    assert json.loads(json.dumps(ceilings.to_json()))["device"] == "cpu"


def test_every_provider_is_timed_as_often_and_in_changing_order():
    seen = []
    calls = [lambda i=i: seen.append(i) for i in range(3)]

    def measure(some, count):
        assert len(some) == 3
        for _ in range(count):
            for call in some:
                call()
        return [[1.0] * count for _ in some]

    samples = runner._shuffled(calls, 50, 12, measure)
    assert [len(times) for times in samples] == [50, 50, 50]
    assert len({tuple(seen[i : i + 3]) for i in range(0, len(seen), 3)}) > 1


def test_cpu_suites_leave_out_what_takes_minutes():
    op = load("matmul")
    fitting = [w.name for w in op.workloads if fits_cpu(op, w)]
    assert "llama3-8b-o-m16" in fitting
    assert "square-8192" not in fitting
