"""`gristmill tune` of many problems: which ones, on which devices, what it says."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch
from fleet_cases import FakeSite, Log

from gristmill.cli.fleet import problems_of, where_to
from gristmill.core.registry import op_names
from gristmill.errors import InvalidInputError, TuningError
from gristmill.tuning.fleet.fleet import Fleet, FleetResult
from gristmill.tuning.fleet.run import tune_at

TWO = ("rms_norm", "-w", "llama3-8b-m1", "-w", "llama3-8b-m512")
NONE = (None, None, None)


@pytest.fixture
def sites(monkeypatch):
    """Two devices that measure nothing, in place of this machine's and of any cluster's."""
    made = [FakeSite("cuda:0", Log()), FakeSite("cuda:1", Log())]
    asked = []

    def sites_of(where, ops, say):
        asked.append((where, tuple(ops)))
        return contextlib.nullcontext(made)

    monkeypatch.setattr("gristmill.ops.tune_many._sites", sites_of)
    return asked


def test_several_problems_are_shared_out_and_each_is_shown(run, sites):
    text = run("tune", *TWO, "--ray", "head:6379", "--trials", "3").stdout
    assert text.count("on NVIDIA H200") == 2
    assert "2 problems" in text
    assert "kept in" in text
    ((where, ops),) = sites
    assert (where.ray, where.kind, ops) == ("head:6379", None, ("rms_norm",))
    arguments = (*TWO, "--ray", "auto", "--device", "cuda", "--trials", "3", "--json")
    data = json.loads(run("tune", *arguments).stdout)
    assert {p["workload"] for p in data["problems"]} == {"llama3-8b-m1", "llama3-8b-m512"}
    assert all(p["explanation"]["plan"]["origin"] == "tuned" for p in data["problems"])
    assert sites[1][0].kind == "cuda"


def test_a_problem_that_fails_is_exit_code_1_and_the_others_are_kept(run, sites, monkeypatch):
    monkeypatch.setattr("gristmill.tuning.fleet.fleet.tune_at", _failing_at_m1)
    result = run("tune", *TWO, "--ray", "auto", "--trials", "3", code=1)
    assert "its reference raised" in result.stderr
    assert result.stdout.count("on NVIDIA H200") == 1


def _failing_at_m1(site, job, *rest):
    if job.name == "llama3-8b-m1":
        raise TuningError("its reference raised")
    return tune_at(site, job, *rest)


def test_control_c_is_130(run, sites, monkeypatch):
    monkeypatch.setattr(Fleet, "run", lambda self, tell: FleetResult(interrupted=True))
    result = run("tune", *TWO, "--ray", "auto", code=130)
    assert "interrupted: what was measured is kept" in result.stderr


def test_records_of_a_cluster_are_refused_before_anything_runs(run, sites, tmp_path):
    out = tmp_path / "runs.json"
    result = run("tune", *TWO, "--ray", "auto", "--out", str(out), code=2)
    assert "`--out` is given together with `--ray`" in " ".join(result.stderr.split())
    assert not sites
    out.touch()
    gone = ("tune", TWO[0], *TWO[1:3], "--ray", "auto", "--record", str(out))
    assert "--ray" in run(*gone, code=2).stderr


def test_two_problems_on_this_machines_cpu(run, only):
    only("aten")
    shapes = ("rms_norm", "-w", "llama3-8b-m1")
    data = json.loads(run("tune", *shapes, "--devices", "cpu", "--budget", "5", "--json").stdout)
    (one,) = data["problems"]
    assert one["explanation"]["plan"]["implementation"] == "aten"


def test_which_problems():
    every = problems_of("all", None, NONE, "bfloat16")
    assert {w.problem.op for w in every} == set(op_names())
    llama = problems_of("all", "llama3-8b", NONE, "bfloat16")
    assert {w.problem.op for w in llama} > {"matmul", "rms_norm"}
    assert all(w.name.startswith("llama3-8b-") for w in llama)
    assert {w.problem.op for w in problems_of("matmul", "llama3-8b", NONE, "bfloat16")} == {
        "matmul"
    }
    one = problems_of("all", None, (["square-4096"], None, None), "bfloat16")
    assert [w.name for w in one] == ["square-4096"]
    with pytest.raises(InvalidInputError, match="no problem of `matmul` is named"):
        problems_of("matmul", None, NONE, "bfloat16")
    with pytest.raises(InvalidInputError, match="`--suite` is given together"):
        problems_of("matmul", "all", (["square-4096"], None, None), "bfloat16")
    with pytest.raises(InvalidInputError, match=r"with .* ops; they name a problem of one"):
        problems_of("all", None, (None, ["a=4x8"], None), "bfloat16")


def test_which_devices(monkeypatch):
    two = problems_of("rms_norm", None, (list(TWO[2::2]), None, None), "bfloat16")
    gpus = [torch.device("cuda", index) for index in range(2)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("gristmill.cli.fleet.devices_named", lambda names: gpus)
    assert where_to(None, None, None, two).devices == ["cuda:0", "cuda:1"]
    assert where_to(None, None, None, two[:1]) is None  # one problem: one device
    assert where_to(None, None, "cuda:1", two) is None
    assert where_to("all", None, None, two[:1]).devices == "all"
    assert where_to("0,1", None, None, two).devices == ["0", "1"]
    with pytest.raises(InvalidInputError, match="`--devices` is given together with `--ray`"):
        where_to("all", "auto", None, two)
    with pytest.raises(InvalidInputError, match="`--devices` is given together with `--device`"):
        where_to("all", None, "cpu", two)
    with pytest.raises(InvalidInputError, match=r"`--device` is 'tpu'; with `--ray`"):
        where_to(None, "auto", "tpu", two)
    monkeypatch.setattr("gristmill.cli.fleet.devices_named", lambda names: gpus[:1])
    assert where_to(None, None, None, two) is None  # the other GPU is of another kind


def test_a_budget_that_is_none_is_refused(run, sites):
    for wrong in (("--budget", "-1"), ("--trials", "0"), ("--strategy", "none")):
        run("tune", *TWO, "--ray", "auto", *wrong, code=2)
    assert not sites
