"""`gristmill.TritonAutoTuner`: measure every config of a kernel or of a function that launches one,
and say how each did."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gristmill.cache.store import PlanStore, store
from gristmill.core.config import Config
from gristmill.core.plan import Outcome, Plan, Status
from gristmill.core.target import device_target
from gristmill.errors import InvalidInputError, TuningError, did_you_mean
from gristmill.measure.ceilings import Ceilings
from gristmill.selection.frozen import refuse_tuning
from gristmill.tuners import launching
from gristmill.tuners.answer import OBJECTIVE, tune
from gristmill.tuners.arguments import Arguments, describe
from gristmill.tuners.autotune import asked_terms, check_names
from gristmill.tuners.choices import as_space
from gristmill.tuners.task import KernelTask
from gristmill.tuners.travel import base_kernel, function_hash, is_jitted
from gristmill.tuners.trial import Call, Check
from gristmill.tuners.truth import Reference, truth_of
from gristmill.tuning.budget import TuningInterrupted
from gristmill.tuning.timed import Effort

LIMITS = ("budget_s", "trials", "strategy", "seed")
Amount = float | Callable[[Any], float] | None


@dataclass(frozen=True, slots=True)
class KernelMetrics:
    """How fast the best config is.

    Attributes:
        latency_ms: device time of one call, caches flushed, median.
        throughput_tflops: `flops` per second, in 1e12; `None` where `flops` was not given.
        bandwidth_gbps: `size_bytes` per second, in 1e9; `None` where `size_bytes` was not given.
        bandwidth_utilization: that rate as a share of a large `copy_` measured on this device.
    """

    latency_ms: float
    throughput_tflops: float | None = None
    bandwidth_gbps: float | None = None
    bandwidth_utilization: float | None = None


@dataclass(frozen=True, slots=True)
class ConfigResult:
    """One config: its time, or the class of its failure with the reason.

    Attributes:
        config: the keywords. status: as `gristmill explain` has them (`ok`, `wrong`, `crash`, ...).
        latency_ms: as in `KernelMetrics`; `None` where it failed.
        error: the worst error as a share of the bound, where it was checked.
    """

    config: dict[str, Any]
    status: Status
    latency_ms: float | None
    reason: str = ""
    error: float | None = None


@dataclass(frozen=True, slots=True)
class AutoTuneResult:
    """What `TritonAutoTuner.tune` found.

    Attributes:
        best_config: the keywords of the chosen config. metrics: how fast it is.
        results: every config that was tried, the fastest first, failures last.
        checked: against what outputs were compared: `reference`, `agree` or `none`.
        reason: why this one.
    """

    best_config: dict[str, Any]
    metrics: KernelMetrics
    results: tuple[ConfigResult, ...] = field(repr=False)
    checked: Check = "none"
    reason: str = ""


class TritonAutoTuner:
    """Tunes a `@triton.jit` kernel (with `grid`), or a Python function that takes a config as
    keywords.

        tuner = TritonAutoTuner(softmax_kernel, {"BLOCK": [256, 512], "num_warps": [4, 8]},
                                grid=lambda meta: (meta["rows"],))
        result = tuner.tune(x, out, rows, problem_size=(rows, columns))
        result.best_config, result.metrics.latency_ms

    Args:
        kernel_fn: a kernel; or `kernel_fn(*args, **kwargs, **config)`.
        config_space: a dict of lists (their product), a list of dicts or of `triton.Config`, or a
            `Space`.
        warmup_runs, benchmark_runs: untimed and timed calls of every config. The five best run
            `benchmark_runs` more, in turns.
        cache_dir: folder of the plan store (default: the user's).
        grid: of a kernel: a tuple, or a function of the arguments by name.
        flops, size_bytes: operations and bytes of one call: numbers, or functions of
            `problem_size`.
        reference, check, outputs, rtol, atol, reset_to_zero, restore_value, isolate, budget_s,
            trials, strategy, seed: as for `gristmill.autotune`. A function's returned values are
            outputs too.

    Raises:
        InvalidInputError: a kernel without `grid`, an empty space, a name that is no argument.
    """

    def __init__(
        self,
        kernel_fn: Callable[..., Any],
        config_space: Any,
        warmup_runs: int = 10,
        benchmark_runs: int = 100,
        cache_dir: str | Path | None = None,
        *,
        grid: Any = None,
        flops: Amount = None,
        size_bytes: Amount = None,
        reference: Reference | None = None,
        check: Check | None = None,
        outputs: Sequence[str] = (),
        rtol: float | None = None,
        atol: float = 0.0,
        reset_to_zero: Sequence[str] = (),
        restore_value: Sequence[str] = (),
        isolate: bool | None = None,
        **limits: Any,
    ) -> None:
        self._is_kernel = is_jitted(base_kernel(kernel_fn))
        if self._is_kernel != (grid is not None):
            raise InvalidInputError(
                f"`grid` is {grid!r} and `kernel_fn` is a {type(kernel_fn).__name__}; a "
                "`@triton.jit` kernel needs a grid, a Python function has none. "
                f"{'Pass `grid=`' if self._is_kernel else 'Leave `grid` out'}."
            )
        self.kernel_fn, self.space, self.grid = kernel_fn, as_space(config_space), grid
        self.flops, self.size_bytes, self._reference = flops, size_bytes, reference
        self._function = base_kernel(kernel_fn) if self._is_kernel else kernel_fn
        self._parameters = _parameters(self._function)
        terms = (reference, check, outputs, reset_to_zero, restore_value, rtol, atol)
        self._terms = asked_terms(self._parameters, *terms)
        check_names(launching.store_name(self._function), self._parameters, (), self._terms)
        self._effort = Effort(
            repeats=_count("benchmark_runs", benchmark_runs, 1),
            timed_us=math.inf,
            pairs=benchmark_runs,
            warmup_runs=_count("warmup_runs", warmup_runs, 0),
            give_up=False,
        )
        for name in limits.keys() - set(LIMITS):
            raise InvalidInputError(
                f"`TritonAutoTuner` is given `{name}`; of a search it takes {', '.join(LIMITS)}. "
                f"Leave it out, or rename it.{did_you_mean(name, LIMITS)}"
            )
        self._limits = {"isolate": isolate, **limits}
        self._store = store() if cache_dir is None else PlanStore(Path(cache_dir))

    def tune(
        self,
        *args: Any,
        problem_size: Any = None,
        device: torch.device | str | None = None,
        kernel_type: str = "",
        **kwargs: Any,
    ) -> AutoTuneResult:
        """Measure the configs on copies of these arguments, and keep the choice.

        Args:
            args, kwargs: what `kernel_fn` is called with, without what a config adds.
            problem_size: what `flops` and `size_bytes` get, and what the result is kept for
                (default: the arguments' shapes).
            device: where the tensors have to be (default: where they are).
            kernel_type: tells results of one `kernel_fn` apart.

        Raises:
            TuningError: no config runs, or none gives right outputs; another process is measuring.
            TuningInterrupted: a `KeyboardInterrupt`, after keeping what was measured.
            FrozenError: plans are frozen.
        """
        where = _on(device, launching.device_of((*args, *kwargs.values())))
        flops = _amount("flops", self.flops, problem_size)
        size_bytes = _amount("size_bytes", self.size_bytes, problem_size)
        task = self._task(args, kwargs, self._key(problem_size, kernel_type, args, kwargs))
        refuse_tuning(task.name)
        run = tune(task, where, self._store, afresh=True, **self._limits)
        if run is not None and run.result.interrupted:
            raise TuningInterrupted(run.result)
        plan = None if run is None else run.result.plans.get(OBJECTIVE)
        if run is None or plan is None:
            skipped = "another process is tuning it" if run is None else run.result.skipped
            raise TuningError(f"{task.name} is not tuned: {skipped}. Wait for it, then ask again.")
        rows = [self._row(c.config, o) for c, o in run.result.outcomes.items()]
        rows.sort(key=_rank)
        outcome = run.result.outcomes[plan.candidate]
        return AutoTuneResult(
            best_config=self._values(plan.candidate.config),
            metrics=_metrics(outcome, flops, size_bytes, where),
            results=tuple(rows),
            checked=self._terms.check,
            reason=plan.reason,
        )

    def get_cached_config(
        self, problem_size: Any, device: torch.device | str, kernel_type: str = ""
    ) -> dict[str, Any] | None:
        """The config kept for a problem size on a device, or `None`."""
        target = device_target(_on(device, torch.device(device)))
        key = self._key(problem_size, kernel_type, (), {})
        plan: Plan | None = self._store.plan(
            launching.store_name(self._function),
            f"|{key},source={self._source_hash}",
            target.key,
            OBJECTIVE,
        )
        if plan is None or plan.source_hash != self._source_hash:
            return None
        return self._values(plan.candidate.config)

    @functools.cached_property
    def _source_hash(self) -> str:
        if self._is_kernel:
            return launching.identity(self._function)
        return function_hash(self._function)

    def _key(
        self, problem_size: Any, kernel_type: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> str:
        """What a result is kept for."""
        size = f"problem_size={describe(problem_size)}"
        if problem_size is None:
            named = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
            size = ",".join(f"{name}={describe(value)}" for name, value in named.items())
        return f"{kernel_type},{size},check={self._terms.check}"

    def _values(self, config: Config) -> dict[str, Any]:
        values = launching.values_of(self.space, config, self._parameters)
        values.pop("pre_hook", None)
        return values

    def _task(self, args: Sequence[Any], kwargs: dict[str, Any], key: str) -> KernelTask:
        named = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        if self._is_kernel:
            named = launching.named_arguments(self._function, args, kwargs)
        reference, names = self._reference, self._terms.outputs
        outputs = names if self._is_kernel or names else None
        name = launching.store_name(self._function)
        resolve = (
            launching.Launches(self.kernel_fn, args, kwargs, self.grid, self._values)
            if self._is_kernel
            else lambda config: Call(None, self._values(config))
        )
        return KernelTask(
            name=name,
            key=key,
            function=self._function,
            arguments=Arguments.of(args, kwargs),
            problem=launching.problem_of(name, named),
            space=self.space,
            resolve=resolve,
            source_hash=self._source_hash,
            terms=self._terms,
            effort=self._effort,
            make_truth=(None if reference is None else lambda: truth_of(reference, named, outputs)),
        )

    def _row(self, config: Config, outcome: Outcome) -> ConfigResult:
        latency_ms = None if outcome.device_us is None else outcome.device_us / 1e3
        return ConfigResult(
            self._values(config), outcome.status, latency_ms, outcome.reason, outcome.error
        )


def _metrics(
    outcome: Outcome, flops: float | None, size_bytes: float | None, device: torch.device
) -> KernelMetrics:
    assert outcome.device_us is not None
    seconds = outcome.device_us / 1e6
    rate = None if size_bytes is None else size_bytes / seconds
    return KernelMetrics(
        latency_ms=outcome.device_us / 1e3,
        throughput_tflops=None if flops is None else flops / seconds / 1e12,
        bandwidth_gbps=None if rate is None else rate / 1e9,
        bandwidth_utilization=None if rate is None else rate / _copy_bytes_per_s(device),
    )


def _rank(row: ConfigResult) -> tuple[bool, float]:
    return (row.status != "ok", math.inf if row.latency_ms is None else row.latency_ms)


@functools.lru_cache(maxsize=8)
def _copy_bytes_per_s(device: torch.device) -> float:
    return Ceilings(device).copy_bytes_per_s


def _parameters(function: Any) -> tuple[str, ...]:
    if is_jitted(function):
        return tuple(function.arg_names)
    positional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind not in positional)


def _on(asked: torch.device | str | None, found: torch.device) -> torch.device:
    """The device of a call, which has to be the one that was asked for."""
    wanted = found if asked is None else torch.device(asked)
    if wanted.type != found.type or (wanted.index is not None and wanted.index != found.index):
        raise InvalidInputError(
            f"`device` is {str(wanted)!r}, and the tensors are on {str(found)!r}. Move them there, "
            "or leave `device` out."
        )
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return found


def _count(name: str, value: int, least: int) -> int:
    if type(value) is not int or value < least:
        raise InvalidInputError(
            f"`{name}` is {value!r}; it needs an int, at least {least}. Raise it."
        )
    return value


def _amount(name: str, given: Amount, problem_size: Any) -> float | None:
    """`flops` or `size_bytes` of one call."""
    if not callable(given):
        return given
    if problem_size is None:
        raise InvalidInputError(
            f"`{name}` is a function of the problem size, and `problem_size` is None. Pass "
            f"`problem_size=`, or a number for `{name}`."
        )
    return float(given(problem_size))
