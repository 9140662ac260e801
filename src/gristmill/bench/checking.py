"""Providers made and checked before anything is timed: twice, on different values, into memory that
does not hold the answer already."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gristmill.bench.providers import TORCH, Provider, make_provider
from gristmill.bench.results import Row, outside_text
from gristmill.core.op import Bounds, Op, as_tuple
from gristmill.core.problem import Problem, TensorSpec
from gristmill.errors import UnsupportedProblemError
from gristmill.verify import Verdict, compare, kept, poison, put_back, truth

CHECKS = 2  # each on values of its own: an answer kept from an earlier call shows
SOILED = 2  # buffers of each output's size: a provider may allocate one more of that size
REASON_CHARS = 300
Expected = tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]  # references, magnitudes
CHANGED = "it changed its argument `%s`, which the others read"


@dataclass(frozen=True, slots=True)
class Checked:
    """A provider that is fit to be timed.

    Attributes:
        error: the worst error as a share of the bound, infinite for a wrong NaN or infinity; `None`
            where nothing is computed.
        reason: for torch's own call outside the bounds, how far.
    """

    provider: Provider
    error: float | None
    reason: str = ""


def prepare(
    op: Op,
    problem: Problem,
    names: Sequence[str],
    values: tuple[Any, ...],
    generator: torch.Generator,
) -> tuple[list[Row], list[Checked]]:
    """Rows of the providers that cannot run, raise or are wrong; the others with their errors.

    Writes other values of the same layouts into `values` between the checks. Torch's plain call is
    what a user has, right or not: outside the bounds it stays, and says so.
    """
    rows: list[Row] = []
    providers: dict[str, Provider] = {}
    worst: dict[str, Verdict] = {}
    for name in names:
        try:
            providers[name] = make_provider(name, op, problem, values)
        except Exception as error:  # a provider may raise anything: that is its row
            rows.append(_raised(name, "", error))
    outputs, bounds = op.outputs(problem), op.bounds(problem)
    for turn in range(CHECKS):
        if turn:
            renew(values, op.inputs(problem, generator, op.variants[0]))
            if TORCH in providers:  # it may have made the forward pass of a backward one
                providers[TORCH] = make_provider(TORCH, op, problem, values)
        expected = truth(op, values)
        for name, provider in list(providers.items()):
            found = _judged(provider, op, outputs, values, expected, bounds)
            if isinstance(found, Row):
                rows.append(found)
                del providers[name]
            elif name not in worst or found.error > worst[name].error:
                worst[name] = found
        del expected  # some times the outputs' size, in float64: one set at a time
    return rows, [_checked(provider, worst[name]) for name, provider in providers.items()]


def renew(values: Sequence[Any], others: Sequence[Any]) -> None:
    """Copy the memory of the tensors in `others` into those of `values`, made of the same specs."""
    for value, other in zip(values, others, strict=True):
        if isinstance(value, torch.Tensor):
            value.untyped_storage().copy_(other.untyped_storage())


def soil(specs: Sequence[TensorSpec], device: torch.device) -> None:
    """Poison memory of these outputs' sizes and free it: the allocator is likely to hand it out
    next, and what is left unwritten shows."""
    held = [poison(spec.empty(device)) for spec in specs for _ in range(SOILED)]
    del held


def _judged(
    provider: Provider,
    op: Op,
    outputs: Sequence[TensorSpec],
    values: tuple[Any, ...],
    expected: Expected,
    bounds: Bounds | tuple[Bounds, ...],
) -> Verdict | Row:
    """The provider's verdict, or the row of one that raises, is wrong or changes its arguments
    (which are put back, for whoever comes next)."""
    before = kept(values)
    try:
        verdict = _check(provider, outputs, op.device(values), expected, bounds)
        changed = put_back(op.names, values, before)
    except Exception as error:
        with contextlib.suppress(RuntimeError):  # a lost device context
            put_back(op.names, values, before)
        return _raised(provider.name, provider.role, error)
    if changed:
        return _wrong(provider, Verdict(False, verdict.error, CHANGED % changed[0]))
    if not verdict.ok and provider.name != TORCH:
        return _wrong(provider, verdict)
    return verdict


def _check(
    provider: Provider,
    outputs: Sequence[TensorSpec],
    device: torch.device,
    expected: Expected,
    bounds: Bounds | tuple[Bounds, ...],
) -> Verdict:
    """The worse verdict of the provider's call and of the one that it captures in graphs."""
    worst = Verdict(True, 0.0)
    for call in dict.fromkeys((provider.call, provider.graph_call)):
        soil(outputs, device)
        result = as_tuple(call())
        if provider.role == "ceiling":
            continue
        verdict = compare(result, *expected, bounds)
        del result
        if verdict.error > worst.error:
            worst = verdict
    return worst


def _raised(name: str, role: str, error: Exception) -> Row:
    if isinstance(error, UnsupportedProblemError):
        return Row(name, role, "unsupported", reason=str(error)[:REASON_CHARS])
    return Row(name, role, "failed", reason=reason_of(error))


def _wrong(provider: Provider, verdict: Verdict) -> Row:
    return Row(
        provider.name, provider.role, "wrong", provider.what, verdict.reason, finite(verdict.error)
    )


def _checked(provider: Provider, verdict: Verdict) -> Checked:
    if provider.role == "ceiling":
        return Checked(provider, None)
    if verdict.ok:
        return Checked(provider, verdict.error)
    reason = f"{outside_text(verdict.error)}: timed, but in no verdict; {verdict.reason}"
    return Checked(provider, verdict.error, reason[:REASON_CHARS])


def finite(error: float | None) -> float | None:
    """`None` for an infinite error: JSON has no infinity."""
    return error if error is not None and math.isfinite(error) else None


def reason_of(error: BaseException) -> str:
    """An exception as the reason of a row."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:REASON_CHARS]
