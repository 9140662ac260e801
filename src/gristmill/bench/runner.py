"""One problem benchmarked: every provider checked, then all of them timed in turns."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from gristmill import settings
from gristmill.bench.checking import Checked, finite, prepare, reason_of
from gristmill.bench.providers import COPY, Provider
from gristmill.bench.results import Result, Row, Versus
from gristmill.core.op import Op, Workload
from gristmill.core.plan import Objective
from gristmill.measure.ceilings import Ceilings, copy_call
from gristmill.measure.conditions import Watch, conditions_of
from gristmill.measure.roofline import Roofline, roofline
from gristmill.measure.statistics import median, median_interval, never_slower, paired_ratio
from gristmill.measure.timing import timer

MIN_PAIRS = 50  # below this there is no verdict
HOST_ROUNDS = 3
BLOCKS = 12  # of rounds; each has an order of its own
CAPTURES = 4  # of a graph: where its outputs lie in memory decides up to 3.5% (seen on an H200)


@dataclass(frozen=True)
class Samples:
    """Times of one provider, in the order of the rounds that all providers took turns in (us); no
    host time on a CPU, where the call is its own device."""

    device: list[float]
    host: list[float]
    graph: list[float] | None

    @property
    def eager(self) -> list[float]:
        """The longer of device and host time of each round; host time has few rounds and is
        repeated."""
        if not self.host:
            return self.device
        return [max(d, self.host[i % len(self.host)]) for i, d in enumerate(self.device)]


def run_workload(
    op: Op,
    workload: Workload,
    names: Sequence[str],
    device: torch.device,
    ceilings: Ceilings,
    pairs: int,
    seed: int,
) -> Result:
    """The result of one workload; what fails is a row with its reason, never an exception."""
    cost = op.cost(workload.problem)
    base = Result(workload.name, str(workload.problem), cost.flops, cost.size_bytes, ())
    try:
        generator = torch.Generator(device).manual_seed(seed)
        values = op.inputs(workload.problem, generator, op.variants[0])
        rows, ready = prepare(op, workload.problem, names, values, generator)
        watch = Watch(device)
        samples = _time([c.provider for c in ready], device, pairs, watch)
        copy_us = _copy_us(ready, samples, cost.size_bytes, device)
    except (
        Exception
    ) as error:  # out of memory, a reference that raises: the next workload may do better
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return replace(base, reason=reason_of(error))
    arithmetic = op.matrix_arithmetic(workload.problem)
    roof = roofline(cost, copy_us, ceilings.matrix(arithmetic) if arithmetic else None)
    rows += [_row(base, checked, s, roof) for checked, s in zip(ready, samples, strict=True)]
    order = {name: i for i, name in enumerate(names)}
    rows.sort(key=lambda row: order[row.provider])
    rows, baseline = _speedups(rows)
    versus = _versus(ready, samples)
    return replace(
        base,
        rows=tuple(rows),
        versus=versus,
        pairs=pairs,
        limit=roof.limit,
        roofline_us=roof.time_us,
        baseline=baseline,
        conditions=conditions_of(watch).to_json(),
    )


def _time(
    providers: Sequence[Provider], device: torch.device, pairs: int, watch: Watch
) -> list[Samples]:
    clock = timer(device, settings.current().l2)
    watch.look()
    calls: list[Callable[[], Any]] = [p.call for p in providers]
    hosts: list[list[float]] = [[] for _ in calls]
    warm = [median(times) for times in clock.device_us(calls, 3)]
    if device.type != "cpu":
        for _ in range(HOST_ROUNDS):
            for call, us, times in zip(calls, warm, hosts, strict=True):
                times.append(clock.host_us(call, us))
    slowest = max(map(max, filter(None, hosts)), default=0.0)

    def measure(some: list[Callable[[], Any]], count: int) -> list[list[float]]:
        watch.anchor(clock)
        return clock.device_us(some, count, slowest)

    devices = _shuffled(calls, pairs, BLOCKS, measure)
    watch.look()
    graphs = _shuffled([p.graph_call for p in providers], pairs, CAPTURES, clock.graph_us)
    return [Samples(d or [], h, g) for d, h, g in zip(devices, hosts, graphs, strict=True)]


def _shuffled(
    calls: Sequence[Callable[[], Any]],
    pairs: int,
    blocks: int,
    measure: Callable[[list[Callable[[], Any]], int], Sequence[list[float] | None]],
) -> list[list[float] | None]:
    """Samples of `calls` in turns, in another order every block of rounds; `None` for a call that
    cannot be measured.

    What runs before a call matters: a parallel region leaves threads spinning (10 us of 28 for the
    call after it, seen on a CPU).
    """
    shuffle = random.Random(0)
    samples: list[list[float] | None] = [[] for _ in calls]
    order = list(range(len(calls)))
    for block in range(blocks):
        repeats = pairs * (block + 1) // blocks - pairs * block // blocks
        shuffle.shuffle(order)
        for index, times in zip(order, measure([calls[i] for i in order], repeats), strict=True):
            so_far = samples[index]
            samples[index] = None if so_far is None or times is None else so_far + times
    return samples


def _copy_us(
    ready: Sequence[Checked],
    samples: Sequence[Samples],
    size_bytes: int,
    device: torch.device,
) -> float:
    """The copy's time in this run, in turns with the others where it is one of the columns."""
    for checked, sample in zip(ready, samples, strict=True):
        if checked.provider.name == COPY:
            return median(sample.device)
    call = copy_call(size_bytes, device)
    call()
    return median(timer(device, settings.current().l2).device_us([call], 25)[0])


def _row(base: Result, checked: Checked, samples: Samples, roof: Roofline) -> Row:
    provider = checked.provider
    device_us = median(samples.device)
    computes = provider.role != "ceiling"
    return Row(
        provider=provider.name,
        role=provider.role,
        status="outside" if checked.reason else "ok",
        what=provider.what,
        reason=checked.reason,
        error=finite(checked.error),
        device_us=device_us,
        host_us=median(samples.host) if samples.host else None,
        eager_us=median(samples.eager),
        graph_us=median(samples.graph) if samples.graph else None,
        bytes_per_s=base.size_bytes / device_us * 1e6,
        flops_per_s=base.flops / device_us * 1e6 if computes else None,
        roofline_share=roof.time_us / device_us if computes else None,
        eager_interval_us=median_interval(samples.eager),
        graph_interval_us=median_interval(samples.graph) if samples.graph else None,
    )


def _speedups(rows: Sequence[Row]) -> tuple[list[Row], str | None]:
    others = [
        (r.eager_us, r.provider)
        for r in rows
        if r.role == "other" and r.status == "ok" and r.eager_us is not None
    ]
    if not others:
        return list(rows), None
    best_us, baseline = min(others)
    return [
        replace(r, speedup=best_us / r.eager_us) if r.eager_us and r.role != "ceiling" else r
        for r in rows
    ], baseline


def _versus(ready: Sequence[Checked], samples: Sequence[Samples]) -> tuple[Versus, ...]:
    """The verdicts against what a user has and is within the bounds."""
    pairs = list(zip(ready, samples, strict=True))
    ours = next((s for c, s in pairs if c.provider.role == "selected"), None)
    if ours is None:
        return ()
    found: list[Versus] = []
    for checked, theirs in pairs:
        name = checked.provider.name
        if checked.provider.role != "other" or checked.reason:
            continue
        found.append(_verdict(name, "eager", ours.eager, theirs.eager))
        if ours.graph and theirs.graph:
            found.append(_verdict(name, "graph", ours.graph, theirs.graph))
    return tuple(found)


def _verdict(name: str, objective: Objective, ours: list[float], theirs: list[float]) -> Versus:
    ratio = paired_ratio(theirs, ours)
    enough = min(len(ours), len(theirs)) >= MIN_PAIRS
    verdict = never_slower(ours, theirs) if enough else None
    return Versus(name, objective, ratio.value, ratio.low, ratio.high, verdict)
