"""Workloads under several providers, of one op or of several, with the ceilings of the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gristmill.bench.providers import check_names, default_names, known_names
from gristmill.bench.results import Report, Result
from gristmill.bench.runner import run_workload
from gristmill.bench.stamp import Stamp
from gristmill.core.op import Op, Workload
from gristmill.errors import InvalidInputError, did_you_mean
from gristmill.measure.ceilings import Ceilings

CPU_LIMIT_FLOPS = 20e9
CPU_LIMIT_BYTES = 64 << 20


def fits_cpu(op: Op, workload: Workload) -> bool:
    """Whether a workload takes seconds on a CPU, not minutes."""
    cost = op.cost(workload.problem)
    return cost.flops <= CPU_LIMIT_FLOPS and cost.size_bytes <= CPU_LIMIT_BYTES


def bench(
    op: Op,
    workloads: Sequence[Workload],
    providers: Sequence[str] | None = None,
    *,
    device: torch.device,
    pairs: int = 60,
    seed: int = 0,
    deadline: float | None = None,
    commit: str | None = None,
    ceilings: Ceilings | None = None,
    tell: Callable[[str], None] = lambda name: None,
) -> Report:
    """Benchmark `op` on `workloads`. Measures what selection chooses now and tunes nothing.

    Args:
        providers: `gristmill`, `copy`, `torch`, implementations and registered providers by name;
            default: those, without our own kernels.
        pairs: interleaved launches of each provider; verdicts need 50.
        deadline: `time.monotonic()` after which the workloads that are left are skipped, and named
            in the report.
        commit: what to stamp the report with where git does not know (see `Stamp.of`).
        ceilings: of this run, where another suite has measured them.
        tell: hears each workload's name before it is measured.

    Raises:
        InvalidInputError: a provider that the op does not have.
    """
    names = tuple(dict.fromkeys(providers or default_names(op)))
    check_names(op, names)
    measured = ceilings or Ceilings(device)
    results: list[Result] = []
    skipped: list[str] = []
    for workload in workloads:
        if deadline is not None and time.monotonic() > deadline:
            skipped.append(workload.name)
            continue
        tell(workload.name)
        results.append(run_workload(op, workload, names, device, measured, pairs, seed))
    return Report(
        op.name,
        Stamp.of(device, commit),
        measured.to_json(),
        tuple(results),
        tuple(skipped),
        op.matrix,
    )


def bench_all(
    selection: Sequence[tuple[Op, Sequence[Workload]]],
    providers: Sequence[str] | None = None,
    *,
    device: torch.device,
    ceilings: Ceilings | None = None,
    **options: Any,
) -> tuple[Report, ...]:
    """Benchmark several ops under the same ceilings, a report an op; options are those of `bench`.

    A provider that only some of the ops have is a column of those.

    Raises:
        InvalidInputError: a provider that none of the ops has, or an op that has none of them.
    """
    names = [(op, shared_names([op for op, _ in selection], op, providers)) for op, _ in selection]
    measured = ceilings or Ceilings(device)
    return tuple(
        bench(op, workloads, columns, device=device, ceilings=measured, **options)
        for (op, workloads), (_, columns) in zip(selection, names, strict=True)
    )


def shared_names(
    ops: Sequence[Op], op: Op, providers: Sequence[str] | None
) -> tuple[str, ...] | None:
    """Of these providers of several ops, those that this one has."""
    if not providers:
        return None
    names, verb = ", ".join(f"`{one.name}`" for one in ops), "has" if len(ops) == 1 else "have"
    every = list(dict.fromkeys(name for one in ops for name in known_names(one)))
    for name in providers:
        if name not in every:
            raise InvalidInputError(
                f"`provider` is {name!r}; {names} {verb} {', '.join(every)}. "
                f"Choose some of them.{did_you_mean(name, every)}"
            )
    known = known_names(op)
    found = tuple(name for name in providers if name in known)
    if not found:
        raise InvalidInputError(
            f"`provider` is {', '.join(providers)}; `{op.name}` has {', '.join(known)}. Add one of "
            "them, or leave out the op."
        )
    return found
