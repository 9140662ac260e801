"""Providers by registration, suites over several ops, and their command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import gristmill.bench as face
from gristmill.bench.providers import default_names, known_names
from gristmill.bench.results import load_reports, save_reports
from gristmill.bench.suite import bench, bench_all
from gristmill.bench.suites import SUITES, suite_named
from gristmill.cli.app import app
from gristmill.core.op import Workload
from gristmill.core.registry import load, op_names
from gristmill.errors import InvalidInputError, RegistrationError, UnknownOpError
from gristmill.measure.ceilings import Ceilings
from gristmill.specs.matmul import problem_of as matmul_problem
from gristmill.specs.rms_norm import problem_of

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TINY = Workload("tiny", problem_of((4, 64), "float32"))
CEILINGS = Ceilings(CPU, copy_bytes_per_s=1e9, flops_per_s={"float32": 1e9})
SHAPES = ("--shape", "x=4x64", "--shape", "weight=64", "--dtype", "float32", "--device", "cpu")

pytestmark = pytest.mark.usefixtures("fresh_store")


def right(x, weight, eps):
    return torch.rms_norm(x, x.shape[-1:], weight, eps)


@pytest.fixture
def column():
    """Register providers of rms_norm for one test."""
    names = []

    def register(name, function, **options):
        face.provider("rms_norm", name, **options)(function)
        names.append(name)

    yield register
    for name in names:
        face.unregister("rms_norm", name)


def rows_of(*names, pairs=50):
    (result,) = bench(
        load("rms_norm"), [TINY], names, device=CPU, pairs=pairs, ceilings=CEILINGS
    ).results
    return result, {row.provider: row for row in result.rows}


def test_a_registered_provider_is_checked_timed_and_judged_like_the_others(column):
    column("peer", right)
    assert "peer" in default_names(load("rms_norm"))
    result, rows = rows_of("gristmill", "aten", "peer")
    peer = rows["peer"]
    assert (peer.role, peer.status) == ("other", "ok")
    assert peer.device_us > 0
    assert peer.error <= 1
    assert peer.what.endswith("right")
    assert {v.provider for v in result.versus} == {"aten", "peer"}
    assert result.baseline in ("aten", "peer")


def test_a_provider_with_wrong_numbers_gets_a_reason_and_no_time(column):
    column("loose", lambda x, weight, eps: right(x, weight, eps) * 1.01)
    result, rows = rows_of("gristmill", "aten", "loose")
    assert rows["loose"].status == "wrong"
    assert "wrong in" in rows["loose"].reason
    assert rows["loose"].error > 1
    assert rows["loose"].device_us is None
    assert rows["loose"].eager_us is None
    assert {v.provider for v in result.versus} == {"aten"}
    assert result.failed


@pytest.mark.parametrize("changes", ["x", "weight"])
def test_a_provider_that_changes_an_argument_is_wrong_and_the_others_are_not(column, changes):
    def rude(x, weight, eps):
        out = right(x, weight, eps)
        (x if changes == "x" else weight).zero_()
        return out

    column("rude", rude)
    _, rows = rows_of("rude", "gristmill", "aten")
    assert rows["rude"].status == "wrong"
    assert f"changed its argument `{changes}`" in rows["rude"].reason
    assert rows["rude"].device_us is None
    assert rows["gristmill"].status == rows["aten"].status == "ok"


def test_what_a_provider_builds_is_built_once_for_a_problem(column):
    built = []

    def build(problem):
        built.append(str(problem))
        return right

    column("built", build, build=True)
    _, rows = rows_of("built")
    assert rows["built"].status == "ok"
    assert built == [str(TINY.problem)]


def test_a_provider_that_does_not_support_a_problem_says_why(column):
    column("narrow", right, supports=lambda problem: "rows of 64 values")
    result, rows = rows_of("gristmill", "narrow")
    assert rows["narrow"].status == "unsupported"
    assert "rows of 64 values" in rows["narrow"].reason
    assert not result.failed


def test_names_that_are_taken_and_ops_that_are_unknown_are_refused(column):
    column("peer", right)
    with pytest.raises(RegistrationError, match=r"'peer'.*twice.*Rename"):
        face.provider("rms_norm", "peer")(right)
    for name in ("gristmill", "copy", "torch"):
        with pytest.raises(RegistrationError, match=r"taken.*Choose another"):
            face.provider("rms_norm", name)
    with pytest.raises(RegistrationError, match="has to be a function"):
        face.provider("rms_norm", "number")(3)
    with pytest.raises(UnknownOpError, match="rms_norm"):
        face.provider("rms_nrm", "peer")
    column("aten", right)
    with pytest.raises(RegistrationError, match="name of an implementation"):
        known_names(load("rms_norm"))


def test_a_plug_ins_provider_comes_by_its_entry_point(tmp_path):
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests" / "plugins")])
    command = [sys.executable, "-m", "gristmill", "bench", "twice", "-w", "small", "--json"]
    command += ["-p", "peer", "-p", "copy", "--pairs", "50", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": paths, "GRISTMILL_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peer = json.loads(done.stdout)["results"][0]["rows"][0]
    assert peer["what"] == "gristmill_faulty.peer"
    assert peer["device_us"] > 0


def test_registering_a_provider_does_not_import_what_measures():
    code = "import sys; from gristmill.bench import provider; provider\n"
    code += "found = [m for m in ('gristmill.bench.suite', 'gristmill.tuning.runner', 'matplotlib')"
    code += " if m in sys.modules]\nassert not found, found"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_everything_on_the_face_exists():
    assert all(getattr(face, name) for name in face.__all__)
    with pytest.raises(AttributeError):
        _ = face.nothing


# ---------------------------------------------------------------------------------------- suites


def several():
    small = Workload("small", matmul_problem(16, 16, 16, "float32"))
    return [(load("rms_norm"), [TINY]), (load("matmul"), [small])]


def test_several_ops_are_one_run_and_one_file(column, tmp_path):
    column("peer", right)
    names = ["gristmill", "copy", "peer"]
    reports = bench_all(several(), names, device=CPU, pairs=50, ceilings=CEILINGS)
    assert [report.op for report in reports] == ["rms_norm", "matmul"]
    columns = [[row.provider for row in report.results[0].rows] for report in reports]
    assert columns == [names, names[:2]]
    assert reports[0].ceilings == reports[1].ceilings
    save_reports(tmp_path / "all.json", reports)
    again = load_reports(tmp_path / "all.json")
    assert [one.results for one in again] == [one.results for one in reports]
    with pytest.raises(InvalidInputError, match="2 reports"):
        load_reports(tmp_path / "all.json", only_one=True)


def test_a_provider_that_no_op_has_is_refused_before_anything_runs():
    with pytest.raises(InvalidInputError, match=r"'attn'.*`rms_norm`, `matmul` have .*aten"):
        bench_all(several(), ["attn"], device=CPU, ceilings=CEILINGS)
    with pytest.raises(InvalidInputError, match=r"`matmul` has .*leave out the op"):
        bench_all(several(), ["row"], device=CPU, ceilings=CEILINGS)


def test_every_suite_has_workloads_and_all_has_every_one():
    for suite in SUITES:
        assert all(workloads for _, workloads in suite.select())
    everything = {op.name: len(workloads) for op, workloads in suite_named("all").select()}
    assert everything == {name: len(load(name).workloads) for name in op_names()}
    llama = suite_named("llama3-8b").select(["rms_norm"])
    assert [op.name for op, _ in llama] == ["rms_norm"]
    assert all(w.name.startswith("llama3-8b-") for w in llama[0][1])
    with pytest.raises(InvalidInputError, match=r"'lama3-8b'.*Did you mean 'llama3-8b'"):
        suite_named("lama3-8b")
    with pytest.raises(InvalidInputError, match=r"rms_norm has no workload.*another suite"):
        suite_named("sdxl").select(["rms_norm"])


def test_a_file_that_is_no_report_is_refused(tmp_path):
    for text, fault in (
        ("{", "cannot be read"),
        ("[]", "JSON list"),
        ("{}", "no benchmark report"),
    ):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(InvalidInputError, match=fault):
            load_reports(tmp_path / "x.json")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_reports(tmp_path / "none.json")


# ---------------------------------------------------------------------------------- command line


def run(*arguments, code=0):
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160"})
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_bench_takes_several_ops_in_one_document(tmp_path):
    out = tmp_path / "both.json"
    arguments = ("rms_norm", "matmul", "-w", "qk-norm-1x40x128", "-w", "llama3-8b-o-m1")
    options = ("-p", "gristmill", "-p", "copy", "--pairs", "4", "--device", "cpu")
    data = json.loads(run("bench", *arguments, *options, "--out", str(out), "--json").stdout)
    assert [one["op"] for one in data["reports"]] == ["rms_norm", "matmul"]
    assert [one.op for one in load_reports(out)] == ["rms_norm", "matmul"]
    text = run("report", str(out)).stdout
    assert "qk-norm-1x40x128" in text
    assert "llama3-8b-o-m1" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no op is named"),
        (("--suite", "lama"), "there are all"),
        (("--suite", "llama3-8b", "-w", "x"), "named one way"),
        (("rms_norm", "matmul", "-s", "x=4x4"), "they name a problem of one"),
        (("rms_norm", "matmul", "-w", "none"), "'none'; rms_norm, matmul have"),
        (("rms_norm", "--providers-from", "none.py"), "no such file"),
        (("rms_norm", "--compare", "none.json"), "cannot be read"),
        (("rms_norm", "--html", "/no/x.html"), "`--html` is '/no/x.html'"),
    ],
)
def test_bench_refuses_what_it_cannot_run(arguments, message):
    assert message in " ".join(run("bench", *arguments, code=2).stderr.split())


def test_a_scripts_providers_are_columns(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "import torch\nfrom gristmill.bench import provider\n"
        "@provider('rms_norm', 'mine')\n"
        "def mine(x, weight, eps):\n    return torch.rms_norm(x, x.shape[-1:], weight, eps)\n"
        "@provider('rms_norm', 'zeros')\n"
        "def zeros(x, weight, eps):\n    return torch.zeros_like(x)\n"
    )
    options = ("--providers-from", str(script), "-p", "mine", "-p", "zeros", "--pairs", "50")
    try:
        result = run("bench", "rms_norm", *SHAPES, *options, "--json", code=1)
    finally:
        face.unregister("rms_norm", "mine")
        face.unregister("rms_norm", "zeros")
    mine, zeros = json.loads(result.stdout)["results"][0]["rows"]
    assert (mine["status"], mine["what"]) == ("ok", "mine.mine")
    assert (zeros["status"], zeros["device_us"]) == ("wrong", None)


def test_a_script_that_raises_is_bad_input(tmp_path):
    (tmp_path / "bad.py").write_text("1 / 0\n")
    result = run("bench", "rms_norm", "--providers-from", str(tmp_path / "bad.py"), code=2)
    assert "ZeroDivisionError" in result.stderr
