"""A suite: one op's workloads under several providers, with the ceilings of the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from gristmill.bench.providers import check_names, default_names
from gristmill.bench.results import Report, Result
from gristmill.bench.runner import run_workload
from gristmill.bench.stamp import Stamp
from gristmill.core.op import Op, Workload
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
        providers: `gristmill`, `copy`, `torch` and implementations by name; default: those,
            without our own kernels.
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
