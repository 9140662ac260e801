"""The queue behind `tune="idle"`: what it has tuned, by whom, within which budget, and how it
ends."""

from __future__ import annotations

import os
import threading
import time
import weakref
from pathlib import Path

import pytest

from gristmill import settings
from gristmill.tuning import background
from gristmill.tuning.background import Background
from waiting import eventually


@pytest.fixture
def queue(monkeypatch, user_modules):
    """A queue whose tuning process only answers, and whose user has nothing to do."""
    monkeypatch.setattr(background, "AGAIN_S", 0.0)
    made = []

    class Idle:
        def busy(self):
            return False

    def make(allowed=lambda: True):
        one = Background(allowed, Idle())
        one.module = "idle_answers"
        made.append(one)
        return one

    yield make
    for one in made:
        one.stop()


def test_a_wish_is_done_once_at_the_least_priority_and_everyone_is_told(queue):
    one, told = queue(), []

    class Bound:
        def reselect(self):
            told.append("bound")

    bound, gone = Bound(), Bound()
    weak = weakref.WeakMethod(gone.reselect)

    def direct():
        told.append("direct")

    for adopt in (direct, direct, weakref.WeakMethod(bound.reselect), weak):
        one.want(("a",), {"problem": "tuned"}, lambda: told.append("refresh"), adopt)
    del gone
    eventually(lambda: "bound" in told)
    assert told == ["refresh", "direct", "bound"]
    (answer,) = one.answers
    assert answer["nice"] == 19
    assert answer["policy"] == os.SCHED_IDLE
    one.want(("a",), {"problem": "tuned"}, lambda: told.append("again"), direct)
    eventually(lambda: one._child is None)  # nothing is left to do: nothing is kept
    assert len(one.answers) == 1
    one.want(("b",), {"problem": "tuned"}, lambda: None, lambda: told.append("b"))
    eventually(lambda: "b" in told)


def test_what_fails_is_tried_again_after_the_others_and_then_left(queue):
    one, told = queue(), []
    for name in ("untuned", "dies", "tuned"):
        one.want((name,), {"problem": name}, lambda: None, lambda name=name: told.append(name))
    eventually(lambda: not one.waiting)
    assert told == ["tuned"]
    names = [answer["key"][0] for answer in one.answers]
    assert sorted(names) == ["dies"] * 3 + ["tuned"] + ["untuned"] * 3
    assert names[:3] == ["untuned", "dies", "tuned"]
    assert "exited with status 3" in next(a for a in one.answers if a["key"] == ("dies",))["error"]


def test_what_nobody_thought_of_drops_its_wish_and_the_others_go_on(queue):
    one, told = queue(), []

    def fails():
        raise RuntimeError("a rebinding that fails")

    one.want(("a",), {"problem": "tuned"}, fails, lambda: told.append("a"))
    one.want(("b",), {"problem": "tuned"}, lambda: None, lambda: told.append("b"))
    eventually(lambda: told == ["b"])
    assert any("a rebinding that fails" in answer.get("error", "") for answer in one.answers)


def test_a_wish_that_came_to_nothing_waits_before_it_is_tried_again(queue, monkeypatch):
    monkeypatch.setattr(background, "AGAIN_S", 3600.0)
    one, told = queue(), []
    one.want(("a",), {"problem": "untuned"}, lambda: None, lambda: None)
    eventually(lambda: len(one.answers) == 1)
    one.want(("b",), {"problem": "tuned"}, lambda: None, lambda: told.append("b"))
    eventually(lambda: told)
    assert [answer["key"] for answer in one.answers] == [("a",), ("b",)]
    assert one.waiting == 1


def test_the_budgets_of_a_problem_and_of_the_process_are_kept(queue):
    with settings.override(budget_s=60.0, idle_budget_s=90.0):
        one = queue()
        request = {"problem": "untuned", "spends_s": 40.0}
        one.want(("a",), request, lambda: None, lambda: None)
        one.want(("b",), request, lambda: None, lambda: None)
        eventually(lambda: len(one.answers) == 3)
        asked = [(a["key"][0], a["budget_s"]) for a in one.answers]
        assert asked == [("a", 60.0), ("b", 50.0), ("a", 10.0)]
        one.want(("c",), request, lambda: None, lambda: None)
        eventually(lambda: one._child is None)
        assert len(one.answers) == 3


def test_what_is_frozen_meanwhile_is_not_tuned_and_goes_on_when_it_is_thawed(queue, tmp_path):
    frozen = threading.Event()
    one, told = queue(lambda: not frozen.is_set()), []
    thawed = tmp_path / "thawed"
    request = {"problem": "hangs", "unless": str(thawed)}
    one.want(("a",), request, lambda: None, lambda: told.append("a"))
    eventually(lambda: one._child is not None and one._child.alive)
    pid = one._child._process.pid
    frozen.set()
    eventually(lambda: not Path(f"/proc/{pid}").exists())
    thawed.touch()
    frozen.clear()
    eventually(lambda: told)


def test_stopping_ends_the_process_at_once(queue):
    one = queue()
    one.want(("a",), {"problem": "hangs", "unless": "/nowhere"}, lambda: None, lambda: None)
    eventually(lambda: one._child is not None and one._child.alive)
    pid, start = one._child._process.pid, time.monotonic()
    one.stop()
    assert time.monotonic() - start < 10.0
    assert not one._thread.is_alive()
    assert not Path(f"/proc/{pid}").exists()
    one.want(("b",), {"problem": "tuned"}, lambda: None, lambda: None)
    assert len(one.answers) <= 1
