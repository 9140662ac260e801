"""A fleet on a local Ray cluster of two machines: CPU operators, actors and machines that are
killed."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import PLUGINS, SOURCES

import gristmill as gm
from gristmill import settings
from gristmill.cache.store import store
from gristmill.core.plan import Candidate
from gristmill.core.provenance import provenance
from gristmill.core.registry import load
from gristmill.core.target import device_target
from gristmill.errors import MissingExtraError, TuningError
from gristmill.tuning.budget import Budget
from gristmill.tuning.describe import unlike
from gristmill.tuning.fleet import cluster as cluster_module
from gristmill.tuning.fleet.cluster import RayFleet
from gristmill.tuning.fleet.fleet import Fleet
from gristmill.tuning.fleet.gain import Job
from gristmill.tuning.fleet.lines import NoLines
from gristmill.tuning.fleet.run import Wishes

NEEDS_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray (the extra `ray`)"
)
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("fresh_store")


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """A cluster of two machines, each with a CPU of its own (as far as locks go), and with the
    plug-in `twice`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # no token in the user's home
        patch.setenv("PYTHONPATH", os.pathsep.join([*SOURCES, str(PLUGINS)]))
        from ray.cluster_utils import Cluster

        scratch = tmp_path_factory.mktemp("ray")

        def machine(name):
            locks = {"GRISTMILL_LOCK_DIR": str(scratch / name)}
            return {"num_cpus": 1, "num_gpus": 0, "env_vars": locks}

        head = {**machine("head"), "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=head)
        made.scratch, made.second = scratch, made.add_node(**machine("second"))
        yield made
        made.shutdown()
    deadline = time.monotonic() + 20.0
    while (left := _processes_of(scratch)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, left


def _processes_of(scratch):
    """The processes that run with one of our folders in their environment."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdecimal() and str(scratch).encode() in (
                (process / "environ").read_bytes()
            ):
                found.append((process / "cmdline").read_bytes())
    return found


@pytest.fixture
def few(monkeypatch, faulty):
    """Of `twice`, what is right and what takes its worker down."""
    everything = gm.core.registry.implementations

    def chosen(op):
        return tuple(i for i in everything(op) if i.name in ("right", "traps"))

    monkeypatch.setattr("gristmill.tuning.runner.implementations", chosen)


def _jobs(target, *rows):
    op = load("twice")
    return [Job(f"rows-{n}", op, op.problem((torch.ones(n, 64),)), target) for n in rows]


class KillsFirst:
    """Ray, but for the first trial that is in flight: then it kills, and waits as ever."""

    def __init__(self, ray, kill):
        self._ray, self._kill = ray, kill
        self.asked = 0

    def get(self, found, timeout):
        if self._kill is not None and self.asked:
            kill, self._kill = self._kill, None
            kill()
        return self._ray.get(found, timeout=timeout)

    def __getattr__(self, name):
        return getattr(self._ray, name)


def _armed(site, monkeypatch, kill):
    """Have `kill` called while the site's first trial is in flight."""
    child = site._child
    child._ray = hook = KillsFirst(child._ray, kill)
    ask = child._ask

    def asking(message, timeout_s):
        hook.asked += message["do"] == "measure"
        return ask(message, timeout_s)

    monkeypatch.setattr(child, "_ask", asking)
    return hook


@NEEDS_RAY
def test_problems_are_tuned_on_the_cluster_and_a_killed_actor_costs_its_trial(
    machines, few, monkeypatch, capfd
):
    said = []
    with RayFleet(machines.address, ["twice"], "cpu", said.append) as sites:
        import ray

        assert len(sites) == 2
        assert {site.target.key for site in sites} == {device_target(CPU).key}
        assert {site.versions for site in sites} == {provenance()}
        first = sites[0]._child
        hook = _armed(sites[0], monkeypatch, lambda: ray.kill(first._actor))
        jobs = _jobs(sites[0].target, 16, 64, 256)
        result = Fleet(sites, jobs, store(), Wishes(Budget(60.0)), NoLines(said.append)).run()
        assert hook._kill is None  # it was killed
        assert first._generation == 2  # and another one took its place
        os.kill(os.getpid(), 0)
    assert not ray.is_initialized()
    assert not said
    assert {e.site for e in result.ended} == {site.name for site in sites}
    for ended in result.ended:
        status = {c.implementation: o.status for c, o in ended.result.outcomes.items()}
        assert status == {"right": "ok", "traps": "crash"}  # the kill is nobody's outcome
        assert ended.result.plans["eager"].candidate == Candidate("right")
    kept = store().plans()
    assert {(p.op, p.candidate.implementation) for p in kept} == {("twice", "right")}
    assert len(kept) == 2 * len(jobs)
    assert not list(machines.scratch.glob("**/plans*"))  # the store is the driver's
    captured = capfd.readouterr()
    assert not captured.out
    assert not captured.err


@NEEDS_RAY
def test_the_command_line_with_an_address_and_no_noise(machines, tmp_path):
    command = [sys.executable, "-m", "gristmill", "tune", "rms_norm", "--ray", machines.address]
    command += ["-s", "x=4x64", "--device", "cpu", "--budget", "5"]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "GRISTMILL_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "plan (eager): " in done.stdout
    assert not done.stderr


@NEEDS_RAY
def test_a_machine_of_other_versions_is_left_out_and_with_all_of_them_it_is_an_error(
    machines, few, monkeypatch
):
    asked = []

    def first_is_older(there, ops):
        asked.append(there)
        older = {**there, "versions": {**there["versions"], "triton": "3.1.0"}}
        return unlike(older if len(asked) != 2 else there, ops)

    monkeypatch.setattr(cluster_module, "unlike", first_is_older)
    said = []
    with RayFleet(machines.address, ["twice"], "cpu", said.append) as sites:
        assert len(sites) == 1
        (line,) = said
        assert "is left out: triton 3.1.0, here " in line
        assert "Install the same there" in line
        import ray

        # a GPU that nobody has
        with pytest.raises(TuningError, match=r"of its 2 machines none offers a GPU"):
            cluster_module._nodes(ray, "cuda", machines.address)
        monkeypatch.setattr(cluster_module, "unlike", lambda there, ops: "torch 2.0, here 2.1")
        with (
            pytest.raises(TuningError, match=r"of its 2 machines none can be used \(.*torch 2\.0"),
            RayFleet("auto", ["twice"], "cpu", said.append),
        ):
            pass
        assert ray.is_initialized()  # the connection that was there is left as it was


@NEEDS_RAY
def test_the_problem_of_a_machine_that_dies_goes_on_at_another(machines, few, monkeypatch):
    said = []
    with RayFleet(machines.address, ["twice"], "cpu", said.append) as sites:
        (gone,) = [s for s in sites if s._child._name.endswith(machines.second.node_id[:6])] or (
            sites[1],
        )
        hook = _armed(gone, monkeypatch, lambda: machines.remove_node(machines.second))
        jobs = _jobs(sites[0].target, 16, 64, 256)
        result = Fleet(sites, jobs, store(), Wishes(Budget(60.0)), NoLines(said.append)).run()
        assert hook._kill is None
    (other,) = {site.name for site in sites} - {gone.name}
    assert {e.site for e in result.ended} == {other}
    assert len(result.ended) == 3
    assert all(not e.why and e.result.plans for e in result.ended)
    assert any(line.startswith(f"{gone.name} lost its worker with ") for line in said)


# --------------------------------------------------------------------------------------- refusals


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gristmill\[ray\]'"):
        gm.tune_many([("rms_norm", (torch.ones(2, 8),))], ray="auto")


@NEEDS_RAY
@pytest.mark.parametrize("address", ["", "head", "ray://head:10001", "http://head:1", "head:port"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(gm.InvalidInputError, match="'HOST:PORT'"):
        gm.tune_many([("rms_norm", (torch.ones(2, 8),))], ray=address)


@NEEDS_RAY
def test_an_address_where_nothing_or_no_cluster_answers_is_an_error_in_time(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("gristmill.tuning.fleet.joining.JOIN_S", 2.0)
        with pytest.raises(TuningError, match=r"no cluster answers there within 2 s"):
            gm.tune_many([("rms_norm", (torch.ones(2, 8),))], ray=address)
    start = time.monotonic()
    with pytest.raises(TuningError, match=r"nothing answers there"):
        gm.tune_many([("rms_norm", (torch.ones(2, 8),))], ray=address)
    assert time.monotonic() - start < 20


def test_a_worker_that_is_unlike_says_in_what():
    there = {"versions": dict.fromkeys(("gristmill", "torch", "triton"), "0"), "sources": {}}
    found = unlike(there, ["rms_norm"])
    assert f"torch 0, here {torch.__version__.partition('+')[0]}" in found
    assert "kernels" not in found
    from gristmill.tuning.describe import describe

    here = describe(CPU, ["rms_norm", "no_such_op"])
    assert not unlike(here, ["rms_norm", "no_such_op"])
    here["sources"]["rms_norm"]["aten"] = "another"
    assert unlike(here, ["rms_norm"]) == "the kernels of `rms_norm` are others there than here"
