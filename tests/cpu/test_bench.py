"""Benchmarks: providers, correctness first, statistics, reports, the generated tables."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from gristmill.bench import overhead, runner, startup, tables
from gristmill.bench.providers import GRISTMILL, Provider, default_names
from gristmill.bench.report import print_compact, print_report
from gristmill.bench.results import Report, Result, Row, Versus
from gristmill.bench.roofline import Ceilings, roofline
from gristmill.bench.stamp import Stamp
from gristmill.bench.suite import bench, fits_cpu
from gristmill.core.op import Cost, Workload
from gristmill.core.registry import load
from gristmill.errors import InvalidInputError
from gristmill.specs.matmul import problem_of as matmul_problem
from gristmill.specs.rms_norm import problem_of

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


def test_default_providers_are_the_plan_the_copy_and_what_a_user_has():
    assert default_names(load("matmul")) == (GRISTMILL, "copy", "aten", "inductor")


def test_few_pairs_give_no_verdict():
    (result,) = tiny(pairs=10).results
    assert result.versus[0].never_slower is None
    assert not result.slower


def test_an_unknown_provider_is_refused():
    with pytest.raises(InvalidInputError, match="aten"):
        tiny(["attn"])


def fake(monkeypatch, **calls):
    """Providers of these names, made of `call(values)`."""
    original = runner.make_provider

    def make(name, op, problem, values):
        if name not in calls:
            return original(name, op, problem, values)
        call = lambda: calls[name](*values)  # noqa: E731
        return Provider(name, "other", "fake", call, call)

    monkeypatch.setattr(runner, "make_provider", make)


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


def test_what_cannot_run_here_is_unsupported_and_no_failure():
    (result,) = tiny([GRISTMILL, "row"]).results
    assert result.rows[1].status == "unsupported"
    assert "Triton kernels need a GPU" in result.rows[1].reason
    assert not result.failed


def test_a_slower_plan_is_shown_as_a_loss(monkeypatch):
    def fast(x, weight, eps):
        return answer

    op = load("rms_norm")
    values = op.inputs(TINY.problem, torch.Generator().manual_seed(0), "normal")
    answer = op.reference(*values)
    original = op.reference
    fake(monkeypatch, aten=fast)
    slow = lambda *args: (time.sleep(2e-4), original(*args))[1]  # noqa: E731

    def make(name, op, problem, values, made=runner.make_provider):
        if name != GRISTMILL:
            return made(name, op, problem, values)
        call = lambda: slow(*values)  # noqa: E731
        return Provider(name, "selected", "slow [tuned]", call, call)

    monkeypatch.setattr(runner, "make_provider", make)
    report = tiny()
    assert report.slower
    console = Console(width=120, record=True, file=io.StringIO())
    print_report(console, report)
    print_compact(console, report)
    text = console.export_text()
    assert "slower than aten (eager)" in text
    assert "0." in text


def test_a_reference_that_raises_fails_its_workload_only(monkeypatch):
    monkeypatch.setattr(runner, "truth", lambda op, values: 1 / 0)
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
    monkeypatch.setattr("gristmill.bench.roofline.COPY_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr("gristmill.bench.roofline.MATRIX_SIZE", {"cpu": 64})
    ceilings = Ceilings(CPU)
    assert ceilings.copy_bytes_per_s > 0
    assert ceilings.matrix(torch.float32) == ceilings.matrix(torch.float32) > 0
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

    samples = runner._shuffled(calls, 50, measure)
    assert [len(times) for times in samples] == [50, 50, 50]
    assert len({tuple(seen[i : i + 3]) for i in range(0, len(seen), 3)}) > 1


def test_cpu_suites_leave_out_what_takes_minutes():
    op = load("matmul")
    fitting = [w.name for w in op.workloads if fits_cpu(op, w)]
    assert "llama3-8b-o-m16" in fitting
    assert "square-8192" not in fitting


# --------------------------------------------------------------------------------------- reports


def test_a_report_survives_a_file(tmp_path):
    report = tiny()
    path = tmp_path / "new" / "report.json"
    report.save(path)
    again = Report.load(path)
    assert again.results == report.results
    assert again.stamp == report.stamp


def test_a_stamp_says_where_a_report_comes_from():
    stamp = Stamp.of(CPU, commit="abc")
    assert stamp.versions.keys() >= {"gristmill", "torch", "triton"}
    assert stamp.command
    assert stamp.date.endswith("+00:00")
    assert stamp.commit
    if (ROOT / ".git").exists():
        assert len(stamp.commit) == 40


def made_report(results):
    stamp = Stamp("A GPU", "t", {"torch": "2.11", "triton": "3.6"}, "0" * 40, False, "2026", "c")
    ceilings = {"device": "cuda", "copy_bytes_per_s": 4e12, "flops_per_s": {"bfloat16": 7e14}}
    return Report("matmul", stamp, ceilings, tuple(results), ("left-out",), True)


def made_result(name, verdict, **changes):
    rows = (
        Row("gristmill", "selected", "ok", "tiled M=1 [tuned]", "", 0.5, 10.0, 4.0, 10.0, 9.0,
            1e12, 7e14, 0.9, 1.1),
        Row("tiled", "own", "ok", "tiled", "", 0.5, 10.0, 4.0, 10.0, 9.0, 1e12, 7e14, 0.9, 1.1),
        Row("aten", "other", "ok", "vendor", "", 0.5, 11.0, 5.0, 11.0, 10.0, 1e12, 6e14, 0.8, 1.0),
        Row("inductor", "other", "failed", "", "it | raised"),
    )  # fmt: skip
    versus = (Versus("aten", "eager", 1.1, 1.0, 1.2, verdict),)
    result = Result(
        name, "matmul(...)", 7_000_000_000, 10, rows, versus, 60, "compute", 9.0, "aten"
    )
    return replace(result, **changes)


def test_tables_show_wins_losses_failures_and_provenance(tmp_path):
    folder = tmp_path / "h200"
    made_report(
        [
            made_result("wins", True),
            made_result("loses", False),
            made_result("unsure", None),
            made_result("broke", True, reason="out of memory", rows=(), versus=()),
        ]
    ).save(folder / "matmul.json")
    text = tables.tables(tmp_path)
    assert "never slower |" in text
    assert "slower (aten, eager: 1.10x)" in text
    assert "too few pairs" in text
    assert "out of memory" in text
    assert "Never slower on 1 of 3 workloads" in text
    assert "left-out" in text
    assert "000000000000" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_the_overhead_table_has_the_floor(tmp_path):
    data = {
        "stamp": {"device": "A GPU"},
        "host_times": {
            "problem": "p",
            "times_us": {"F": 7.0, "bound": 9.1},
            "ratios": {"bound": [1.3, 1.2, 1.4]},
            "reason": "",
        },
        "import_ms": 1.0,
        "get_op": [{"rows": 16, "width": 4096, "get_op_ms": 9.0, "implementation": "row",
                    "origin": "tuned"}],
    }  # fmt: skip
    (tmp_path / "h200").mkdir()
    (tmp_path / "h200" / "overhead.json").write_text(json.dumps(data))
    text = tables.tables(tmp_path)
    assert "| bound | 9.10 | 1.30x |" in text
    assert "9.0 ms (row, tuned)" in text


def test_tables_are_put_between_the_markers_and_checked(tmp_path):
    file = tmp_path / "README.md"
    file.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    command = [sys.executable, "-m", "gristmill.bench.tables", str(file), "--results", "nowhere"]
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"}

    def call(*more):
        return subprocess.run([*command, *more], env=environment, check=False).returncode

    assert call("--check") == 1
    assert call() == 0
    assert call("--check") == 0
    assert tables.NOTHING in file.read_text()
    assert file.read_text().startswith("before\n")
    with pytest.raises(SystemExit):
        tables.replaced("no markers", "x")


def test_the_readmes_tables_are_those_of_the_committed_results():
    text = (ROOT / "README.md").read_text()
    assert tables.replaced(text, tables.tables(ROOT / "benchmarks" / "results")) == text


# -------------------------------------------------------------------------------------- overhead


def test_host_times_run_without_a_gpu_and_say_what_is_missing():
    times = overhead.host_times(CPU, rows=2, width=64, rounds=3)
    assert times.times_us.keys() == {"bound", "direct", "torch"}
    assert all(us > 0 for us in times.times_us.values())
    assert "launches no Triton kernel" in times.reason
    assert times.ratios == {}


def test_start_up_is_measured_in_new_processes():
    assert 0 < startup.import_ms(1) < 1000
    got = startup.cached_get_op(CPU, 4, 64, processes=1)
    assert got.implementation == "aten"
    assert got.origin == "vendor"
    assert got.get_op_ms > 0


@pytest.mark.slow
def test_the_gpu_sessions_script_runs_on_a_cpu(tmp_path):
    command = [sys.executable, "benchmarks/h200.py", "--out", str(tmp_path), "--budget", "5"]
    command += ["--workloads", "qk-norm-1x40x128", "--pairs", "50", "--processes", "1"]
    command += ["--providers", "gristmill", "copy", "aten", "--parts", "rms_norm", "overhead"]
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "qk-norm-1x40x128" in done.stdout
    assert Report.load(tmp_path / "rms_norm.json").results
    assert json.loads((tmp_path / "overhead.json").read_text())["import_ms"] > 0
