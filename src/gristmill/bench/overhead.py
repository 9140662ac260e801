"""Host time of a call, against the shortest way to the same kernel: allocate, and call Triton's
compiled launcher."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gristmill import settings
from gristmill.compile.executor import EXECUTOR
from gristmill.core.launch import TensorMap
from gristmill.core.registry import implementation
from gristmill.core.target import device_target
from gristmill.measure.statistics import median, paired_ratio
from gristmill.measure.timing import no_garbage_collection, timer
from gristmill.ops._dispatch import forget
from gristmill.ops.get_op import get_op
from gristmill.ops.rms_norm import rms_norm

CALLS = 512  # between two synchronisations: fewer than the driver's queue holds
ROUNDS = 40
FLOOR = "F"
OP = "rms_norm"


@dataclass(frozen=True, slots=True)
class HostTimes:
    """Host time of a call of each kind (us, medians of interleaved batches), and their ratios to
    the floor.

    Attributes:
        times_us: by name: `F` (`empty_like` and `CompiledKernel.run`, where there is a kernel),
            `bound`, `direct`, `torch` (`torch.rms_norm`).
        ratios: to `F`, each with its 95% interval: `{"bound": (1.2, 1.19, 1.21)}`; empty where
            there is no `F`.
        kernel: the candidate that was called.
        reason: why there is no `F`.
    """

    problem: str
    kernel: str
    calls: int
    rounds: int
    times_us: dict[str, float]
    ratios: dict[str, tuple[float, float, float]]
    reason: str = ""


def host_times(
    device: torch.device, rows: int = 16, width: int = 4096, rounds: int = ROUNDS
) -> HostTimes:
    """Host time of rms_norm on `(rows, width)` bfloat16, as bound operator and as direct call, with
    no gradient.

    Untuned, in a store of its own: both run the prior's kernel, which is also what the floor
        launches.
    """
    x = torch.randn(rows, width, device=device, dtype=torch.bfloat16)
    weight = torch.randn(width, device=device, dtype=torch.bfloat16)
    values = (x, weight, 1e-6)
    with tempfile.TemporaryDirectory() as folder, settings.override(cache_dir=Path(folder)):
        forget(OP)
        try:
            return _host_times(values, device, rounds)
        finally:
            forget(OP)


def _host_times(values: tuple[Any, ...], device: torch.device, rounds: int) -> HostTimes:
    x, weight, eps = values
    bound = get_op(OP, values, tune="never")
    floor, reason = floor_call(bound.plan.candidate.implementation, values)
    calls: dict[str, Callable[[], Any]] = {} if floor is None else {FLOOR: floor}
    calls["bound"] = lambda: bound(x, weight, eps)
    calls["direct"] = lambda: rms_norm(x, weight, eps)
    calls["torch"] = lambda: torch.rms_norm(x, weight.shape, weight, eps)
    samples = _batches(calls, device, CALLS if device.type == "cuda" else 16, rounds)
    ratios = {}
    if floor is not None:
        for name in calls:
            if name != FLOOR:
                ratio = paired_ratio(samples[name], samples[FLOOR])
                ratios[name] = (ratio.value, ratio.low, ratio.high)
    times_us = {name: median(times) for name, times in samples.items()}
    problem = str(bound.problem)
    return HostTimes(problem, str(bound.plan.candidate), CALLS, rounds, times_us, ratios, reason)


def floor_call(name: str, values: tuple[Any, ...]) -> tuple[Callable[[], Any] | None, str]:
    """`empty_like`, then the compiled kernel's own `run` with tensors and no hooks; or `None` and
    why not."""
    impl = implementation(OP, name)
    x = values[0]
    if impl.launcher is None or not x.is_cuda:
        return None, f"not available: {impl.id} launches no Triton kernel on {x.device}"
    config = impl.config(None, impl.op.problem(values), device_target(x.device))
    outputs, workspace = impl.allocate(values, config)
    launches = impl.launches(values, outputs, workspace, config)
    if len(launches) != 1 or any(isinstance(a, TensorMap) for a in launches[0].args):
        return None, f"not available: {impl.id} is not one plain launch"
    launch = launches[0]
    kernel = EXECUTOR.loaded(launch)
    names = launch.kernel.arg_names[len(launch.args) :]
    args = [*launch.args, *(launch.constexprs.get(n) for n in names)]
    slot = next(i for i, a in enumerate(args) if a is outputs[0])
    before, after = args[:slot], args[slot + 1 :]
    grid_x, grid_y, grid_z = (*launch.grid, 1, 1)[:3]
    run: Any = kernel.run
    function, packed = kernel.function, kernel.packed_metadata
    stream = torch.cuda.current_stream(x.device).cuda_stream
    empty_like = torch.empty_like

    def floor() -> torch.Tensor:
        out = empty_like(x)
        run(
            grid_x, grid_y, grid_z, stream, function, packed, None, None, None, *before, out, *after
        )
        return out

    return floor, ""


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
