"""A fleet on a local Ray cluster of two machines: CPU operators, actors and machines that are
killed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import socket
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import gristmill as gm
from conftest import PLUGINS, SOURCES
from gristmill import settings
from gristmill.cache.store import store
from gristmill.core.op import Workload
from gristmill.core.plan import Candidate
from gristmill.core.provenance import provenance
from gristmill.core.registry import load
from gristmill.core.target import device_target
from gristmill.errors import MissingExtraError, TuningError, WorkerLostError
from gristmill.measure.isolation import ChildDied, ChildTimedOut
from gristmill.ops.tune_many import Where, tune_workloads
from gristmill.tuning.budget import Budget
from gristmill.tuning.describe import describe, unlike
from gristmill.tuning.fleet import cluster as cluster_module
from gristmill.tuning.fleet.actors import WorkerHost
from gristmill.tuning.fleet.cluster import Node, RayFleet
from gristmill.tuning.fleet.joining import ray_module
from gristmill.tuning.fleet.remote import RemoteChild, RemoteSite
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


# --------------------------------------------------------------------------- behind an actor, here


class Ready:
    """A method of an actor in this process: `remote` calls it, `get` has the answer."""

    def __init__(self, method):
        self._method = method

    def remote(self, *args):
        return self._method(*args)


class Actors:
    """What a site needs of Ray, with actors that are objects here."""

    class exceptions:  # noqa: N801 (a module of Ray's)
        class RayError(Exception):
            pass

        class GetTimeoutError(RayError):
            pass

    def __init__(self):
        self.placed = []

    def place(self):
        self.placed.append(WorkerHost())
        host = self.placed[-1]
        return SimpleNamespace(
            host=host,
            **{name: Ready(getattr(host, name)) for name in ("start", "ask", "hold", "stop")},
        )

    def get(self, found, timeout):
        if isinstance(found, Exception):
            raise found
        return found

    def kill(self, actor):
        actor.host.stop()


@pytest.fixture
def actors():
    made = Actors()
    yield made
    for host in made.placed:
        host.stop()


def test_a_candidate_that_traps_behind_an_actor_is_a_row_and_the_actor_stays(actors, faulty):
    child = RemoteChild(actors, "there/cpu", actors.place)
    site = RemoteSite(child, "there/cpu", "cpu", lambda request: None)
    facts = site.describe(["twice"])
    assert not unlike(facts, ["twice"])
    site.know(facts, beside=2)
    assert site.target.key == device_target(CPU).key
    assert site.jobs == max(1, settings.current().compile_jobs // 2)
    site.open()
    other = RemoteSite(RemoteChild(actors, "b", actors.place), "b", "cpu", lambda request: None)
    other.know(facts, beside=2)
    other._child._actor = actors.place()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gristmill.tuning.fleet.remote.LEASE_WAIT_S", 0.1)
        with pytest.raises(TuningError, match="another process is measuring on b"):
            other.open()
    problem = load("twice").problem((torch.ones(64, 64),))
    with site.measurer(problem, 0) as measurer:
        outcome = measurer.measure(Candidate("traps"), None)
        assert outcome.status == "crash"
        assert "SIGSEGV" in outcome.reason
        assert measurer.measure(Candidate("right"), None).ok
    assert child._generation == 1
    with site.measurer(problem, 0) as measurer:
        measurer.kill()
        with pytest.raises(KeyboardInterrupt):
            measurer.measure(Candidate("right"), None)


def _error_at(actors, monkeypatch, error, times):
    """Have the next answers of actors be errors."""
    get, left = actors.get, [error] * times
    monkeypatch.setattr(actors, "get", lambda f, timeout: get(left.pop() if left else f, timeout))


@pytest.fixture
def quick(actors, monkeypatch):
    """A child whose worker answers without being started."""
    monkeypatch.setattr(WorkerHost, "start", lambda self: {"value": 1})
    monkeypatch.setattr(
        WorkerHost, "ask", lambda self, message, timeout: {"value": {"at": timeout}}
    )
    return RemoteChild(actors, "there", actors.place)


def test_a_question_is_asked_again_of_another_actor_once(actors, quick, monkeypatch):
    quick.start()
    _error_at(actors, monkeypatch, actors.exceptions.RayError("The actor died."), 1)
    assert quick.ask({"do": "measure"}, 5.0)["at"] > 5.0  # it begins anew
    assert len(actors.placed) == 2
    _error_at(actors, monkeypatch, actors.exceptions.RayError("The actor died."), 2)
    with pytest.raises(WorkerLostError, match="there is gone: The actor died"):
        quick.ask({"do": "measure"}, 5.0)


def test_an_actor_that_died_between_two_questions_is_replaced(actors, quick, monkeypatch):
    quick.start()
    before = quick.started
    _error_at(actors, monkeypatch, actors.exceptions.RayError("The actor died."), 1)
    quick.start()
    assert quick.started != before  # a new worker: its first question may take longer
    assert len(actors.placed) == 2
    _error_at(actors, monkeypatch, actors.exceptions.RayError("The actor died."), 2)
    with pytest.raises(ChildDied, match="The actor died"):
        quick.start()


def test_an_actor_whose_device_another_has_meanwhile_measures_nothing(actors, quick, monkeypatch):
    quick.start()
    assert quick.hold("cpu-of-this-test")
    quick.stop()
    actors.placed[0]._held.close()  # as the end of its process does
    taken = WorkerHost()
    assert taken.hold("cpu-of-this-test", 0.0)
    monkeypatch.setattr("gristmill.tuning.fleet.remote.LEASE_WAIT_S", 0.05)
    for _ in range(2):
        with pytest.raises(ChildDied, match="another process is measuring on there"):
            quick.start()
    taken._held.close()
    quick.start()


def test_an_actor_that_was_killed_on_purpose_is_not_asked_again(actors, quick, monkeypatch):
    quick.start()
    quick.kill()
    _error_at(actors, monkeypatch, actors.exceptions.RayError("The actor died."), 1)
    with pytest.raises(ChildDied, match="The actor died"):
        quick.ask({"do": "measure"}, 5.0)
    quick.start()  # to check what leads
    assert quick.ask({"do": "verify"}, 5.0)
    assert len(actors.placed) == 2


def test_an_actor_that_does_not_answer_is_ended_and_the_candidate_timed_out(
    actors, quick, monkeypatch
):
    quick.start()
    _error_at(actors, monkeypatch, actors.exceptions.GetTimeoutError(), 1)
    with pytest.raises(ChildTimedOut, match="no answer from there"):
        quick.ask({"do": "measure"}, 5.0)
    quick.start()
    assert len(actors.placed) == 2


def test_a_machine_of_other_versions_is_left_out_and_with_all_of_them_it_is_an_error(
    monkeypatch,
):
    here = describe(CPU, ["rms_norm"])
    older = {**here, "versions": {**here["versions"], "triton": "3.1.0"}}
    said = []
    fleet = RayFleet("head:6379", ["rms_norm"], None, said.append)

    def asked(*facts):
        found = []
        for index, (name, one) in enumerate(facts):
            future = Future()
            if isinstance(one, Exception):
                future.set_exception(one)
            else:
                future.set_result(one)
            site = RemoteSite(RemoteChild(None, name, None), f"{name}/{index}", "cpu", None)
            found.append((Node(name, name, 2), site, future))
        return found

    gone = TuningError("gristmill is not installed there, or another version")
    sites = fleet._fitting(asked(("old", older), ("old", older), ("new", here), ("no", gone)), 3)
    assert [site.name for site in sites] == ["new/2"]
    assert len(said) == 2  # once a machine
    assert said[0].startswith("old is left out: triton 3.1.0, here ")
    assert said[0].endswith("Install the same there")
    assert said[1].startswith("no/3 is left out: gristmill is not installed there")
    with pytest.raises(TuningError, match=r"of its 1 machine none can be used \(old is left out"):
        fleet._fitting(asked(("old", older)), 1)


def test_a_cluster_without_the_kind_of_device_is_an_error():
    node = {"Alive": True, "NodeID": "1" * 12, "NodeManagerHostname": "one", "Resources": {}}
    with_gpus = {**node, "NodeID": "2" * 12, "Resources": {"GPU": 2.0}}
    gone = {**with_gpus, "Alive": False}
    ray = SimpleNamespace(nodes=lambda: [node, with_gpus, gone])
    nodes, kind = cluster_module._nodes(ray, None, "head:1")
    assert kind == "cuda"
    assert [(n.name, n.devices) for n in nodes] == [("one", 2)]
    nodes, kind = cluster_module._nodes(ray, "cpu", "head:1")
    assert [(n.name, n.devices) for n in nodes] == [("one", 1), ("one-222222", 1)]
    none = SimpleNamespace(nodes=lambda: [node, gone])
    assert cluster_module._nodes(none, None, "head:1")[1] == "cpu"
    with pytest.raises(TuningError, match=r"`ray` is 'head:1'; of its 1 machine none offers a GPU"):
        cluster_module._nodes(none, "cuda", "head:1")


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


def test_a_worker_that_is_unlike_says_in_what():
    there = {"versions": dict.fromkeys(("gristmill", "torch", "triton"), "0"), "sources": {}}
    found = unlike(there, ["rms_norm"])
    assert f"torch 0, here {torch.__version__.partition('+')[0]}" in found
    assert "kernels" not in found
    here = describe(CPU, ["rms_norm", "no_such_op"])
    assert not unlike(here, ["rms_norm", "no_such_op"])
    here["sources"]["rms_norm"]["aten"] = "another"
    assert unlike(here, ["rms_norm"]) == "the kernels of `rms_norm` are others there than here"
