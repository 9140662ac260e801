"""`gristmill.autotune` over kernels in Triton's interpreter: in this process, and in the worker."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

import gristmill as gm
from gristmill import settings
from gristmill.cache.store import store
from gristmill.core.space import Space, choice, derive, pow2, require
from gristmill.errors import InvalidInputError, TuningError, UnsupportedProblemError
from gristmill.tuners import answer
from gristmill.tuners.answer import AutotuneWarning
from gristmill.tuners.run import KernelRun
from gristmill.tuners.trial import KernelTrials

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))
users = pytest.importorskip("users_kernels")

pytestmark = [
    pytest.mark.usefixtures("fresh_store"),
    # Triton's interpreter takes one element of an array in a way that numpy gives up.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]
CONFIGS = [triton.Config({"BLOCK": b}, num_warps=4) for b in (32, 64, 128)]
N = 100


def grid(meta):
    return (triton.cdiv(meta["n"], meta["BLOCK"]),)


def tuned(kernel, configs=CONFIGS, key=("n",), **options):
    return gm.autotune(configs=configs, key=list(key), **options)(kernel)


def faulty(*faults):
    return [triton.Config({"BLOCK": 64, "FAULT": fault}) for fault in faults]


def statuses(tuner_call, monkeypatch):
    """The outcomes of the runs that a call makes, by config."""
    seen = {}
    real = KernelRun._tell

    def tell(self, candidate, outcome):
        seen[candidate.config] = outcome
        real(self, candidate, outcome)

    monkeypatch.setattr(KernelRun, "_tell", tell)
    tuner_call()
    return seen


@pytest.fixture
def no_runs(monkeypatch):
    """From here on, nothing may be measured."""

    def forbid():
        monkeypatch.setattr(KernelRun, "run", lambda self: pytest.fail("it was tuned again"))

    return forbid


# -------------------------------------------------------------------------------- the drop-in


def test_it_gives_what_tritons_gives_and_is_one():
    x = torch.randn(N)
    outputs, tuners = [], []

    def once(call, quantiles):  # Triton's own needs a driver
        call()
        return [1.0, 1.0, 1.0]

    for decorator, options in ((triton.autotune, {"do_bench": once}), (gm.autotune, {})):
        tuner = decorator(configs=CONFIGS, key=["n"], **options)(users.double)
        y = torch.full((N,), torch.nan)
        tuner[grid](x, y, N, "none")
        tuner[grid](x, y, n=N, FAULT="none")
        outputs.append(y)
        tuners.append(tuner)
    theirs, ours = tuners
    assert torch.equal(*outputs)
    assert torch.equal(outputs[1], 2 * x)
    assert isinstance(ours, triton.runtime.autotuner.Autotuner)
    assert ours.cache.keys() == theirs.cache.keys()
    assert ours.best_config in CONFIGS
    assert set(ours.configs_timings) == set(CONFIGS)
    for name in ("arg_names", "keys", "fn", "base_fn", "configs"):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize("isolate", [False, True])
def test_the_users_tensors_are_written_once_by_their_own_launch(isolate):
    x = torch.zeros(N)
    tuner = tuned(users.add_one, isolate=isolate)
    tuner[grid](x, N)
    assert torch.equal(x, torch.ones(N))
    tuner[grid](x, n=N)
    assert torch.equal(x, torch.full((N,), 2.0))


@pytest.mark.parametrize("isolate", [False, True])
def test_every_trial_finds_zero_or_the_old_value_where_it_is_told_to(isolate):
    x, total = torch.ones(N), torch.zeros(1)
    reset = {"reset_to_zero": ["total_ptr"], "outputs": ["total_ptr"]}
    tuner = tuned(
        users.count, reference=lambda x_ptr: x_ptr.sum().view(1), isolate=isolate, **reset
    )
    tuner[grid](x, total, N)
    assert total.item() == N
    assert tuner.best_plan.evidence.error == 0
    kept = tuned(
        users.add_one, reference=lambda x_ptr: {"x_ptr": x_ptr + 1}, restore_value=["x_ptr"]
    )
    kept[grid](x, N)
    assert torch.equal(x, torch.full((N,), 2.0))


def test_another_key_or_dtype_is_tuned_again_and_the_same_is_not(no_runs):
    tuner = tuned(users.double)
    x = torch.randn(2 * N)
    for n, dtype in ((N, torch.float32), (2 * N, torch.float32), (N, torch.float16)):
        y = torch.empty(n, dtype=dtype)
        tuner[grid](x[:n].to(dtype), y, n, "none")
    assert len(tuner.cache) == 3
    no_runs()
    tuner[grid](x[:N], torch.empty(N), N, "none")


def test_real_values_cross_overlapping_and_misaligned(monkeypatch):
    memory = torch.randn(3 * N + 1)
    x, y = memory[1 : N + 1], memory[N + 1 : 2 * N + 1]
    index = torch.randperm(N)
    tuner = tuned(
        users.gather,
        isolate=True,
        reference=lambda x_ptr, index_ptr: {"y_ptr": x_ptr[index_ptr]},
    )
    before = memory.clone()
    seen = statuses(lambda: tuner[grid](x, index, y, N), monkeypatch)
    assert {o.status for o in seen.values()} <= {"ok", "slow"}
    assert torch.equal(y, before[1 : N + 1][index])
    assert torch.equal(memory[2 * N + 1 :], before[2 * N + 1 :])


def test_heuristics_above_and_below_see_what_they_see_in_triton():
    below = triton.heuristics({"FAULT": lambda a: "none" if a["BLOCK"] > 32 else "garbage"})
    tuner = tuned(below(users.double), reference=lambda x_ptr: {"y_ptr": 2 * x_ptr})
    above = triton.heuristics({"n": lambda a: a["x_ptr"].numel()})(tuner)
    x, y = torch.randn(N), torch.empty(N)
    above[grid](x, y)
    assert torch.equal(y, 2 * x)
    assert tuner.best_config.kwargs["BLOCK"] > 32


def test_pruning_is_tritons():
    pruned = {
        "early_config_prune": lambda configs, named, **kwargs: [
            c for c in configs if c.kwargs["BLOCK"] <= 64 and named["n"] == N
        ],
        "perf_model": lambda BLOCK, **rest: BLOCK,
        "top_k": 1,
    }
    tuner = tuned(users.double, prune_configs_by=pruned)
    tuner[grid](torch.randn(N), torch.empty(N), N, "none")
    assert tuner.best_config is CONFIGS[0]
    assert tuner.best_plan is None  # one is left: there was nothing to measure


def test_hooks_run_around_trials_on_copies_and_say_that_they_do_not_travel():
    x, seen = torch.zeros(N), []

    def pre(named, reset_only=False):
        seen.append(("pre", named["x_ptr"].data_ptr() == x.data_ptr(), named["BLOCK"]))

    def post(named, exception):
        seen.append(("post", named["x_ptr"].data_ptr() == x.data_ptr(), exception))

    tuner = tuned(users.add_one, pre_hook=pre, post_hook=post, isolate=True)
    with pytest.warns(AutotuneWarning, match="in this process, on copies .* a hook"):
        tuner[grid](x, N)
    assert {("pre", False, 32), ("pre", False, 128), ("post", False, None)} <= set(seen)
    assert not any(mine for _, mine, _ in seen)
    assert torch.equal(x, torch.ones(N))


def test_a_configs_own_hook_runs_before_its_launches():
    seen = []
    hooked = [
        triton.Config({"BLOCK": b}, pre_hook=lambda a, b=b: seen.append((b, a["n"])))
        for b in (32, 64)
    ]
    tuner = tuned(users.add_one, hooked)
    x = torch.zeros(N)
    tuner[grid](x, N)
    assert {(32, N), (64, N)} <= set(seen)
    seen.clear()
    tuner[grid](x, N)
    assert seen == [(tuner.best_config.kwargs["BLOCK"], N)]


def test_a_do_bench_of_the_users_decides():
    blocks = []

    def do_bench(call, quantiles):
        call()
        blocks.append(len(blocks))
        return [float(10 - len(blocks))] * 3  # the later, the faster

    tuner = tuned(users.double, do_bench=do_bench)
    tuner[grid](torch.randn(N), torch.empty(N), N, "none")
    assert len(blocks) == 2 * len(CONFIGS)  # once, and once as finalists
    assert tuner.best_plan.evidence.device_us == pytest.approx(4e3)


# --------------------------------------------------------------------------------- what is checked


def test_faulty_configs_are_rows_and_the_right_one_is_used(monkeypatch):
    x, y = torch.randn(N), torch.zeros(N)
    tuner = tuned(
        users.double,
        faulty(*users.FAULTS),
        isolate=True,
        reference=lambda x_ptr: {"y_ptr": 2 * x_ptr},
    )
    monkeypatch.setattr("gristmill.tuning.measurer.FIRST_TIMEOUT_S", 15.0)
    with settings.override(candidate_timeout_s=3.0):
        seen = statuses(lambda: tuner[grid](x, y, N), monkeypatch)
    assert {c["FAULT"]: o.status for c, o in seen.items()} == {
        "none": "ok",
        "garbage": "wrong",
        "overrun": "wrong",
        "partial": "wrong",
        "raise": "launch_error" if seen_raise(seen) == "launch_error" else "compile_error",
        "trap": "crash",
        "hang": "timeout",
    }
    assert torch.equal(y, 2 * x)
    assert tuner.best_config.kwargs["FAULT"] == "none"
    assert "not checked" not in tuner.best_plan.reason


def seen_raise(seen):
    return next(o.status for c, o in seen.items() if c["FAULT"] == "raise")


def test_a_changed_input_is_wrong(monkeypatch):
    @triton.jit
    def sly(x_ptr, y_ptr, n, FAULT: tl.constexpr, BLOCK: tl.constexpr):
        offsets = tl.arange(0, BLOCK)
        mask = offsets < n
        tl.store(y_ptr + offsets, 2 * tl.load(x_ptr + offsets, mask=mask), mask=mask)
        if FAULT == "change":
            tl.store(x_ptr, 0.0)

    configs = [triton.Config({"BLOCK": 128, "FAULT": f}) for f in ("change", "none")]
    x, y = torch.randn(N), torch.empty(N)
    tuner = tuned(sly, configs, reference=lambda x_ptr: 2 * x_ptr, outputs=["y_ptr"])
    seen = statuses(lambda: tuner[(1,)](x, y, N), monkeypatch)
    reasons = {c["FAULT"]: o.reason for c, o in seen.items()}
    assert reasons["change"] == "it changed its argument `x_ptr`"
    assert tuner.best_config.kwargs["FAULT"] == "none"


def test_without_a_reference_the_plan_says_that_nobody_looked():
    tuner = tuned(users.double)
    tuner[grid](torch.randn(N), torch.empty(N), N, "none")
    assert tuner.best_plan.reason.endswith("its outputs were not checked")
    assert tuner.best_plan.evidence.error is None


@pytest.mark.parametrize("isolate", [False, True])
def test_configs_that_disagree_with_the_first_are_wrong(monkeypatch, isolate):
    tuner = tuned(
        users.double,
        faulty("none", "garbage", "trap") if isolate else faulty("none", "garbage"),
        check="agree",
        isolate=isolate,
    )
    x, y = torch.randn(N), torch.empty(N)
    seen = statuses(lambda: tuner[grid](x, y, N), monkeypatch)
    by_fault = {c["FAULT"]: o for c, o in seen.items()}
    assert by_fault["garbage"].status == "wrong"
    assert by_fault["garbage"].reason.startswith("unlike the first candidate that ran: `y_ptr`")
    assert torch.equal(y, 2 * x)


def test_where_most_disagree_nobody_is_believed():
    configs = [
        triton.Config({"BLOCK": b, "FAULT": f})
        for b, f in ((32, "garbage"), (32, "none"), (64, "none"))
    ]
    tuner = tuned(users.double, configs, check="agree")
    with pytest.raises(TuningError, match="2 of 3 configs give other outputs than the first"):
        tuner[grid](torch.randn(N), torch.empty(N), N)


def test_where_nothing_is_right_the_first_reasons_are_in_the_error():
    tuner = tuned(
        users.double, faulty("garbage", "partial"), reference=lambda x_ptr: {"y_ptr": 2 * x_ptr}
    )
    with pytest.raises(TuningError, match=r"wrong \(`y_ptr` is wrong in 100 of 100"):
        tuner[grid](torch.randn(N), torch.empty(N), N)


def test_a_reference_that_answers_something_else_is_named():
    x, y = torch.randn(N), torch.empty(N)
    cases = [
        (lambda z_ptr: z_ptr, "`reference` has the parameter 'z_ptr'"),
        (lambda x_ptr: (x_ptr, x_ptr), r"returned 2 value\(s\) for the outputs \['y_ptr'\]"),
        (lambda x_ptr: x_ptr[1:], r"the shape \(99,\), where the argument has \(100,\)"),
        (lambda x_ptr: {"n": x_ptr}, "gives 'n' a Tensor, where the kernel has a int"),
    ]
    for reference, words in cases:
        tuner = tuned(users.double, reference=reference, outputs=["y_ptr"])
        with pytest.raises(InvalidInputError, match=words):
            tuner[grid](x, y, N, "none")


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
