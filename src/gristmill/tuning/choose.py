"""The choice among finalists: the fastest that is right. Among ties, who keeps the device busy no
longer; then whose host stays ahead of the device; then the incumbent; then who needs less."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gristmill.core.implementation import Kind
from gristmill.core.plan import Candidate, Objective, Outcome
from gristmill.core.registry import implementation
from gristmill.measure.statistics import SAME_US, tied

# Among ties: no kernel of ours to keep before one, and no compiler at run time before that.
KIND_RANK = {"vendor": 0, "triton": 1, "compiled": 2}

Samples = Mapping[str, Any]
Entry = tuple[Candidate, Outcome, Samples]
SAME_SHARE = 1.02  # where the host decides: what "never slower" allows
AHEAD_SHARE = 0.8  # of device time: a host that needs more is what a caller may come to wait for
CHAIN_SHARE = 0.5  # of device time: a host that needs more falls behind in a chain of such calls


def choose(
    op: str,
    entries: Sequence[Entry],
    objective: Objective,
    incumbent: Candidate | None = None,
    kind_of: Callable[[Candidate], Kind] | None = None,
    slack: float = 0.0,
) -> tuple[Candidate, Outcome, str] | None:
    """The chosen candidate, its outcome, and one sentence why; `None` where nothing measured is
    right. `kind_of` tells the kind of candidates that are none of the registry's; ties are wider by
    the share `slack`, where the machine is that noisy."""
    alive = _alive(entries, objective)
    if not alive:
        return None
    named = kind_of or (lambda c: implementation(op, c.implementation).kind)
    equal = tied_with_fastest(entries, objective, slack)
    allowed = _or_built(alive, equal, objective, named)
    least_us = min(outcome.device_us or 0.0 for _, outcome, _ in allowed)

    def lags(outcome: Outcome) -> bool:
        return (outcome.device_us or 0.0) > SAME_SHARE * least_us + SAME_US

    def trails(outcome: Outcome) -> bool:
        host_us = outcome.host_us or 0.0
        return objective == "eager" and host_us > AHEAD_SHARE * (outcome.device_us or 0.0)

    def rank(entry: Entry) -> tuple[Any, ...]:
        candidate, outcome, _ = entry
        needs = (KIND_RANK[named(candidate)], outcome.registers or 0, outcome.shared_bytes or 0)
        name = (candidate.implementation, candidate.config.key)
        return (lags(outcome), trails(outcome), candidate != incumbent, *needs, *name)

    chosen, outcome, _ = min(allowed, key=rank)
    time_us = outcome.time_us(objective)
    if all(candidate != chosen for candidate, *_ in equal):
        within = f"within {SAME_SHARE - 1:.0%} of a compiled choice that keeps the host busy longer"
        return chosen, outcome, f"{time_us:.2f} us, {within}"
    if len(equal) == 1:
        others = (
            f"; the next takes {alive[1][1].time_us(objective) / time_us:.2f}x as long"
            if len(alive) > 1
            else ""
        )
        return chosen, outcome, f"fastest at {time_us:.2f} us{others}"
    why = "the incumbent" if chosen == incumbent else "it needs the least"
    others = [outcome for candidate, outcome, _ in equal if candidate != chosen]
    if all(map(lags, others)):
        why = "it keeps the device the shortest time"
    elif not trails(outcome) and all(lags(other) or trails(other) for other in others):
        why = "it keeps the host the shortest time"
    return chosen, outcome, f"{time_us:.2f} us, tied with {len(equal) - 1} other(s); {why}"


def _or_built(
    alive: Sequence[Entry],
    ties: list[Entry],
    objective: Objective,
    named: Callable[[Candidate], Kind],
) -> list[Entry]:
    """Ties, and where only compiled choices are the fastest eager ones, whoever "never slower"
    allows in their place and keeps the host less. Those keep it 30 us longer, which hides behind
    one kernel but not behind a chain of short ones. Long ones keep their place: 125 us of
    Inductor's were 3.4% faster in a benchmark than what had been within 2% of them when it was
    chosen (H200)."""
    if objective == "graph" or any(
        named(candidate) != "compiled"
        or (outcome.host_us or 0.0) <= CHAIN_SHARE * (outcome.device_us or 0.0)
        for candidate, outcome, _ in ties
    ):
        return ties
    most_us = SAME_SHARE * alive[0][1].time_us(objective)
    most_host_us = min(outcome.host_us or 0.0 for _, outcome, _ in ties)
    near = (
        (candidate, outcome, samples)
        for candidate, outcome, samples in alive
        if named(candidate) != "compiled"
        and outcome.time_us(objective) <= most_us
        and (outcome.host_us or 0.0) < most_host_us
    )
    return [*ties, *near]


def tied_with_fastest(
    entries: Sequence[Entry], objective: Objective, slack: float = 0.0
) -> list[Entry]:
    """The fastest that is right and whoever cannot be told apart from it, by time; empty where
    nothing is right."""
    alive = _alive(entries, objective)
    return [e for e in alive if e is alive[0] or _tied(e, alive[0], objective, slack)]


def _alive(entries: Sequence[Entry], objective: Objective) -> list[Entry]:
    """Those that were measured and are right, by time."""
    alive = (entry for entry in entries if entry[1].ok and entry[1].device_us is not None)
    return sorted(alive, key=lambda entry: entry[1].time_us(objective))


def _tied(
    a: Entry,
    b: Entry,
    objective: Objective,
    slack: float,
) -> bool:
    """Whether two cannot be told apart: by paired samples where both times are device times, by
    size where the host is the slower side of one."""
    (_, x, left), (_, y, right) = a, b
    one, other = x.time_us(objective), y.time_us(objective)
    if abs(one - other) <= SAME_US:
        return True
    if objective == "eager" and any((o.host_us or 0.0) > (o.device_us or 0.0) for o in (x, y)):
        return max(one, other) <= (SAME_SHARE + slack) * min(one, other)
    name = (
        "graph" if objective == "graph" and left.get("graph") and right.get("graph") else "device"
    )
    return bool(left.get(name) and right.get(name) and tied(left[name], right[name], slack))
