"""A fleet on a local Ray cluster of two machines: CPU operators, actors and machines that are
killed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch

import gristmill as gm
from folders import PLUGINS
from gristmill.cache.store import store
from gristmill.core.op import Workload
from gristmill.core.plan import Candidate
from gristmill.core.provenance import provenance
from gristmill.core.registry import load
from gristmill.core.target import device_target
from gristmill.errors import MissingExtraError, TuningError
from gristmill.ops.tune_many import Where, tune_workloads
from gristmill.tuning.budget import Budget
from gristmill.tuning.fleet import cluster as cluster_module
from gristmill.tuning.fleet.joining import ray_module
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
    before = signal.getsignal(signal.SIGTERM)  # Ray puts one of its own in its place
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # no token in the user's home
        patch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], str(PLUGINS)]))
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
    signal.signal(signal.SIGTERM, before)
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


class KillsFirst:
    """Ray, but that something is killed while the first trial is in flight."""

    def __init__(self, ray, kill):
        self._ray, self.armed, self.in_flight = ray, kill, False

    def get(self, found, timeout):
        if self.in_flight and self.armed is not None:
            kill, self.armed = self.armed, None
            kill()
        return self._ray.get(found, timeout=timeout)

    def __getattr__(self, name):
        return getattr(self._ray, name)


@pytest.fixture
def killing(machines, monkeypatch):
    """Kills the actor of the first machine and the whole second machine, each in its first trial;
    gives the sites by their machine's id, and what was to be killed."""
    made, hooks = {}, {}
    real = cluster_module._site

    def site_of(ray, node, *rest):
        site = real(ray, node, *rest)
        child = site._child
        if node.identifier == machines.second.node_id:
            hook = KillsFirst(ray, lambda: machines.remove_node(machines.second))
        else:
            hook = KillsFirst(ray, lambda: ray.kill(child._actor))
        ask = child._ask

        def asking(message, timeout_s):
            hook.in_flight = message["do"] == "measure"
            return ask(message, timeout_s)

        child._ray = hook
        monkeypatch.setattr(child, "_ask", asking)
        made[node.identifier], hooks[node.identifier] = site, hook
        return site

    monkeypatch.setattr(cluster_module, "_site", site_of)
    return made, hooks


@NEEDS_RAY
def test_an_actor_that_is_killed_is_replaced_and_what_a_lost_machine_had_goes_on_elsewhere(
    machines, killing, only, capfd
):
    only("right")
    import ray

    op = load("twice")
    problems = [op.problem((torch.ones(rows, 64),)) for rows in (16, 64, 256)]
    said = []
    where = Where(ray=machines.address, kind="cpu")
    named = [Workload(str(one), one) for one in problems]
    result = tune_workloads(named, where, Wishes(Budget(60.0)), say=said.append)
    assert not ray.is_initialized()

    sites, hooks = killing
    second = sites.pop(machines.second.node_id)
    (first,) = sites.values()
    assert all(hook.armed is None for hook in hooks.values())  # both were killed
    assert first._child._generation == 2  # and the actor replaced, which nobody was told
    lost, left = said
    assert lost.startswith(f"{second.name} lost its worker with twice(")
    assert "it is put back" in lost
    assert left.startswith(f"{second.name} is left out: ")

    assert sorted(str(e.job.problem) for e in result.ended) == sorted(map(str, problems))
    assert {e.site for e in result.ended} == {first.name}
    for ended in result.ended:
        assert {c: o.status for c, o in ended.result.outcomes.items()} == {Candidate("right"): "ok"}
        assert ended.job.target.key == device_target(CPU).key
    assert {site.versions for site in (first, second)} == {provenance()}
    kept = store().plans()  # of the driver, who alone has a store
    assert {p.candidate for p in kept} == {Candidate("right")}
    assert len(kept) == 2 * len(problems)
    captured = capfd.readouterr()
    assert not captured.out
    # under load a warning of Ray's own may come through; what it says by habit may not
    assert not re.search("INFO|[Uu]sage|[Dd]ashboard|WorkerHost", captured.err)


# --------------------------------------------------------------------------------------- refusals


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gristmill\[ray\]'"):
        gm.tune_many([("rms_norm", (torch.ones(2, 8),))], ray="auto")


@NEEDS_RAY
def test_ray_reports_to_nobody_unless_the_user_says_so(monkeypatch):
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    ray_module()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    ray_module()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


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
