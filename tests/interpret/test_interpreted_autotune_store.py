"""`gristmill.autotune` over kernels in Triton's interpreter: spaces, what is kept, when nothing is
tuned, and mistakes."""

from __future__ import annotations

import contextlib

import pytest
import torch
import triton
import users_kernels as users
from autotune_cases import CONFIGS, MARKS, N, faulty, grid, no_runs, statuses, tuned

import gristmill as gm
from gristmill import settings
from gristmill.cache.store import store
from gristmill.cli import cache
from gristmill.core.space import Space, choice, derive, pow2, require
from gristmill.errors import InvalidInputError, TuningError, UnsupportedProblemError
from gristmill.tuners import answer
from gristmill.tuners.answer import AutotuneWarning
from gristmill.tuners.choices import keywords, label
from gristmill.tuners.trial import KernelTrials
from gristmill.tuning.strategies import Checked

pytestmark = MARKS
BLOCKS, WARPS = (16, 32, 64, 128, 256), (1, 2, 4, 8)
__all__ = ["no_runs"]  # a fixture


# ------------------------------------------------------------------------------------------ spaces

SPACE = Space(
    pow2("BLOCK", 16, 256),
    choice("num_warps", 2, 4),
    derive("FAULT", lambda c, p, t: "none" if p["x_ptr"].dtype == "float32" else "garbage"),
    require("a block is larger than the row", lambda c, p, t: c["BLOCK"] <= p["n"]),
)


def test_a_declared_space_sees_the_call_and_derives_constexprs(no_runs):
    tuner = gm.autotune(space=SPACE, key=["n"], trials=4)(users.double)
    with pytest.raises(UnsupportedProblemError, match="has not chosen yet"):
        _ = tuner.configs
    x, y = torch.randn(N), torch.empty(N)
    tuner[grid](x, y, N)
    assert torch.equal(y, 2 * x)
    assert tuner.best_config.kwargs["BLOCK"] <= 64
    assert tuner.configs == [tuner.best_config]
    no_runs()
    again = gm.autotune(space=SPACE, key=["n"])(users.double)
    again[grid](x, y, N)
    assert again.best_config == tuner.best_config


def test_a_budget_that_the_start_has_used_up_still_tries_some(monkeypatch):
    """Else the first config of the space would be taken, whatever it is."""
    measured, measure = [], KernelTrials.measure
    monkeypatch.setattr(
        KernelTrials,
        "measure",
        lambda trials, candidate, best: (
            measured.append(candidate) or measure(trials, candidate, best)
        ),
    )
    tuner = gm.autotune(space=SPACE, key=["n"], budget_s=1e-6)(users.double)
    tuner[grid](torch.randn(N), torch.empty(N), N)
    assert len(set(measured)) == 6


def test_a_space_with_no_valid_config_gives_its_reasons():
    tuner = gm.autotune(space=SPACE, key=["n"])(users.double)
    with pytest.raises(TuningError, match="a block is larger than the row"):
        tuner[grid](torch.randn(N), torch.empty(N), 8)


# --------------------------------------------------------------------------------------- the store


def test_results_are_kept_for_the_next_process(no_runs):
    x, y = torch.randn(N), torch.empty(N)
    first = tuned(users.double)
    first[grid](x, y, N, "none")
    store().close()
    no_runs()
    second = tuned(users.double)
    second[grid](x, y, N, "none")
    assert second.best_config == first.best_config


def test_a_new_config_is_measured_beside_the_best_of_the_old(monkeypatch):
    x, y = torch.randn(N), torch.empty(N)
    many = [triton.Config({"BLOCK": b}, num_warps=w) for b in (16, 32, 64, 128) for w in (1, 2)]
    tuned(users.double, many)[grid](x, y, N, "none")
    more = tuned(users.double, [*many, triton.Config({"BLOCK": 256})])
    seen = statuses(lambda: more[grid](x, y, N, "none"), monkeypatch)
    assert any(c["BLOCK"] == 256 for c in seen)
    assert len(seen) <= 6  # the first, the four best of before, the new one
    fewer = tuned(users.double, many[:2])
    fewer[grid](x, y, N, "none")
    assert fewer.best_config in many[:2]


@pytest.mark.parametrize("strategy", ["bayesian", "evolutionary", "optuna", "portfolio"])
def test_a_strategy_hears_once_of_what_an_edited_list_still_has(strategy, monkeypatch):
    x, y = torch.randn(N), torch.empty(N)
    listed = {(b, w): triton.Config({"BLOCK": b}, num_warps=w) for b in BLOCKS for w in WARPS}
    before = tuned(users.double, [*listed.values()], strategy=strategy)
    before[grid](x, y, N, "none")
    best = before.best_config.kwargs["BLOCK"]
    gone = next(b for b in BLOCKS if b != best)
    edited = {(b, w): config for (b, w), config in listed.items() if b != gone}
    edited |= {(512, w): triton.Config({"BLOCK": 512}, num_warps=w) for w in WARPS}
    told = []
    real = Checked.tell
    monkeypatch.setattr(
        Checked, "tell", lambda self, c, o: (told.append((c.key, o.device_us)), real(self, c, o))
    )
    after = tuned(users.double, [*edited.values()], strategy=strategy)
    seen = statuses(lambda: after[grid](x, y, N, "none"), monkeypatch)
    assert after.best_config in edited.values()
    assert sum(c["BLOCK"] == 512 for c in seen) == len(WARPS)
    assert {key for key, _ in told} == {label(keywords(c)).key for c in edited.values()}
    assert len(told) == len(set(told))


def test_nothing_is_kept_where_it_is_not_asked_for():
    tuned(users.double, cache_results=False)[grid](torch.randn(N), torch.empty(N), N, "none")
    assert not store().plans()


def test_a_check_is_part_of_what_a_plan_is_kept_for(monkeypatch):
    x, y = torch.randn(N), torch.empty(N)
    tuned(users.double, faulty("garbage", "none"))[grid](x, y, N)
    checked = tuned(
        users.double, faulty("garbage", "none"), reference=lambda x_ptr: {"y_ptr": 2 * x_ptr}
    )
    checked[grid](x, y, N)
    assert checked.best_config.kwargs["FAULT"] == "none"


def test_an_interruption_keeps_what_was_measured(monkeypatch):
    real, calls = KernelTrials.measure, []

    def measure(self, candidate, best_us):
        calls.append(candidate)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, candidate, best_us)

    monkeypatch.setattr(KernelTrials, "measure", measure)
    tuner = tuned(users.double)
    x, y = torch.randn(N), torch.empty(N)
    with pytest.raises(KeyboardInterrupt):
        tuner[grid](x, y, N, "none")
    (plan,) = {p.candidate for p in store().plans()}
    assert plan.config["BLOCK"] == 32
    assert not tuner.cache
    with settings.override(tune="never"):
        tuner[grid](x, y, N, "none")
    assert torch.equal(y, 2 * x)


# ------------------------------------------------------------------------------ when not to tune


def test_never_takes_the_first_config(no_runs):
    no_runs()
    tuner = tuned(users.double)
    x, y = torch.randn(N), torch.empty(N)
    with settings.override(tune="never"):
        tuner[grid](x, y, N, "none")
    assert tuner.best_config is CONFIGS[0]
    assert torch.equal(y, 2 * x)


def test_a_capture_is_not_tuned_and_not_remembered(monkeypatch):
    tuner = tuned(users.double)
    x, y = torch.randn(N), torch.empty(N)
    answer._said.clear()
    with monkeypatch.context() as patch:
        patch.setattr("gristmill.tuning.occasion.refusal", lambda: "during CUDA-graph capture")
        with pytest.warns(AutotuneWarning, match="not tuned during CUDA-graph capture"):
            tuner[grid](x, y, N, "none")
    assert torch.equal(y, 2 * x)
    assert not tuner.cache
    tuner[grid](x, y, N, "none")  # after it, it is tuned at once
    assert tuner.best_plan.origin == "tuned"


def test_beside_another_tuner_the_first_config_is_used_for_now(no_runs):
    tuner = tuned(users.double)
    x, y = torch.randn(N), torch.empty(N)
    real, held = tuner._task, contextlib.ExitStack()

    def leased(*args):
        task = real(*args)
        target = answer.device_target(torch.device("cpu"))
        held.enter_context(
            store().lease(f"{task.name}|{task.bucket(task.problem).key}|{target.key}")
        )
        return task

    tuner._task = leased
    no_runs()
    with held:
        tuner[grid](x, y, N, "none")
    assert tuner.best_config is CONFIGS[0]
    assert not tuner.cache


# -------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key": ["m"]}, "`key` has the name 'm'; `double` has the arguments x_ptr"),
        ({"outputs": ["z"]}, "`outputs` has the name 'z'"),
        ({"reset_to_zero": ["yptr"]}, "Did you mean 'y_ptr'"),
        ({"check": "perhaps"}, "`check` is 'perhaps'; it can be reference, agree, none"),
        ({"check": "reference"}, "needs a reference"),
        ({"space": SPACE}, "`space` is given with `configs`"),
    ],
)
def test_mistakes_are_named_where_they_are_made(options, words):
    with pytest.raises(InvalidInputError, match=words):
        tuned(users.double, **options)


def test_only_kernels_that_are_not_tuned_already_are_decorated():
    with pytest.raises(InvalidInputError, match="decorates a function"):
        tuned(users.plain)
    with pytest.raises(InvalidInputError, match="autotuned already"):
        tuned(triton.autotune(configs=CONFIGS, key=["n"])(users.double))


def test_a_value_given_and_tuned_is_a_conflict():
    tuner = tuned(users.double)
    with pytest.raises(ValueError, match="`BLOCK` is given in the call"):
        tuner[grid](torch.randn(N), torch.empty(N), N, "none", BLOCK=16)


def test_pruning_the_store_leaves_kernels_that_only_their_programs_know(capsys, no_runs):
    x, y = torch.randn(N), torch.empty(N)
    tuned(users.double)[grid](x, y, N, "none")
    cache.prune(stale=True)
    assert "removed 0 rows" in capsys.readouterr().out
    no_runs()
    tuned(users.double)[grid](x, y, N, "none")
