"""`tune_many`: problems shared out to several devices, of this machine or of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gristmill import tuning
from gristmill.cache.store import store
from gristmill.core.op import Workload
from gristmill.core.problem import Problem
from gristmill.core.registry import load
from gristmill.core.target import Target
from gristmill.errors import InvalidInputError
from gristmill.ops._dispatch import forget
from gristmill.ops.tune import limits_of, refuse_now, use_again
from gristmill.selection.frozen import refuse_tuning
from gristmill.tuning.fleet.cluster import RayFleet
from gristmill.tuning.fleet.fleet import Ended, Fleet, FleetResult
from gristmill.tuning.fleet.gain import Job
from gristmill.tuning.fleet.lines import lines
from gristmill.tuning.fleet.local import LocalFleet, devices_named
from gristmill.tuning.fleet.run import FleetSite, Wishes

Tell = Callable[[Ended], None]
Say = Callable[[str], None]


class FleetInterrupted(KeyboardInterrupt):
    """Ctrl-C while a fleet tuned, with what had ended until then."""

    def __init__(self, result: FleetResult) -> None:
        super().__init__("tuning was interrupted: what was measured is kept")
        self.result = result


@dataclass(frozen=True)
class Where:
    """Which devices: of this machine, by name, or those of a Ray cluster.

    Attributes:
        devices: as `tune_many` takes them. ray: the cluster's address.
        kind: of the cluster's devices: `cuda`, `cpu`; default: GPUs where it has some.
    """

    devices: Sequence[str] | str | None = None
    ray: str | None = None
    kind: str | None = None


def tune_many(
    problems: Sequence[tuple[str, Sequence[Any]] | Problem],
    *,
    devices: Sequence[str] | str | None = None,
    ray: str | None = None,
    budget_s: float | None = None,
    trials: int | None = None,
    strategy: tuning.StrategyLike = "auto",
    seed: int = 0,
    roofline_stop: float | None = None,
    afresh: bool = False,
) -> list[Ended]:
    """Tune problems on several devices at once, and keep the plans.

    Each device takes the problem of the largest expected gain that is left; a problem's candidates
    are compared on one device only. Devices of different kinds tune plans of their own, every
    problem once a kind. A problem whose worker is lost goes on elsewhere.

    Args:
        problems: (op, arguments) pairs, as for `get_op`, on any device (`meta` too): their values
            are not used. Or `gristmill.core.problem.Problem`s.
        devices: `all` the GPUs that torch sees, or some by number or name (`["0", "cuda:2"]`), or
            `cpu`. Default: those of the current GPU's kind; the CPU where there is none.
        ray: the address of a Ray cluster's head, `auto`, or `local`: then its devices, in place of
            this machine's (`pip install 'gristmill[ray]'`).
        budget_s, trials, strategy, seed, roofline_stop, afresh: of each problem, as for `tune`.

    Returns:
        What became of each problem on each kind of device, in the order in which they ended: its
        `result`, or an `error`.

    Raises:
        InvalidInputError: a problem, device or address that is none.
        MissingExtraError: Ray is not installed.
        TuningError: under CUDA-graph capture or `torch.compile`; there is no cluster, or nothing
            in it can be used.
        FrozenError: plans are frozen.
        FleetInterrupted: a `KeyboardInterrupt` with what had ended, after keeping what was
            measured.
    """
    named = [Workload(str(one), one) for one in map(_problem, problems)]
    wishes = Wishes(limits_of(budget_s, trials, strategy, roofline_stop), strategy, seed, afresh)
    result = tune_workloads(named, Where(devices, ray), wishes)
    if result.interrupted:
        raise FleetInterrupted(result)
    return result.ended


def tune_workloads(
    workloads: Sequence[Workload],
    where: Where,
    wishes: Wishes,
    tell: Tell = lambda ended: None,
    say: Say = lambda text: None,
) -> FleetResult:
    """`tune_many` of named problems. `tell` hears of each when it has ended, `say` gets what the
    user should read. Ctrl-C is in the result."""
    for one in workloads:
        refuse_tuning(str(one.problem))
    refuse_now()
    if not workloads:
        return FleetResult()
    ops = sorted({one.problem.op for one in workloads})

    def ended(one: Ended) -> None:
        if one.result is not None and one.result.plans:
            use_again(one.job.op, one.job.problem, one.job.target)
        tell(one)

    with _sites(where, ops, say) as sites:
        kinds: dict[str, Target] = {site.target.key: site.target for site in sites}
        jobs = [
            Job(one.name, load(one.problem.op), one.problem, target)
            for target in kinds.values()
            for one in workloads
        ]
        shown = lines([site.name for site in sites], say)
        try:
            return Fleet(sites, jobs, store(), wishes, shown).run(ended)
        finally:
            for op in ops:
                forget(op)


@contextmanager
def _sites(where: Where, ops: Sequence[str], say: Say) -> Iterator[Sequence[FleetSite]]:
    if where.ray is None:
        with LocalFleet(devices_named(where.devices)) as sites:
            yield sites
        return
    if where.devices is not None:
        raise InvalidInputError(
            f"`devices` is given together with `ray`, which is {where.ray!r}; devices are those of "
            "this machine or those of the cluster. Leave one out."
        )
    with RayFleet(where.ray, ops, where.kind, say) as sites:
        yield sites


def _problem(asked: Any) -> Problem:
    if isinstance(asked, Problem):
        return asked
    try:
        op, args = asked
    except (TypeError, ValueError):
        raise InvalidInputError(
            f"`problems` has {asked!r}; it needs (op, arguments) pairs. Write "
            '`[("rms_norm", (x, weight))]`.'
        ) from None
    spec = load(op)
    return spec.problem(spec.bind(args, None))
