"""What a run knows of its spaces before it measures: an analytic estimate, and what was fast for
other problems of the op."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest

from gristmill.cache.store import PlanStore
from gristmill.core.config import Config
from gristmill.core.op import Op
from gristmill.core.plan import Measurement, latest_of_each
from gristmill.core.problem import Problem
from gristmill.core.provenance import provenance
from gristmill.core.target import Target
from gristmill.errors import InvalidConfigError
from gristmill.tuning.analytic import estimate
from gristmill.tuning.strategies import Hints
from gristmill.tuning.subject import Subject, Tunable

BUCKETS = 8  # the nearest that were measured
EACH = 4  # the fastest configs of each
NEIGHBOURS = 16  # proposed at the most: another device's best 16 reach .87 to .95 of the optimum
OTHER_TARGET = 4.0  # octaves of size that another device is away,
OTHER_REST = 2.0  # and other dtypes, layouts or arguments


def hints_of(
    op: Subject, searched: Sequence[Tunable], problem: Problem, target: Target, store: PlanStore
) -> dict[str, Hints]:
    """Hints by implementation."""
    near = _nearest(op, problem, target, store) if searched else []
    return {
        impl.name: Hints(_estimator(op, problem, target), _neighbours(impl, problem, target, near))
        for impl in searched
    }


def _estimator(
    op: Subject, problem: Problem, target: Target
) -> Callable[[Config], float | None] | None:
    if not isinstance(op, Op):
        return None  # what a user's kernel computes is not known
    sizes = {axis.name: axis.size for axis in op.axes(problem)}
    itemsize = next(iter(problem.tensors.values())).itemsize
    cost = op.cost(problem)
    return lambda config: estimate(config, sizes, itemsize, cost, target)


def _nearest(
    op: Subject, problem: Problem, target: Target, store: PlanStore
) -> list[list[Measurement]]:
    """The measurements of the nearest buckets of the op, each fastest first: other sizes, dtypes,
    layouts, devices."""
    here = (op.bucket(problem).key, target.key)
    others = {(p.bucket, p.target) for p in store.plans() if p.op == op.name} - {here}
    ordered = sorted(others, key=lambda other: (_distance(here, other), other))
    kept = (store.measurements(op.name, *other) for other in ordered[:BUCKETS])
    found = (latest_of_each(rows, provenance()) for rows in kept)
    return [
        sorted((m for m in rows if m.outcome.ok), key=lambda m: m.outcome.time_us("graph"))
        for rows in found
    ]


def _distance(here: tuple[str, str], other: tuple[str, str]) -> float:
    """Octaves between the sizes of two buckets, and what else differs."""
    (axes, rest), (other_axes, other_rest) = _parts(here[0]), _parts(other[0])
    octaves = sum(
        abs(math.log2((axes.get(name, 0) + 1) / (other_axes.get(name, 0) + 1)))
        for name in axes.keys() | other_axes.keys()
    )
    return octaves + OTHER_REST * (rest != other_rest) + OTHER_TARGET * (here[1] != other[1])


def _parts(key: str) -> tuple[Mapping[str, int], str]:
    """A bucket's sizes, and the rest of its key."""
    axes, _, rest = key.partition("|")
    pairs = (pair.partition("=") for pair in axes.split(",") if "=" in pair)
    return {name: int(size) for name, _, size in pairs if size.isdecimal()}, rest


def _neighbours(
    impl: Tunable, problem: Problem, target: Target, near: Sequence[Sequence[Measurement]]
) -> tuple[Config, ...]:
    """Valid configs of an implementation that were fast elsewhere: the best of every bucket, then
    the second, ..."""
    columns = [islice(_valid(impl, problem, target, rows), EACH) for rows in near]
    ranks = (config for rank in zip_longest(*columns) for config in rank if config is not None)
    return tuple(islice(dict.fromkeys(ranks), NEIGHBOURS))


def _valid(
    impl: Tunable, problem: Problem, target: Target, rows: Sequence[Measurement]
) -> Iterator[Config]:
    """The configs of an implementation's rows, as its sources are, that are valid here."""
    for m in rows:
        if (m.candidate.implementation, m.source_hash) == (impl.name, impl.source_hash):
            try:
                yield impl.config(m.candidate.config, problem, target)
            except InvalidConfigError:  # not for these sizes, or not on this device
                continue
