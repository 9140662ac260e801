"""The results of a benchmark, as values and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from gristmill.bench.stamp import Stamp
from gristmill.core.plan import Objective
from gristmill.errors import InvalidInputError

RowStatus = Literal["ok", "outside", "wrong", "failed", "unsupported"]


@dataclass(frozen=True, slots=True)
class Versus:
    """The selected plan against one other provider, under one objective.

    Attributes:
        speedup: other time over ours (above 1: ours is faster), with its 95% bootstrap interval
            `low`..`high`.
        never_slower: the interval reaches 0.98, or the two are within 0.3 us; `None` for fewer than
            50 pairs.
    """

    provider: str
    objective: Objective
    speedup: float
    low: float
    high: float
    never_slower: bool | None


@dataclass(frozen=True, slots=True)
class Row:
    """One provider on one problem.

    Attributes:
        status: `ok`; `outside` (torch's plain call, outside the error bounds: timed, but no
            baseline and in no verdict); `wrong` (outside the error bounds: not timed); `failed`
            (raised); `unsupported` (cannot run the problem here, and says so).
        error: the worst error as a share of its bound.
        device_us: median device time, L2 flushed by reading. host_us: host time to issue a call;
            `None` on a CPU, where the call is its own device.
        eager_us: the longer of the two. graph_us: median inside a replayed CUDA graph.
        eager_interval_us, graph_interval_us: their 95% bootstrap intervals; `None` in reports older
            than these.
        bytes_per_s, flops_per_s: the problem's least bytes, and its operations, over `device_us`.
        roofline_share: the roofline's time over `device_us`.
        speedup: `eager_us` of the fastest provider that a user has without us, within the bounds,
            over this one's.
    """

    provider: str
    role: str
    status: RowStatus
    what: str = ""
    reason: str = ""
    error: float | None = None
    device_us: float | None = None
    host_us: float | None = None
    eager_us: float | None = None
    graph_us: float | None = None
    bytes_per_s: float | None = None
    flops_per_s: float | None = None
    roofline_share: float | None = None
    speedup: float | None = None
    eager_interval_us: tuple[float, float] | None = None
    graph_interval_us: tuple[float, float] | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        pairs = {
            name: None if data.get(name) is None else tuple(data[name])
            for name in ("eager_interval_us", "graph_interval_us")
        }
        return cls(**{**data, **pairs})


@dataclass(frozen=True, slots=True)
class Result:
    """One problem: its rows, and the verdicts on the selected plan.

    Attributes:
        limit: what the roofline is set by: `memory` or `compute`. roofline_us: the least time.
        pairs: interleaved launches of each provider.
        baseline: the fastest provider that a user has without us, within the bounds (eager).
        conditions: what the device was like (`Conditions.to_json`); `None` in older reports.
    """

    workload: str
    problem: str
    flops: int
    size_bytes: int
    rows: tuple[Row, ...]
    versus: tuple[Versus, ...] = ()
    pairs: int = 0
    limit: str = ""
    roofline_us: float | None = None
    baseline: str | None = None
    reason: str = ""
    conditions: Mapping[str, Any] | None = None

    @property
    def failed(self) -> bool:
        """Whether the problem could not be benchmarked, or a provider raised or was wrong."""
        return bool(self.reason) or any(row.status in ("wrong", "failed") for row in self.rows)

    @property
    def slower(self) -> bool:
        """Whether the selected plan is slower than another provider, under either objective."""
        return any(v.never_slower is False for v in self.versus)


def outside_text(error: float | None) -> str:
    """How far outside the bounds; `error` as a share of the bound, `None` where it is infinite."""
    if error is None or not math.isfinite(error):
        return "outside the bounds"
    return (
        f"outside the bounds by {error:.0f}x"
        if error >= 10
        else (f"outside the bounds by {error:.1f}x")
    )


@dataclass(frozen=True, slots=True)
class Report:
    """A benchmark of one op: results with the ceilings and versions that they were measured
    under."""

    op: str
    stamp: Stamp
    ceilings: Mapping[str, Any]
    results: tuple[Result, ...]
    skipped: tuple[str, ...] = ()
    matrix: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return any(result.failed for result in self.results)

    @property
    def slower(self) -> bool:
        return any(result.slower for result in self.results)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def save(self, path: Path) -> None:
        """Write the report, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read what `save` wrote.

        Raises:
            InvalidInputError: it is no report of one op.
        """
        (report,) = load_reports(path, only_one=True)
        return report

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """The report of which `to_json` made this."""
        results = tuple(
            Result(
                **{
                    **r,
                    "rows": tuple(Row.from_json(row) for row in r["rows"]),
                    "versus": tuple(Versus(**v) for v in r["versus"]),
                }
            )
            for r in data["results"]
        )
        return cls(
            **{
                **data,
                "stamp": Stamp(**data["stamp"]),
                "results": results,
                "skipped": tuple(data["skipped"]),
            }
        )


def reports_json(reports: Sequence[Report]) -> dict[str, Any]:
    """One document: of one op its report, of several `{"reports": [...]}`."""
    if len(reports) == 1:
        return reports[0].to_json()
    return {"reports": [report.to_json() for report in reports]}


def save_reports(path: Path, reports: Sequence[Report]) -> None:
    """Write reports into one file, whole or not at all."""
    write_json(path, reports_json(reports))


def load_reports(path: Path, only_one: bool = False) -> tuple[Report, ...]:
    """Read what `Report.save` or `save_reports` wrote.

    Raises:
        InvalidInputError: the file cannot be read or holds something else, or with `only_one`
            several reports.
    """
    data = read_json(path)
    several = data.get("reports", [data])
    try:
        reports = tuple(Report.from_json(one) for one in several)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvalidInputError(
            f"{path} is no benchmark report of this version ({type(error).__name__}: {error}); "
            "reports are what `gristmill bench --out FILE` writes. Name one, or measure again."
        ) from error
    if only_one and len(reports) != 1:
        raise InvalidInputError(
            f"{path} has {len(reports)} reports; one is needed here. Use `load_reports`."
        )
    return reports


def write_json(path: Path, data: Any) -> None:
    """Write a JSON document, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InvalidInputError: there is no such file, or no JSON object in it.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"'{path}' cannot be read as JSON: {error}. Name a file that `gristmill bench --out` "
            "or `gristmill tune --out` wrote."
        ) from error
    if not isinstance(data, dict):
        raise InvalidInputError(
            f"'{path}' holds a JSON {type(data).__name__}; a report is an object. Name a file that "
            "`gristmill bench --out` or `gristmill tune --out` wrote."
        )
    return data
