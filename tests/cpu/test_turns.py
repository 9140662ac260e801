"""Whose turn it is to propose, among the implementations of a run."""

from __future__ import annotations

from collections import Counter

import pytest

from gristmill.core.plan import Candidate, Outcome
from gristmill.tuning.searches import FIRST, LEAST, POWER, Turns


def test_turns_go_to_implementations_that_come_near_the_best():
    turns, asked = Turns(["far", "near", "fails"]), Counter()
    times = {"far": 20.0, "near": 10.0}
    for _ in range(60):
        name = turns.next()
        turns.asked(name, 4)
        asked[name] += 4
        for _ in range(4):
            us = times.get(name)
            turns.told(Candidate(name), Outcome("ok" if us else "crash", device_us=us))
    assert asked["near"] > 6 * asked["far"]
    assert asked["far"] >= 240 * LEAST / (1 + 2 * LEAST) - 4  # it may come nearer yet
    assert asked["fails"] > 0
    assert turns.room("near", 16) == 16
    turns.asked("near", 0)  # its space has ended
    assert turns.active == ["far", "fails"]
    assert turns.next() in turns.active


def test_a_verdict_on_an_implementation_weighs_what_it_was_told():
    turns = Turns(["far", "near"])
    assert turns.room("far", 16) == turns.room("near", 16) == FIRST
    assert turns.room("far", 0) == 0
    shares = []
    for told in range(1, 12):
        turns.told(Candidate("far"), Outcome("ok", device_us=12.0))
        turns.told(Candidate("near"), Outcome("ok", device_us=10.0))
        shares.append(turns._share("far"))
        assert turns._share("near") == 1.0
        assert turns.room("far", 16) == (16 if told >= FIRST else FIRST)
    assert shares[: FIRST - 1] == [1.0] * (FIRST - 1)
    assert shares[FIRST - 1] == pytest.approx((10 / 12) ** FIRST)
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx((10 / 12) ** POWER)
    assert Turns(["alone"]).room("alone", 16) == 16  # nothing to be judged against
