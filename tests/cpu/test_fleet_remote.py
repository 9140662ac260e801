"""A device behind an actor: with actors that are objects of this process, and the real worker."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch

from gristmill import settings
from gristmill.core.plan import Candidate
from gristmill.core.registry import load
from gristmill.core.target import device_target
from gristmill.errors import TuningError, WorkerLostError
from gristmill.measure.isolation import ChildDied, ChildTimedOut
from gristmill.tuning.describe import describe, unlike
from gristmill.tuning.fleet import cluster as cluster_module
from gristmill.tuning.fleet.actors import WorkerHost
from gristmill.tuning.fleet.cluster import Node, RayFleet
from gristmill.tuning.fleet.remote import RemoteChild, RemoteSite

CPU = torch.device("cpu")


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


def test_a_worker_behind_an_actor_that_leaks_is_replaced_and_what_it_saw_is_kept(
    actors, faulty, user_modules, monkeypatch
):
    monkeypatch.setattr("gristmill.tuning.fleet.actors.WORKER", "leaking_worker")
    child = RemoteChild(actors, "there/cpu", actors.place)
    site = RemoteSite(child, "there/cpu", "cpu", lambda request: None)
    with settings.override(growth_gb=0.1, l2="warm"):
        site.know(site.describe(["twice"]), beside=1)
        assert site.target == device_target(CPU)
        assert site.target.l2 == "warm"
        problem = load("twice").problem((torch.ones(64, 64),))
        with site.measurer(problem, 0) as measurer:
            outcomes = [measurer.measure(Candidate("right"), None) for _ in range(4)]
            seen = measurer.conditions()
    assert all(outcome.ok for outcome in outcomes)
    assert len(actors.placed) > 1
    assert seen.anchors >= len(outcomes)


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


def test_a_worker_that_is_unlike_says_in_what():
    there = {"versions": dict.fromkeys(("gristmill", "torch", "triton"), "0"), "sources": {}}
    found = unlike(there, ["rms_norm"])
    assert f"torch 0, here {torch.__version__.partition('+')[0]}" in found
    assert "kernels" not in found
    here = describe(CPU, ["rms_norm", "no_such_op"])
    assert not unlike(here, ["rms_norm", "no_such_op"])
    here["sources"]["rms_norm"]["aten"] = "another"
    assert unlike(here, ["rms_norm"]) == "the kernels of `rms_norm` are others there than here"
