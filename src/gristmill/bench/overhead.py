"""Host time of a call, against the shortest way to the same kernel: allocate, and call Triton's
compiled launcher."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from gristmill.bench.kept_plan import kept_plan
from gristmill.bench.plain import plain_call
from gristmill.compile.executor import EXECUTOR
from gristmill.core.implementation import Implementation
from gristmill.core.launch import Launch, TensorMap
from gristmill.core.op import Op
from gristmill.core.problem import Problem
from gristmill.core.registry import implementation
from gristmill.core.target import device_target
from gristmill.measure.statistics import median, paired_ratio
from gristmill.measure.timing import no_garbage_collection, timer
from gristmill.ops._dispatch import dispatcher
from gristmill.ops.get_op import get_op

CALLS = 512  # between two synchronisations: fewer than the driver's queue holds
ROUNDS = 40
NEW_SIZES = 32
FLOOR, LAUNCHER, BOUND_OUT = "F", "launcher", "bound out"


@dataclass(frozen=True, slots=True)
class HostTimes:
    """Host time of a call of each kind (us, medians of interleaved batches), and their ratios to
    the floor.

    Attributes:
        times_us: by name: `F` (`empty` and `CompiledKernel.run`, where there is a kernel),
            `launcher` (`CompiledKernel.run` alone), `bound`, `bound out` (with `out=`), `direct`,
            `registered` (`torch.ops.gristmill.<op>`), `torch` (the plain call).
        ratios: to `F`, each with its 95% interval: `{"bound": (1.2, 1.19, 1.21)}`; of `bound out`
            to `launcher`; empty where there is no `F`.
        kernel: the candidate that was called.
        reason: why there is no `F`.
        new_size_us: host time of a direct call with a token count that was not met before (mean).
    """

    problem: str
    kernel: str
    calls: int
    rounds: int
    times_us: dict[str, float]
    ratios: dict[str, tuple[float, float, float]]
    reason: str = ""
    new_size_us: float = 0.0


def host_times(
    problem: Problem, name: str, device: torch.device, rounds: int = ROUNDS
) -> HostTimes:
    """Host time of an op on this problem, as bound operator and as direct call, with no gradient.

    The plan is this implementation with its prior, in a store of its own: the floor launches the
    same kernel.
    """
    impl = implementation(problem.op, name)
    values = impl.op.inputs(problem, torch.Generator(device).manual_seed(0), "normal")
    with kept_plan(problem, name, device):
        return _host_times(impl, values, device, rounds)


def _host_times(
    impl: Implementation, values: tuple[Any, ...], device: torch.device, rounds: int
) -> HostTimes:
    op = impl.op
    bound, direct = get_op(op.name, values, tune="never"), dispatcher(op.name)
    floors, reason = floor_calls(impl, values)
    functions = {"bound": bound, "direct": direct.direct, "registered": direct.overload}
    calls = dict(floors)
    for name, function in functions.items():
        calls[name] = _calling(function, values)
    if floors:
        calls[BOUND_OUT] = _calling(bound, values, out=bound(*values))
    _, calls["torch"] = plain_call(op, values)
    with torch.no_grad():
        samples = _batches(calls, device, CALLS if device.type == "cuda" else 16, rounds)
    ratios = {}
    for name in calls if floors else ():
        if name not in floors:
            of = LAUNCHER if name == BOUND_OUT else FLOOR
            ratio = paired_ratio(samples[name], samples[of])
            ratios[name] = (ratio.value, ratio.low, ratio.high)
    times_us = {name: median(times) for name, times in samples.items()}
    return HostTimes(
        str(bound.problem),
        str(bound.plan.candidate),
        CALLS,
        rounds,
        times_us,
        ratios,
        reason,
        _new_size_us(op, bound.problem, device),
    )


def _new_size_us(op: Op, problem: Problem, device: torch.device) -> float:
    """Direct calls with token counts that were not met before: select, launcher, bind, launch."""
    axes = op.axes(problem)
    tokens = next(axis for axis in axes if not axis.exact)
    sizes, dtype = {a.name: a.size for a in axes}, next(iter(problem.tensors.values())).dtype
    assert op.sized is not None
    direct, clock = dispatcher(op.name).direct, timer(device)
    problems = [
        op.sized({**sizes, tokens.name: tokens.size + 1 + i}, dtype) for i in range(NEW_SIZES + 1)
    ]
    first, *values = [p.empty(device) for p in problems]
    direct(*first)
    clock.synchronize()
    start = time.perf_counter()
    for one in values:
        direct(*one)
    elapsed_us = (time.perf_counter() - start) * 1e6
    clock.synchronize()
    return elapsed_us / NEW_SIZES


def _calling(
    function: Callable[..., Any], values: tuple[Any, ...], **keywords: Any
) -> Callable[[], Any]:
    """A call with the arguments written out, as in a user's code: `f(*values)` packs them."""
    names = [f"value_{i}" for i in range(len(values))]
    scope = {"function": function, **dict(zip(names, values, strict=True)), **keywords}
    names += [f"{name}={name}" for name in keywords]
    exec(f"def call(): return function({', '.join(names)})", scope)
    return scope["call"]


def floor_calls(
    impl: Implementation, values: tuple[Any, ...]
) -> tuple[dict[str, Callable[[], Any]], str]:
    """Allocate the output, then the compiled kernel's own `run` with tensors (and descriptors made
    before) and no hooks; and that `run` alone. Or nothing, and why not."""
    problem, device = impl.op.problem(values), impl.op.device(values)
    if impl.launcher is None or device.type != "cuda":
        return {}, f"not available: {impl.id} launches no Triton kernel on {device}"
    config = impl.config(None, problem, device_target(device))
    outputs, workspace = impl.allocate(values, config)
    launches = impl.launches(values, outputs, workspace, config)
    if len(launches) != 1 or len(outputs) != 1 or workspace:
        return {}, f"not available: {impl.id} is not one plain launch"
    launch, out = launches[0], outputs[0]
    kernel = EXECUTOR.loaded(launch)
    head = (*(*launch.grid, 1, 1)[:3], torch.cuda.current_stream(device).cuda_stream)
    head += (kernel.function, kernel.packed_metadata, None, None, None)
    like = next((v for v in values if isinstance(v, torch.Tensor) and v.shape == out.shape), None)
    first = next(v for v in values if isinstance(v, torch.Tensor))
    scope: dict[str, Any] = {f"a{i}": a for i, a in enumerate((*head, *_arguments(launch)))}
    # An output that is behind a descriptor is not the one that is allocated: the launch writes it.
    names = ["made" if scope[name] is out else name for name in scope]
    make = "empty_like(like)" if like is not None else "new_empty(shape)"
    scope.update(run=kernel.run, like=like, empty_like=torch.empty_like)
    scope.update(shape=out.shape, new_empty=first.new_empty)
    exec(f"def floor():\n made = {make}\n run({', '.join(names)})\n return made", scope)
    given = ", ".join(name for name, _ in zip(scope, names, strict=False))
    exec(f"def launcher(): run({given})", scope)
    return {FLOOR: scope["floor"], LAUNCHER: scope["launcher"]}, ""


def _arguments(launch: Launch) -> list[Any]:
    """A launch's arguments as Triton's launcher takes them."""
    names = launch.kernel.arg_names[len(launch.args) :]
    given = [
        TensorDescriptor(a.tensor, list(a.shape), list(a.strides), list(a.block))
        if isinstance(a, TensorMap)
        else a
        for a in launch.args
    ]
    return [*given, *(launch.constexprs.get(n) for n in names)]


def _batches(
    calls: Mapping[str, Callable[[], Any]], device: torch.device, count: int, rounds: int
) -> dict[str, list[float]]:
    """Host time per call (us) of batches of `count`, the calls taking turns batch by batch."""
    clock = timer(device)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    with no_garbage_collection():
        for turn in range(rounds + 2):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                call = calls[name]
                clock.synchronize()
                start = time.perf_counter()
                for _ in range(count):
                    call()
                elapsed_us = (time.perf_counter() - start) / count * 1e6
                if turn >= 2:  # the first two warm up
                    samples[name].append(elapsed_us)
    clock.synchronize()
    return samples
