"""`@gristmill.autotune`, the decorator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import triton

from gristmill.core.space import Space
from gristmill.errors import InvalidInputError, did_you_mean
from gristmill.tuners.autotuner import US_PER_MS, Autotuner
from gristmill.tuners.travel import base_kernel, is_jitted
from gristmill.tuners.trial import Check, Terms
from gristmill.tuners.truth import Reference
from gristmill.tuning.strategies import StrategyLike
from gristmill.tuning.timed import Effort

MANY = 10_000  # repeats, where `rep` says how long


def autotune(
    configs: Sequence[triton.Config] | None = None,
    key: Sequence[str] | None = None,
    prune_configs_by: Mapping[str, Any] | None = None,
    reset_to_zero: Sequence[str] | None = None,
    restore_value: Sequence[str] | None = None,
    pre_hook: Callable[..., Any] | None = None,
    post_hook: Callable[..., Any] | None = None,
    warmup: float | None = None,
    rep: float | None = None,
    use_cuda_graph: bool = False,
    do_bench: Callable[..., Any] | None = None,
    cache_results: bool = True,
    *,
    space: Space | None = None,
    reference: Reference | None = None,
    check: Check | None = None,
    outputs: Sequence[str] = (),
    rtol: float | None = None,
    atol: float = 0.0,
    isolate: bool | None = None,
    budget_s: float | None = None,
    trials: int | None = None,
    strategy: StrategyLike = "auto",
    seed: int = 0,
) -> Callable[[Any], Autotuner]:
    """Choose the fastest config of a Triton kernel by measurement: `@triton.autotune`, and more.

        @gristmill.autotune(configs=[triton.Config({"BLOCK": 256}, num_warps=4), ...], key=["n"])
        @triton.jit
        def kernel(x_ptr, n, BLOCK: tl.constexpr): ...

    A call whose `key` values, dtypes and device were not seen before looks into the plan store, and
    tunes where that has nothing: every config runs on a copy of the call's arguments (yours are
    written once, by your own launch), in a worker process where the kernel can travel, so that one
    that traps or hangs is a row and not the end. Ctrl-C keeps what was measured. Nothing is tuned
    under CUDA-graph capture or `torch.compile`, or with `GRISTMILL_TUNE=never`: the first config is
    used. With several configs left, ties go to who needs fewer registers.

    Args:
        configs, key, prune_configs_by, reset_to_zero, restore_value, pre_hook, post_hook: as in
            Triton. Hooks are functions of yours: with them, configs are tried in this process.
        warmup, rep: milliseconds of warm-up and of measuring a config (default: 30 ms of repeats,
            at most 25). use_cuda_graph: accepted; kernels are timed inside a replayed graph anyway
            where they can be captured. do_bench: times configs in place of our timer, in this
            process.
        cache_results: keep results in the plan store (`True`, where Triton has `False`).
        space: a `Space` in place of `configs`: knobs named like the kernel's constexprs and the
            compiler's options (`num_warps`, ...); its rules see the config, the call
            (`p["n"]`, `p["x_ptr"].shape`) and the target.
        reference: the truth. A function whose parameters are named like the kernel's arguments; it
            gets their values (floating-point tensors in float64) and returns a dict from output
            argument to its true value, or the values in the order of `outputs`. Configs that are
            off by more than `rtol (|truth| + rms(truth)) + atol` are rejected, and so are those
            that change another argument.
        check: `reference` (the default with one), `agree` (every config has to give what the first
            gives) or `none` (the default without): a plan says which.
        outputs: the arguments that the kernel writes. They hold NaN before a checked run, unless
            `reset_to_zero` or `restore_value` has them.
        rtol, atol: default for `rtol`: eight roundings of the output's dtype.
        isolate: `False` tries configs in this process, `True` in a worker even on a CPU. Default:
            a worker for a GPU.
        budget_s, trials: limits of a search. Default: a list is measured to its end, a space for
            `GRISTMILL_BUDGET_S`.
        strategy, seed: of a search, as for `gristmill.tune`.

    Size: Triton's arguments and ours, each said once.

    Raises:
        InvalidInputError: both of `configs` and `space`; a name that is no argument of
            the kernel; `check` without what it needs.
    """
    if space is not None and (configs or prune_configs_by):
        raise InvalidInputError(
            "`space` is given with `configs` or `prune_configs_by`; a space has its own list and "
            "its own constraints. Leave one out."
        )
    del use_cuda_graph  # kernels are timed in a replayed graph where they can be captured
    limits = {"budget_s": budget_s, "trials": trials, "strategy": strategy, "seed": seed}
    effort = Effort(
        repeats=Effort().repeats if rep is None else MANY,
        timed_us=Effort().timed_us if rep is None else rep * US_PER_MS,
        warmup_us=0.0 if warmup is None else warmup * US_PER_MS,
    )

    def decorator(fn: Any) -> Autotuner:
        kernel = _tunable_kernel(fn)
        terms = asked_terms(
            kernel.arg_names, reference, check, outputs, reset_to_zero, restore_value, rtol, atol
        )
        check_names(kernel.__name__, kernel.arg_names, key or (), terms)
        return Autotuner(
            fn,
            list(configs or ()),
            list(key or ()),
            space,
            terms,
            reference,
            effort,
            {"isolate": isolate, "keep": cache_results, **limits},
            pre_hook=pre_hook,
            post_hook=post_hook,
            prune_configs_by=prune_configs_by,
            do_bench=do_bench,
        )

    return decorator


def asked_terms(
    names: Sequence[str],
    reference: Reference | None,
    check: Check | None,
    outputs: Sequence[str],
    reset_to_zero: Sequence[str] | None,
    restore_value: Sequence[str] | None,
    rtol: float | None,
    atol: float,
) -> Terms:
    """What is asked of every config, checked."""
    chosen = check or ("none" if reference is None else "reference")
    if chosen not in get_args(Check):
        raise InvalidInputError(
            f"`check` is {check!r}; it can be {', '.join(get_args(Check))}. Choose one."
            f"{did_you_mean(str(check), get_args(Check))}"
        )
    if (chosen == "reference") != (reference is not None):
        raise InvalidInputError(
            f"`check` is {chosen!r} and `reference` is {reference!r}; `check='reference'` needs a "
            "reference, and the others use none. Change one of them."
        )
    return Terms(
        names=tuple(names),
        check=chosen,
        outputs=tuple(outputs),
        reset_to_zero=tuple(reset_to_zero or ()),
        restore_value=tuple(restore_value or ()),
        rtol=rtol,
        atol=atol,
    )


def _tunable_kernel(fn: Any) -> Any:
    """The `@triton.jit` function under the decorators that may be there."""
    if not is_jitted(base_kernel(fn)):
        raise InvalidInputError(
            f"`gristmill.autotune` decorates a {type(fn).__name__}; it needs a `@triton.jit` "
            "function, under `@triton.heuristics` or not. Put `@triton.jit` below it, or take "
            "`gristmill.TritonAutoTuner` for a Python function."
        )
    inner = fn
    while inner is not base_kernel(fn):
        if isinstance(inner, triton.runtime.autotuner.Autotuner):
            raise InvalidInputError(
                f"`{base_kernel(fn).__name__}` is autotuned already, below this decorator; only "
                "one of the two can choose. Leave one out."
            )
        inner = inner.fn
    return base_kernel(fn)


def check_names(kernel: str, parameters: Sequence[str], key: Sequence[str], terms: Terms) -> None:
    """Raise `InvalidInputError` for a name that is no argument (Triton before 3.9 drops it, and
    then tunes once and never again)."""
    given = (
        ("key", key),
        ("reset_to_zero", terms.reset_to_zero),
        ("restore_value", terms.restore_value),
        ("outputs", terms.outputs),
    )
    for option, names in given:
        for name in names:
            if name not in parameters:
                raise InvalidInputError(
                    f"`{option}` has the name {name!r}; `{kernel}` has the "
                    f"arguments {', '.join(parameters)}. Rename or remove it."
                    f"{did_you_mean(name, parameters)}"
                )
