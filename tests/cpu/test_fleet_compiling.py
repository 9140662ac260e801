"""One compile server for several runs at once."""

from __future__ import annotations

import threading

import pytest
import torch

from gristmill import settings
from gristmill.core.plan import Candidate
from gristmill.core.registry import implementation, load
from gristmill.core.target import named_target
from gristmill.measure.isolation import ChildDied
from gristmill.tuning.fleet.compiling import SharedPool
from gristmill.tuning.fleet.server import CompileServer

TARGET = named_target("sm_90")
WAIT_S = 60.0


@pytest.fixture
def server():
    made = CompileServer()
    yield made
    made.close()


def pool_of(server, rows, target=TARGET, jobs=2):
    return SharedPool(server.submit, load("twice").problem((torch.ones(rows, 64),)), target, jobs)


def candidate(name, block=256):
    problem = load("twice").problem((torch.ones(64, 64),))
    impl = implementation("twice", name)
    return Candidate(name, impl.config({"BLOCK": block, "ODD": False}, problem, TARGET))


def test_two_runs_get_their_own_answers_of_one_server(server, faulty):
    one, other = pool_of(server, 64), pool_of(server, 128)
    blocks = (256, 512, 1024)
    found = {}

    def collect(pool, name):
        found[name] = [pool.collect() for _ in range(pool.pending)]

    for block in blocks:
        one.submit(candidate("triton_none", block))
    other.submit(candidate("triton_compile"))
    threads = [
        threading.Thread(target=collect, args=(pool, name), daemon=True)
        for pool, name in ((one, "one"), (other, "other"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert {c.config["BLOCK"] for c, _ in found["one"]} == set(blocks)
    assert all(outcome.ok for _, outcome in found["one"])
    ((_, failed),) = found["other"]
    assert failed.status == "compile_error"
    assert one.pending == other.pending == 0
    assert server._child.started == 1


def test_a_server_that_dies_costs_what_it_was_asked_and_starts_again(server, faulty):
    pool = pool_of(server, 64)
    pool.submit(candidate("triton_stall"))
    server._child.kill()
    name, outcome = pool.collect()
    assert (name.implementation, outcome.status) == ("triton_stall", "crash")
    assert "SIGKILL" in outcome.reason
    pool.submit(candidate("triton_none"))
    assert pool.collect()[1].ok
    assert server._child.started == 2


def test_a_server_that_hangs_is_killed_and_its_requests_fail(server, faulty, monkeypatch):
    monkeypatch.setattr("gristmill.tuning.fleet.server.ANSWER_S", 0.2)
    with settings.override(candidate_timeout_s=0.2):
        pool = pool_of(server, 64)
    send = server._child.send

    def send_patient(message):
        send({**message, "timeout_s": 1000.0})  # it kills no compile that takes long

    monkeypatch.setattr(server._child, "send", send_patient)
    pool.submit(candidate("triton_stall"))
    _, outcome = pool.collect()
    assert (outcome.status, "SIGKILL" in outcome.reason) == ("crash", True)


def test_an_interrupt_ends_whoever_waits(server, faulty):
    pool = pool_of(server, 64)
    pool.submit(candidate("triton_stall"))
    timer = threading.Thread(target=pool.interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        pool.collect()
    timer.join()


@pytest.fixture
def full(faulty, user_modules, monkeypatch, tmp_path):
    """A pool of a server that has grown too large, with a compile that waits for a file and one
    that came too late; the server and the file."""
    gate = tmp_path / "gate"
    monkeypatch.setenv("MAY_GO_ON", str(gate))
    monkeypatch.setattr("gristmill.tuning.fleet.server.COMPILER", "failing_compiler")
    made = CompileServer()
    with settings.override(growth_gb=0.1):
        pool = pool_of(made, 64)
    for name in ("waits", "leaks"):
        pool.submit(Candidate(name))
    assert pool.collect()[0] == Candidate("leaks")
    pool.submit(Candidate("late"))
    assert pool.pending == 2
    yield pool, made, gate
    made.close()


def test_a_server_that_grows_is_replaced_when_it_has_answered_everything(full):
    pool, server, gate = full
    assert server._child.started == 1
    gate.touch()
    done = {c.implementation: o for c, o in (pool.collect() for _ in range(2))}
    assert all(outcome.ok for outcome in done.values())
    assert done["waits"].registers != done["late"].registers  # who served it
    assert server._child.started == 2
    pool.submit(Candidate("later"))
    assert pool.collect()[1].registers == done["late"].registers


def test_a_full_server_that_dies_loses_what_it_had_and_not_what_waits(full):
    pool, server, _ = full
    server._child.kill()
    done = {c.implementation: o for c, o in (pool.collect() for _ in range(2))}
    assert done["waits"].status == "crash"
    assert done["late"].ok


def test_a_full_server_that_is_closed_answers_what_waits(full):
    pool, server, _ = full
    server.close()
    assert {pool.collect()[1].status for _ in range(2)} == {"crash"}


def test_a_server_that_was_closed_compiles_nothing(server, faulty):
    pool = pool_of(server, 64)
    pool.submit(candidate("triton_stall"))
    server.close()
    assert pool.collect()[1].status == "crash"
    pool.submit(candidate("triton_none"))
    assert "has ended" in pool.collect()[1].reason
    with pytest.raises(ChildDied):
        server.submit({"timeout_s": 1.0}).result()
