"""Outcomes, measurements and plans: what tuning writes and selection reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, field, replace
from typing import Any, Literal

from gristmill.core.config import Config
from gristmill.record import record

Objective = Literal["eager", "graph"]
OBJECTIVES: tuple[Objective, ...] = ("eager", "graph")
Status = Literal[
    "ok", "wrong", "compile_error", "launch_error", "timeout", "crash", "slow", "unsupported"
]
Origin = Literal["tuned", "neighbour", "prior", "vendor"]


KERNEL = "kernel:"  # begins what a user's kernel is called where an op's name would be
INTERRUPTED = "interrupted"  # the provenance of a plan whose search did not end


@record
class Candidate:
    """An implementation (by name) with one config."""

    implementation: str
    config: Config = field(default_factory=Config)

    def __str__(self) -> str:
        return (
            self.implementation if not self.config.knobs else f"{self.implementation} {self.config}"
        )


@record
class Outcome:
    """What measuring one candidate gave: times and error, or a class of failure with its reason.

    Attributes:
        status: `ok`; `wrong` (outside the bounds); `compile_error`; `launch_error` (raised);
            `timeout` (killed); `crash` (took its process down); `slow` (abandoned early in the
            race, times are of few repeats); `unsupported`.
        reason: why, where the status is not `ok`.
        device_us: device time of one call, L2 flushed by reading, median.
        host_us: host time to issue one call, median.
        graph_us: device time of one call inside a replayed CUDA graph, L2 flushed by reading,
            median.
        error: the worst error as a share of the bound (at most 1 passes).
        repeats: timed repeats behind `device_us`.
        registers, spills, shared_bytes: of the largest kernel, where known.
    """

    status: Status
    reason: str = ""
    device_us: float | None = None
    host_us: float | None = None
    graph_us: float | None = None
    error: float | None = None
    repeats: int = 0
    registers: int | None = None
    spills: int | None = None
    shared_bytes: int | None = None

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    def time_us(self, objective: Objective) -> float:
        """The time that an objective ranks by (infinite where there is none)."""
        if self.device_us is None:
            return float("inf")
        if objective == "graph":
            return self.graph_us if self.graph_us is not None else self.device_us
        return max(self.device_us, self.host_us or 0.0)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        return cls(**data)


@record
class Measurement:
    """One candidate's outcome on one problem and target, with its identity and provenance.

    `source_hash` identifies the implementation's source; `provenance` (versions, driver, date)
    explains the figure.
    """

    op: str
    candidate: Candidate
    source_hash: str
    bucket: str
    target: str
    problem: str
    outcome: Outcome
    provenance: str = ""
    measured_at: float = 0.0


def latest_of_each(rows: Iterable[Measurement], provenance: str) -> list[Measurement]:
    """One measurement of each candidate and source: under this provenance before any other, then
    the latest."""
    found: dict[tuple[Candidate, str], Measurement] = {}
    for m in rows:
        old = found.setdefault((m.candidate, m.source_hash), m)
        if (m.provenance == provenance, m.measured_at) >= (
            old.provenance == provenance, old.measured_at
        ):  # fmt: skip
            found[m.candidate, m.source_hash] = m
    return list(found.values())


@record
class Plan:
    """The chosen candidate for a (bucket, target, objective), with its evidence.

    Attributes:
        origin: `tuned` (measured for this bucket), `neighbour` (measured for the nearest bucket),
            `prior`, `vendor`.
        fallback: the best candidate that needs no compiler at run time: what a direct call uses
            until a `compiled` choice is built.
        evidence: the outcome behind the choice, for a measured origin.
        reason: one sentence: why this one.
        revalidate: the versions have changed since the measurement, or its search was interrupted.
        packed: it is a shipped pack's, and not in the user's store.
    """

    op: str
    candidate: Candidate
    bucket: str
    target: str
    objective: Objective
    origin: Origin
    source_hash: str = ""
    fallback: Candidate | None = None
    evidence: Outcome | None = None
    reason: str = ""
    provenance: str = ""
    revalidate: bool = False
    packed: bool = False

    @property
    def wants_tuning(self) -> bool:
        """Whether it was not measured for its bucket, or under other versions."""
        return self.origin != "tuned" or self.revalidate

    def with_origin(self, origin: Origin, bucket: str, reason: str) -> Plan:
        return replace(self, origin=origin, bucket=bucket, reason=reason)
