"""Benchmarks as reports: files, stamps, generated tables, host overhead and start-up."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gristmill.bench import beside, overhead, startup, tables, tree
from gristmill.bench.results import Report, Result, Row, Versus
from gristmill.bench.stamp import Stamp
from gristmill.bench.suite import bench
from gristmill.core.op import Workload
from gristmill.core.registry import load
from gristmill.errors import InvalidInputError
from gristmill.measure.ceilings import Ceilings
from gristmill.specs.rms_norm import problem_of

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("fresh_store")


def test_a_report_survives_a_file(tmp_path):
    workload = Workload("tiny", problem_of((4, 64), "float32"))
    ceilings = Ceilings(CPU, copy_bytes_per_s=1e9)
    report = bench(load("rms_norm"), [workload], device=CPU, pairs=50, ceilings=ceilings)
    path = tmp_path / "new" / "report.json"
    report.save(path)
    again = Report.load(path)
    assert again.results == report.results
    assert again.stamp == report.stamp


def test_a_stamp_says_where_a_report_comes_from():
    stamp = Stamp.of(CPU)
    assert stamp.versions.keys() >= {"gristmill", "torch", "triton"}
    assert stamp.command
    assert stamp.date.endswith("+00:00")
    if (ROOT / ".git").exists():
        assert len(stamp.commit) == 40


def test_the_digest_is_of_paths_and_contents(tmp_path):
    package = tmp_path / "src" / "gristmill"
    files = {"b.py": b"two", "a/c.py": b"one", "a/note.txt": b"not a source"}
    for name, content in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(content)
    one, two = (hashlib.sha256(content).hexdigest() for content in (b"one", b"two"))
    listed = f"{one}  gristmill/a/c.py\n{two}  gristmill/b.py\n"
    assert tree.of_folder(package) == hashlib.sha256(listed.encode()).hexdigest()
    assert tree.of_folder() == Stamp.of(CPU).tree
    if shutil.which("git") is None:
        pytest.skip("no git")
    who = ("-c", "user.name=x", "-c", "user.email=x@y")
    for command in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "x")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert tree.of_commit("HEAD", tmp_path) == tree.of_folder(package)


def test_a_copy_knows_whether_it_is_the_stated_commit():
    here = tree.of_folder()
    for stated, dirty in ((f"abc:{here}", False), (f"abc:{'0' * 64}", True), ("abc", None)):
        stamp = Stamp.of(CPU, stated)
        assert (stamp.commit, stamp.dirty, stamp.tree) == ("abc", dirty, here)


def test_committed_results_that_say_they_are_clean_are_of_their_commit():
    for path in (ROOT / "benchmarks" / "results").rglob("*.json"):
        data = json.loads(path.read_text())
        stamp = data.get("stamp", data)
        if not stamp.get("tree") or stamp["dirty"] is not False:
            continue
        try:
            digest = tree.of_commit(stamp["commit"])
        except (OSError, subprocess.SubprocessError):
            pytest.skip("no git history")
        assert stamp["tree"] == digest, path


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
    assert "Never slower on 1 of 4 workloads, 1 failed; " in text
    assert "geometric mean of 3." in text
    assert "left-out" in text
    assert "000000000000" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_the_overhead_table_has_the_floor(tmp_path):
    data = {
        "stamp": {"device": "A GPU"},
        "host_times": [
            {"problem": "p", "kernel": "row WARPS=4", "times_us": {"F": 7.0, "bound": 9.1},
             "ratios": {"bound": [1.3, 1.2, 1.4]}, "reason": "", "new_size_us": 210.4},
            {"problem": "q", "kernel": "aten", "times_us": {"bound": 5.0}, "ratios": {},
             "reason": "not available: no kernel", "new_size_us": 90.0},
        ],
        "import_ms": 1.0,
        "get_op": [{"rows": 16, "width": 4096, "get_op_ms": 9.0, "implementation": "row",
                    "origin": "tuned"}],
    }  # fmt: skip
    (tmp_path / "h200").mkdir()
    (tmp_path / "h200" / "overhead.json").write_text(json.dumps(data))
    text = tables.tables(tmp_path)
    assert "| p | row | 7.00 | 9.10 (1.30x) | 210 |" in text
    assert "| q | aten |  | 5.00 | 90 |" in text
    assert "q: F is not available: no kernel." in text
    assert "9.0 ms (row, tuned)" in text


def test_tables_name_where_torch_is_outside_the_bounds(tmp_path):
    result = made_result("odd", True)
    loose = Row("torch", "other", "outside", "torch.mm", "far", 38.2, 8.0, 4.0, 8.0)
    made_report([replace(result, rows=(*result.rows, loose))]).save(tmp_path / "h" / "matmul.json")
    text = tables.tables(tmp_path)
    assert r"| 8.0\* |" in text
    assert "outside the bounds, so timed but in no verdict: torch on odd by 38.2x." in text


def test_a_wrong_plan_counts_in_the_summary(tmp_path):
    wrong = Row("gristmill", "selected", "wrong", "tiled", "wrong in 3")
    results = [made_result("a", True), made_result("b", True, rows=(wrong,), versus=())]
    text = tables.report_markdown(made_report(results))
    assert "Never slower on 1 of 2 workloads, 1 failed" in text


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
    with pytest.raises(InvalidInputError, match="Add the two lines"):
        tables.replaced("no markers", "x")


def test_the_readmes_tables_are_those_of_the_committed_results():
    text = (ROOT / "README.md").read_text()
    assert tables.replaced(text, tables.tables(ROOT / "benchmarks" / "results")) == text


# -------------------------------------------------------------------------------------- overhead


def test_host_times_run_without_a_gpu_and_say_what_is_missing():
    problem = load("rms_norm").sized({"rows": 2, "N": 64}, "float32")
    times = overhead.host_times(problem, "aten", CPU, rounds=3)
    assert times.times_us.keys() == {"bound", "direct", "registered", "torch"}
    assert all(us > 0 for us in times.times_us.values())
    assert times.new_size_us > 0
    assert "launches no Triton kernel" in times.reason
    assert times.ratios == {}


def test_start_up_is_measured_in_new_processes():
    assert 0 < startup.import_ms(1) < 1000
    got = startup.cached_get_op(CPU, 4, 64, processes=1)
    assert got.implementation == "aten"
    assert got.origin == "tuned"
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


# ------------------------------------------------------------------ results that are no op's report

STAMPED = {
    "stamp": {"device": "A GPU", "date": "2026-11-20T12:00", "commit": "f" * 40, "dirty": False}
}


def test_the_mlp_block_shows_its_losses_and_what_bounds_it():
    times = {"ours_us": 103.4, "ours_host_us": 170.5, "aten_us": 107.6, "aten_host_us": 96.4}
    result = {"tokens": 16, "training": True, "error": None, **times}
    result |= {"device_speedup": (1.04, 1.03, 1.05), "device_never_slower": True}
    result |= {"eager_speedup": (0.63, None, None), "eager_never_slower": False}
    wrong = {"tokens": 1, "training": False, "error": "ours is off by 0.5"}
    text = beside.mlp_markdown({**STAMPED, "results": [result, wrong]})
    row = "| 16 | forward and backward | 107.6 | 103.4 (host 170.5) | 1.04x (1.03 to 1.05), never"
    assert f"{row} slower | 0.63x, **slower** |" in text
    assert "ours is off by 0.5" in text
    assert text.endswith("2026-11-20, ffffffffffff.")


def test_counts_and_verdicts_are_a_line_each(tmp_path):
    counts = {"passed": 5591, "failed": 0, "skipped": 1, "seconds": 9.0}
    data = {**STAMPED["stamp"], "dirty": True, "total": counts, "steps": {"gpu": counts}}
    text = "`tests/gpu` on A GPU: 5,591 passed, 0 failed, 1 skipped. 2026-11-20, ffffffffffff"
    assert beside.tests_markdown(data) == f"{text} with local changes."
    tools = {"memcheck": {"verdict": "clean"}, "racecheck": {"verdict": "errors"}}
    text = beside.sanitizer_markdown({**STAMPED, "tools": tools})
    assert "memcheck clean, racecheck errors" in text
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "tests.json").write_text(json.dumps(data))
    assert tables.tables(tmp_path) == beside.tests_markdown(data)
