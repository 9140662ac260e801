"""Which Triton candidate an operator runs for a problem: the plan's, and where that is none, the
best one there is."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gristmill import cache
from gristmill.cache import lockfile, packs
from gristmill.cache.packs import Pack
from gristmill.cache.shipped import PackedPlans
from gristmill.core.config import Config
from gristmill.core.implementation import Implementation
from gristmill.core.op import Op
from gristmill.core.plan import Candidate, Objective, Plan, latest_of_each
from gristmill.core.problem import Problem
from gristmill.core.provenance import provenance
from gristmill.core.registry import implementations, is_current
from gristmill.core.target import Target, named_target
from gristmill.errors import InvalidConfigError, UnsupportedProblemError
from gristmill.record import record
from gristmill.selection.select import Layer, select
from gristmill.tuning.analytic import estimate

HEAD = 200  # characters, among which a file says what it is
Plans = str | os.PathLike[str] | Pack | None


@record
class Chosen:
    """A Triton implementation with its config, and why it was taken; `planned`: it is the plan's
    own choice."""

    implementation: Implementation
    config: Config
    reason: str
    planned: bool = False


@record
class Source:
    """Where plans are looked for (`None`: where selection does), and the device that they are
    of."""

    layers: tuple[Layer, ...] | None
    target: Target


def source_of(plans: Plans, target: Target) -> Source:
    """Where plans for a target are looked for.

    Args:
        plans: a pack or a lock file, or its path; `None`: the plan store and the shipped packs.

    Raises:
        PackError, FrozenError: the file is none, or is damaged.
    """
    if plans is None:
        return Source(None, target)
    pack = plans if isinstance(plans, Pack) else _read(Path(plans))
    return Source((PackedPlans(pack),), _device_of(pack, target))


def target_of(target: str | Target) -> Target:
    """A target by its architecture, with the sizes that priors depend on.

    Raises:
        InvalidInputError: it is none whose sizes are known.
    """
    return named_target(target) if isinstance(target, str) else target


def _read(path: Path) -> Pack:
    if lockfile.FORMAT in packs.file_text(path)[:HEAD]:
        return Pack(tuple(locked.kept for locked in lockfile.read_lock(path).plans))
    return packs.read(path)


def _device_of(pack: Pack, target: Target) -> Target:
    """The target as the device that a pack is about, where that is another of its architecture."""
    if target.key in pack.targets:
        return target
    for key in pack.targets:
        vendor, arch, processors, name = key.split(":", 3)
        if (vendor, arch) == (target.vendor, target.arch):
            return dataclasses.replace(target, num_sms=int(processors), name=name)  # type: ignore[type-var]
    return target


def chosen(op: Op, problem: Problem, source: Source, objective: Objective) -> Chosen:
    """The Triton candidate for a problem.

    Raises:
        UnsupportedProblemError: no Triton implementation takes it; the message has the reasons.
    """
    able = dict(_able(op, problem, source.target))
    plan = select(
        op, problem, source.target, objective, to_run=False, layers=source.layers
    )  # raises where nothing runs it at all
    for candidate in (plan.candidate, plan.fallback):
        if candidate is not None and (one := _valid(able, candidate, problem, source.target)):
            if candidate == plan.candidate:
                return Chosen(
                    *one, f"{plan.origin}: {plan.reason}".removesuffix(": "), planned=True
                )
            return Chosen(*one, f"{_not_a_kernel(plan)} this is the plan's fallback")
    if not able:
        reasons = (
            f"{impl.name}: {impl.why_not(problem, source.target) or 'its prior is not valid'}"
            for impl in implementations(op.name)
            if impl.kind == "triton"
        )
        raise UnsupportedProblemError(
            f"no Triton kernel of `{op.name}` computes {problem} on {source.target.name}: "
            f"{'; '.join(reasons)}. Leave the problem out."
        )
    measured = _fastest(able, plan, problem, source, objective)
    if measured is not None:
        impl, config, time_us = measured
        reason = f"{_not_a_kernel(plan)} this is the best kernel measured ({time_us:.2f} us)"
        return Chosen(impl, config, reason)
    impl = max(able.values(), key=lambda impl: _rank(impl, problem, source.target))
    config = impl.config(None, problem, source.target)
    return Chosen(impl, config, f"{_not_a_kernel(plan)} this kernel is untuned")


def _not_a_kernel(plan: Plan) -> str:
    return f"the plan's choice, {plan.candidate.implementation}, is no Triton kernel;"


def _able(op: Op, problem: Problem, target: Target) -> Iterator[tuple[str, Implementation]]:
    """The Triton implementations that take a problem, by name."""
    for impl in implementations(op.name):
        if impl.kind == "triton" and impl.why_not(problem, target) is None:
            try:
                impl.config(None, problem, target)
            except InvalidConfigError:
                continue
            yield impl.name, impl


def _valid(
    able: Mapping[str, Implementation], candidate: Candidate, problem: Problem, target: Target
) -> tuple[Implementation, Config] | None:
    impl = able.get(candidate.implementation)
    if impl is None:
        return None
    try:
        return impl, impl.config(candidate.config.knobs, problem, target)
    except InvalidConfigError:
        return None


def _fastest(
    able: Mapping[str, Implementation],
    plan: Plan,
    problem: Problem,
    source: Source,
    objective: Objective,
) -> tuple[Implementation, Config, float] | None:
    """The best measured candidate of a bucket, as its kernels are here."""
    layers: Sequence[Layer] = (
        (cache.store(), cache.shipped_plans(source.target.key))
        if source.layers is None
        else source.layers
    )
    best = None
    for layer in layers:
        rows = layer.measurements(plan.op, plan.bucket, plan.target)
        for m in latest_of_each(rows, provenance()):
            if not m.outcome.ok:
                continue
            if not is_current(plan.op, m.candidate.implementation, m.source_hash):
                continue
            time_us = m.outcome.time_us(objective)
            one = _valid(able, m.candidate, problem, source.target)
            if one is not None and (best is None or time_us < best[2]):
                best = (*one, time_us)
    return best


def _rank(impl: Implementation, problem: Problem, target: Target) -> tuple[float, float]:
    """How good an untuned implementation is likely to be: what selection prefers, then the shorter
    estimate."""
    op = impl.op
    sizes = {axis.name: axis.size for axis in op.axes(problem)}
    itemsize = next(iter(problem.tensors.values())).itemsize
    config = impl.config(None, problem, target)
    time = estimate(config, sizes, itemsize, op.cost(problem), target)
    return impl.preference, -math.inf if time is None else -time
