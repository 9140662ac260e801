"""What earlier runs measured, as far as a run may take it over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from gristmill.core.plan import Candidate, Measurement, Outcome, latest_of_each
from gristmill.core.problem import Problem
from gristmill.core.target import Target
from gristmill.errors import InvalidConfigError
from gristmill.tuning.subject import Tunable
from gristmill.tuning.timed import trailing

# What may be the device's or the moment's fault: too little memory, a busy machine.
AGAIN = ("launch_error", "timeout", "crash")


def text_of(problem: Problem) -> str:
    """A problem as it stands beside its measurements: text that any row can keep."""
    return str(problem).encode("utf-8", "backslashreplace").decode()


def known_outcomes(
    rows: Iterable[Measurement],
    tunables: Sequence[Tunable],
    problem: Problem,
    target: Target,
    provenance: str,
) -> dict[Candidate, Outcome]:
    """The outcomes of this very problem, with the sources as they are, under these versions: of a
    run that was killed, or had fewer candidates. (Another problem of the bucket takes another
    time; what failed when it ran may not fail again.)"""
    text = text_of(problem)
    same = [m for m in rows if m.provenance == provenance and m.problem == text]
    known = dict(_valid(same, tunables, problem, target))
    best_us = min((o.device_us for o in known.values() if o.ok and o.device_us), default=None)
    return {c: o for c, o in known.items() if o.status not in AGAIN and _stands(o, best_us)}


def _stands(outcome: Outcome, best_us: float | None) -> bool:
    """Whether an outcome says the same where this is the best: what trailed another best, one that
    is no candidate here, may lead."""
    if outcome.status != "slow":
        return True
    if best_us is None:
        return False
    us, repeats = outcome.device_us, outcome.repeats
    return us is None or trailing(us, repeats, best_us) is not None


def best_known(
    rows: Iterable[Measurement],
    tunables: Sequence[Tunable],
    problem: Problem,
    target: Target,
    provenance: str,
) -> Iterator[Candidate]:
    """The candidates that were right in this bucket, with the sources as they are, under these
    versions or, where only others tried them, under those; the fastest first."""
    right = [m for m in latest_of_each(rows, provenance) if m.outcome.ok]
    right.sort(key=lambda m: m.outcome.time_us("graph"))
    return (candidate for candidate, _ in _valid(right, tunables, problem, target))


def _valid(
    rows: Iterable[Measurement], tunables: Sequence[Tunable], problem: Problem, target: Target
) -> Iterator[tuple[Candidate, Outcome]]:
    by_name = {one.name: one for one in tunables}
    for m in rows:
        one = by_name.get(m.candidate.implementation)
        if one is not None and m.source_hash == one.source_hash:
            try:
                config = one.config(m.candidate.config, problem, target)
            except InvalidConfigError:  # no point of its space any more
                continue
            yield Candidate(one.name, config), m.outcome
