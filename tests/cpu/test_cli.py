"""The command line: what each command prints, its JSON, its exit codes, its messages."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from gristmill import settings
from gristmill.cli.app import COMMANDS, app
from gristmill.cli.doctor import Check
from gristmill.cli.problems import problem_of, requested
from gristmill.core.problem import TensorSpec
from gristmill.core.registry import load
from gristmill.errors import InvalidInputError
from gristmill.tuning.runner import TuningRun

TINY = ("rms_norm", "--shape", "x=4x64", "--shape", "weight=64", "--device", "cpu")
ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}


def run_json(run, *arguments, code=0):
    return json.loads(run(*arguments, "--json", code=code).stdout)


@pytest.fixture
def only_aten(monkeypatch):
    """Tuning without Inductor, which takes seconds to compile for a CPU."""
    original = TuningRun.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self._fixed = [i for i in self._fixed if i.kind == "vendor"]

    monkeypatch.setattr(TuningRun, "__init__", init)


# ------------------------------------------------------------------------------------ the group


def test_help_lists_every_command_and_the_exit_codes(run):
    text = run("--help").stdout
    assert all(re.search(rf"^\W*{name}\b", text, re.MULTILINE) for name in COMMANDS)
    assert "Exit codes" in text
    assert "130" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(run, name):
    assert "Usage" in run(name, "--help").stdout


def test_help_does_not_import_torch():
    code = "import sys; from gristmill.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "assert 'typer' in sys.modules and not {'torch', 'triton'} & set(sys.modules)"
    command = [sys.executable, "-c", code, "--help"]
    done = subprocess.run(
        command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "tune" in done.stdout


def test_python_m_gristmill_is_the_same_command():
    command = [sys.executable, "-m", "gristmill", "list", "--json"]
    done = subprocess.run(
        command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {op["name"] for op in json.loads(done.stdout)["ops"]} >= {"matmul", "rms_norm"}


def test_an_unknown_command_and_an_unknown_option_are_usage_errors(run):
    assert "tune" in run("tuen", code=2).output
    run("tune", "--nonsense", code=2)


@pytest.mark.parametrize(
    ("arguments", "given", "allowed", "advice"),
    [
        (
            ("explain", "rms_nrm", "-w", "x"),
            "'rms_nrm'",
            "layer_norm, layer_norm_backward, matmul",
            "Did you mean",
        ),
        (("explain", "rms_norm"), "no problem", "needs one", "--workload"),
        (("explain", "rms_norm", "-w", "llama"), "'llama'", "llama3-8b-m1", "Choose one"),
        (("explain", "rms_norm", "-s", "y=3"), "'y=3'", "x, weight", "Write"),
        (("explain", "rms_norm", "-s", "x=4xa"), "'x=4xa'", "joined by 'x'", "Write"),
        (("explain", "rms_norm", "-s", "x=4:t"), "'x=4:t'", "two or more", "Write"),
        (("explain", "rms_norm", "-s", "x=4x8", "-s", "weight=9"), "(9,)", "(8,)", "Pass"),
        (
            ("explain", "rms_norm", "-s", "x=4x8", "--dtype", "int8"),
            "'int8'",
            "bfloat16",
            "Choose one",
        ),
        (
            ("explain", "rms_norm", "-s", "x=4x8", "--scalar", "eps=a"),
            "'eps=a'",
            "float",
            "Write",
        ),
        (
            ("explain", "matmul", "-s", "a=4x8", "-s", "b=9x4"),
            "",
            "",
            "",
        ),
        (
            ("explain", "rms_norm", "-w", "llama3-8b-m1", "-s", "x=4x8"),
            "together",
            "one way",
            "Leave one out",
        ),
        (
            ("explain", "rms_norm", "-s", "x=4x8", "--objective", "fast"),
            "'fast'",
            "eager or graph",
            "Choose one",
        ),
        (("tune", "rms_norm", "-s", "x=4x8", "--device", "tpu"), "'tpu'", "'cuda'", "Choose"),
        (
            ("tune", "rms_norm", "-s", "x=4x8", "--device", "cuda:99"),
            "cuda:99",
            "torch sees",
            "doctor",
        ),
        (("tune", *TINY, "--budget", "-1"), "-1", "positive", "Raise"),
        (("tune", *TINY, "--trials", "0"), "0", "at least 1", "Raise"),
        (("bench", *TINY, "-p", "atn"), "'atn'", "aten", "Did you mean"),
        (("bench", *TINY, "--out", "/no/x.json"), "'/no/x.json'", "is no folder", "Name a file"),
        (("tune", "matmul", "-s", "a=4x8"), "'b'", "matmul(Tensor a", "--shape b="),
        (("tune", "rms_norm", "-s", "x=9999999999x999999999"), "x=9", "fewer than", "smaller"),
        (("tune", "rms_norm", "-s", "x=99999999x9999999"), "x=b", "GiB", "smaller"),
        (("cache", "prune"), "nothing to remove", "--op", "Add one"),
        (("cache", "show", "--op", "rmsnorm"), "'rmsnorm'", "rms_norm", "Did you mean"),
    ],
)
def test_bad_input_says_what_was_given_what_is_allowed_what_to_do(
    run, arguments, given, allowed, advice
):
    result = run(*arguments, code=2)
    message = " ".join(result.stderr.split())
    assert message.startswith("error: ")
    assert "Traceback" not in result.output
    assert given in message
    assert allowed in message
    assert advice in message
    assert not result.stdout


# ------------------------------------------------------------------------------------- problems


def test_a_problem_by_shapes_has_layouts_scalars_and_defaults():
    matmul = load("matmul")
    problem = problem_of(matmul, ["a=5x8", "b=8x6:t"], (), "float16")
    assert problem["a"] == TensorSpec.contiguous((5, 8), "float16")
    assert problem["b"] == TensorSpec((8, 6), (1, 8), "float16")
    rms_norm = load("rms_norm")
    problem = problem_of(rms_norm, ["x=2x3x8"], ["eps=1e-3"], "float32")
    assert problem["x"].shape == (2, 3, 8)
    assert problem["weight"] is None
    assert problem["eps"] == 1e-3


def test_a_missing_tensor_is_named():
    with pytest.raises(InvalidInputError, match="'b'"):
        problem_of(load("matmul"), ["a=5x8"], (), "float16")


def test_patterns_select_workloads_in_the_ops_order():
    op = load("rms_norm")
    names = [w.name for w in requested(op, ["llama3-8b-m16", "llama3-8b-m1"], None, None, "")]
    assert names == ["llama3-8b-m1", "llama3-8b-m16"]
    assert len(requested(op, ["*"], None, None, "")) == len(op.workloads)


# ------------------------------------------------------------------------------ list and explain


def test_list_shows_ops_and_one_op(run):
    assert "rms_norm" in run("list").stdout
    text = run("list", "rms_norm").stdout
    assert "llama3-8b-m512" in text
    assert "aten" in text
    data = run_json(run, "list", "rms_norm")
    assert {i["name"] for i in data["implementations"]} >= {"aten", "inductor", "row"}
    assert data["workloads"][0]["args"]["x"]["shape"]


def test_explain_before_any_tuning(run):
    text = run("explain", *TINY).stdout
    assert "nothing is measured" in text
    assert "Triton kernels need a GPU" in text
    (one,) = run_json(run, "explain", *TINY)["explanations"]
    assert one["plan"]["implementation"] == "aten"
    assert {row["status"] for row in one["rows"]} == {"not measured", "unsupported"}


# ------------------------------------------------------------------------------- tune and cache


def test_tune_keeps_a_plan_that_explain_and_cache_show_and_prune_removes(run, only_aten):
    text = run("tune", *TINY, "--budget", "20", "--trials", "2").stdout
    assert "plan (eager): aten" in text
    assert "kept in" in text
    (one,) = run_json(run, "explain", *TINY)["explanations"]
    assert one["plan"]["origin"] == "tuned"
    (row,) = [row for row in one["rows"] if row["chosen"]]
    assert row["device_us"] > 0
    assert row["error"] <= 1
    shown = run_json(run, "cache", "show")
    assert shown["state"] == "ok"
    assert {p["objective"] for p in shown["plan_list"]} == {"eager", "graph"}
    assert "rows=4,N=64" in run("cache", "show").stdout
    assert run_json(run, "cache", "prune", "--op", "matmul")["removed"] == 0
    assert run_json(run, "cache", "prune", "--stale")["removed"] == 0
    assert run_json(run, "cache", "prune", "--older-than", "1")["removed"] == 0
    assert run_json(run, "cache", "prune", "--all")["removed"] > 0
    assert "nothing is kept" in run("cache", "show").stdout


def test_tune_as_json_reports_each_problem(run, only_aten):
    data = run_json(run, "tune", *TINY, "--budget", "20")
    (one,) = data["problems"]
    assert one["candidates"] == {"ok": 1}
    assert one["explanation"]["plan"]["origin"] == "tuned"
    assert data["store"]["plans"] == 2
    assert data["interrupted"] is False


def test_tuning_that_fails_is_exit_code_1(run, monkeypatch):
    monkeypatch.setattr(TuningRun, "_search", lambda self, pool: None)
    result = run("tune", *TINY, "--budget", "5", code=1)
    assert "gave right results" in " ".join(result.stderr.split())
    data = run_json(run, "tune", *TINY, "--budget", "5", code=1)
    assert "no plan" in data["problems"][0]["error"]


def test_control_c_keeps_what_was_measured_and_is_exit_code_130(run, monkeypatch):
    original = TuningRun._tell

    def tell(self, candidate, outcome):
        original(self, candidate, outcome)
        raise KeyboardInterrupt

    monkeypatch.setattr(TuningRun, "_tell", tell)
    result = run("tune", *TINY, "--budget", "20", code=130)
    assert "what was measured is kept" in result.stderr
    assert "plan (eager): aten" in result.stdout
    (one,) = run_json(run, "explain", *TINY)["explanations"]
    assert one["plan"]["origin"] == "tuned"


def test_a_real_interrupt_ends_a_process_with_130(tmp_path):
    command = [sys.executable, "-m", "gristmill", "tune", *TINY, "--budget", "60"]
    environment = {**os.environ, **ENVIRONMENT, "GRISTMILL_CACHE_DIR": str(tmp_path)}
    environment["GRISTMILL_PROGRESS"] = "1"
    process = subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True)
    database = tmp_path / "plans.sqlite3"  # there from the lease on
    deadline = time.monotonic() + 60
    while not database.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


# ---------------------------------------------------------------------------------------- doctor


def test_doctor_looks_at_everything(run):
    data = run_json(run, "doctor", "--device", "cpu")
    checks = {c["name"]: c for c in data["checks"]}
    assert checks.keys() >= {"python", "torch", "triton", "device", "compiler", "worker"}
    assert checks["plan store"]["status"] == "ok"
    assert all(c["advice"] for c in data["checks"] if c["status"] == "warn")
    assert data["ok"] is True


def test_doctor_sees_a_store_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").touch()
    with settings.override(cache_dir=tmp_path / "file" / "cache"):
        data = run_json(run, "doctor", "--device", "cpu")
    (kept,) = [c for c in data["checks"] if c["name"] == "plan store"]
    assert kept["status"] == "warn"
    assert "GRISTMILL_CACHE_DIR" in kept["advice"]


def test_doctor_fails_with_advice(run, monkeypatch):
    monkeypatch.setitem(run_doctor_globals(), "_worker", lambda device, target: boom())
    data = run_json(run, "doctor", "--device", "cpu", code=1)
    (worker,) = [c for c in data["checks"] if c["name"] == "worker"]
    assert worker["status"] == "fail"
    assert "boom" in worker["found"]
    assert worker["advice"]


def run_doctor_globals():
    return vars(sys.modules[Check.__module__])


def boom():
    raise RuntimeError("boom")


@pytest.mark.parametrize("width", [80, 140])
def test_explain_has_every_reason_on_any_terminal(fresh_store, width):
    result = CliRunner().invoke(app, ["explain", *TINY], env={"COLUMNS": str(width)})
    assert "Triton kernels need a GPU" in result.stdout or torch.cuda.is_available()
    assert max(map(len, result.stdout.splitlines()[3:])) <= width


def test_layout_letters_are_explained_where_they_are_shown(run):
    assert "unit stride in the dimension before the last" in run("list", "matmul").stdout
    assert "unit stride" not in run("explain", *TINY).stdout


def test_version(run):
    assert run("--version").stdout.startswith("gristmill 0.")


def test_doctor_shows_a_device_that_is_not_there_as_a_failed_check(monkeypatch, run):
    monkeypatch.setattr("gristmill.cli.doctor._checks", lambda where: iter(()))
    (check,) = run_json(run, "doctor", "--device", "cuda:99", code=1)["checks"]
    assert check["name"] == "--device cuda:99"
    assert check["status"] == "fail"


# ----------------------------------------------------------------------------------------- bench


def test_bench_prints_a_table_and_json_and_writes_a_report(run, tmp_path):
    providers = ("-p", "gristmill", "-p", "copy", "-p", "aten", "--pairs", "50")
    text = run("bench", *TINY, *providers).stdout
    assert "speed-up" in text
    assert "roofline" in text
    out = tmp_path / "report.json"
    data = run_json(run, "bench", *TINY, *providers, "--out", str(out))
    assert json.loads(out.read_text())["results"] == data["results"]
    assert [row["provider"] for row in data["results"][0]["rows"]] == ["gristmill", "copy", "aten"]


def test_bench_shows_what_cannot_run_with_its_reason(run):
    text = run("bench", *TINY, "-p", "aten", "-p", "row").stdout
    assert "unsupported" in text
    assert "Triton kernels need a GPU" in text


def test_tables_are_written_and_checked_by_a_command(run, tmp_path):
    results = ("--results", str(Path(__file__).parents[2] / "benchmarks" / "results"))
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- benchmarks:begin -->\nold\n<!-- benchmarks:end -->\nafter\n")
    assert "run `gristmill tables" in run("tables", str(file), *results, "--check", code=1).stderr
    assert "old" in file.read_text()
    assert run_json(run, "tables", str(file), *results)["written"] is True
    assert "| workload |" in file.read_text()
    assert run_json(run, "tables", str(file), *results, "--check")["up_to_date"] is True
    file.write_text("no markers")
    assert "Add the two lines" in run("tables", str(file), *results, code=2).stderr
    assert "is no file" in run("tables", str(tmp_path / "none.md"), *results, code=2).stderr


def test_an_app_is_a_typer_app():
    assert isinstance(app, typer.Typer)
