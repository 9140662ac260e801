"""A report against a baseline of another time: per workload and provider, the ratio of times with
its interval, and whether ours became slower."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gristmill.bench.results import Report, Result, Row
from gristmill.bench.runner import MIN_PAIRS
from gristmill.bench.stamp import Stamp
from gristmill.core.plan import OBJECTIVES, Objective
from gristmill.errors import InvalidInputError
from gristmill.measure.statistics import NEVER_SLOWER, SAME_US, Ratio, ratio_of_medians

ChangeVerdict = Literal["same", "faster", "slower", "drifted", "broke", "mended", "not judged"]
THRESHOLD = round(1 - NEVER_SLOWER, 6)  # of "never slower"
OURS = ("selected", "own")
TIMED, FAULTS = ("ok", "outside"), ("wrong", "failed")


@dataclass(frozen=True, slots=True)
class Change:
    """One provider on one workload under one objective, in the baseline and now.

    Attributes:
        before_us, now_us: medians; `None` where it was not timed.
        ratio: before over now (above 1: faster now), with its 95% interval `low`..`high`.
        beside: of ours, `ratio` over that of the control (see `compare`); `None` without one.
        verdict: `slower` where the whole interval is below 1 less the threshold and the two are
            more than 0.3 us apart, `faster` likewise, else `same`; of ours `drifted` where it is so
            alone, and not beside the control; `broke` and `mended` where only one of them was
            timed; `not judged` for the reason given.
        note: of ours, the candidates and where their configs come from, where these differ.
    """

    workload: str
    provider: str
    role: str
    objective: Objective
    before_us: float | None
    now_us: float | None
    ratio: float | None
    low: float | None
    high: float | None
    beside: float | None
    verdict: ChangeVerdict
    reason: str = ""
    note: str = ""

    @property
    def regression(self) -> bool:
        """Whether something of ours is slower than it was, or no longer runs or is no longer
        right."""
        return self.role in OURS and self.verdict in ("slower", "broke")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A report against its baseline.

    Attributes:
        differences: what differs between the two runs beside the sources: device, versions.
        drift: geometric mean of the ratios of what is not ours (`eager`): the same software should
            be as fast as it was, so it says how far the device itself is from the baseline's state.
        only_before, only_now: workloads that only one of them has.
        threshold: the share of time that counts as slower.
    """

    op: str
    before: Stamp
    now: Stamp
    differences: tuple[str, ...]
    changes: tuple[Change, ...]
    only_before: tuple[str, ...]
    only_now: tuple[str, ...]
    threshold: float
    drift: float | None

    @property
    def regressions(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.regression)

    @property
    def judged(self) -> bool:
        """Whether there is a verdict on anything of ours."""
        return any(c.role in OURS and c.verdict != "not judged" for c in self.changes)

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "judged": self.judged,
            "regressions": [asdict(change) for change in self.regressions],
        }


def compare(now: Report, before: Report, threshold: float = THRESHOLD) -> Comparison:
    """`now` against the baseline `before`, of the same op.

    The two were not measured in turns, so their medians are compared as independent ones, each with
    its bootstrap interval (`measure.statistics.ratio_of_medians`); a report that is older than the
    intervals counts with its medians alone. "Slower" is the converse of the house's "never slower":
    the 95% interval of before / now does not reach 1 - `threshold` (0.98), and the two differ by
    more than 0.3 us.

    A device that is busier or hotter than it was makes everything slower. So ours is slower only if
    it is also slower beside the control: the middle one of the other providers on that workload,
    which took turns with it in both runs (the copy, where versions differ: the others' software may
    have changed). On another device there are ratios and no verdicts.

    Raises:
        InvalidInputError: the reports are of two ops, or the threshold is no share.
    """
    if now.op != before.op:
        raise InvalidInputError(
            f"the baseline is of `{before.op}`, the report of `{now.op}`; only reports of one op "
            "can be compared. Name a baseline of the same op."
        )
    if not 0 <= threshold < 1:
        raise InvalidInputError(
            f"`threshold` is {threshold}; it needs a share of time from 0 to below 1. Pass 0.02 "
            "for 2%."
        )
    old = {result.workload: result for result in before.results}
    new = {result.workload: result for result in now.results}
    software = [{**one.versions, "gristmill": ""} for one in (before.stamp, now.stamp)]
    elsewhere = (
        "" if now.stamp.target == before.stamp.target else "measured on another device or L2"
    )
    changes = [
        change
        for name, result in new.items()
        if name in old
        for change in _changes(old[name], result, threshold, elsewhere, software[0] == software[1])
    ]
    return Comparison(
        now.op,
        before.stamp,
        now.stamp,
        _differences(before.stamp, now.stamp),
        tuple(changes),
        tuple(name for name in old if name not in new),
        tuple(name for name in new if name not in old),
        threshold,
        _drift(changes),
    )


def compare_all(
    now: Sequence[Report], before: Sequence[Report], threshold: float = THRESHOLD
) -> tuple[Comparison, ...]:
    """Each report against the baseline's of its op, and of its device where there are several.

    Raises:
        InvalidInputError: the baseline has none of the ops.
    """
    found = []
    for one in now:
        same = [report for report in before if report.op == one.op]
        same.sort(key=lambda report, target=one.stamp.target: report.stamp.target != target)
        found += [compare(one, report, threshold) for report in same[:1]]
    if not found:
        raise InvalidInputError(
            f"the baseline has {', '.join(one.op for one in before) or 'no op'}; the report is of "
            f"{', '.join(one.op for one in now)}. Name a baseline of the same op."
        )
    return tuple(found)


def _changes(
    before: Result, now: Result, threshold: float, elsewhere: str, unchanged: bool
) -> list[Change]:
    old, new = ({row.provider: row for row in result.rows} for result in (before, now))
    if now.reason and not before.reason:  # the whole workload failed: every column of it broke
        new = {name: Row(name, row.role, "failed", reason=now.reason) for name, row in old.items()}
    controls = {objective: _control(old, new, objective, unchanged) for objective in OBJECTIVES}
    why_not = elsewhere
    if not why_not and now.problem != before.problem:
        why_not = "the name stands for another problem now"
    if not why_not and not now.reason and min(now.pairs, before.pairs) < MIN_PAIRS:
        why_not = f"fewer than {MIN_PAIRS} pairs"
    return [
        _change(now.workload, old[name], row, objective, controls[objective], threshold, why_not)
        for name, row in new.items()
        if name in old
        for objective in OBJECTIVES
        if _time(old[name], objective) is not None or _time(row, objective) is not None
    ]


def _change(
    workload: str,
    before: Row,
    now: Row,
    objective: Objective,
    control: Ratio | None,
    threshold: float,
    why_not: str,
) -> Change:
    old, new = _time(before, objective), _time(now, objective)
    ratio = ratio_of_medians(old, new) if old and new else None
    role = now.role or before.role
    if role not in OURS:
        control = None
    verdict, reason = _judged(before, now, old, new, control, threshold)
    if why_not:
        verdict, reason = "not judged", why_not
    changed = role in OURS and ratio is not None and before.what != now.what
    return Change(
        workload,
        now.provider,
        role,
        objective,
        old.value if old else None,
        new.value if new else None,
        *((ratio.value, ratio.low, ratio.high) if ratio else (None, None, None)),
        ratio.value / control.value if ratio and control else None,
        verdict,
        reason,
        f"was {before.what}, is {now.what}" if changed else "",
    )


def _judged(
    before: Row,
    now: Row,
    old: Ratio | None,
    new: Ratio | None,
    control: Ratio | None,
    threshold: float,
) -> tuple[ChangeVerdict, str]:
    """The verdict, and the reason where it is not by the times."""
    if new is None:
        return "broke" if now.status in FAULTS else "not judged", now.reason or "not timed now"
    if old is None:
        verdict = "mended" if before.status in FAULTS else "not judged"
        return verdict, before.reason or "not timed before"
    ratio, saved_us = ratio_of_medians(old, new), old.value - new.value
    alone = _verdict(ratio, saved_us, threshold)
    if control is None or alone == "same":
        return alone, ""
    beside = _verdict(ratio_of_medians(ratio, control), saved_us, threshold)
    return alone if beside == alone else "drifted", ""


def _control(
    before: Mapping[str, Row], now: Mapping[str, Row], objective: Objective, unchanged: bool
) -> Ratio | None:
    """The middle ratio of what is not ours and should be as fast as it was."""
    found: dict[str, list[Ratio]] = {"other": [], "ceiling": []}
    for name, row in now.items():
        old = _time(before[name], objective) if name in before else None
        new = _time(row, objective)
        if old and new and row.role in found:
            found[row.role].append(ratio_of_medians(old, new))
    ratios = (found["other"] if unchanged else []) or found["ceiling"]
    return sorted(ratios, key=lambda ratio: ratio.value)[len(ratios) // 2] if ratios else None


def _verdict(ratio: Ratio, saved_us: float, threshold: float) -> ChangeVerdict:
    if abs(saved_us) <= SAME_US:
        return "same"
    if ratio.high < 1 - threshold:
        return "slower"
    return "faster" if ratio.low > 1 / (1 - threshold) else "same"


def _time(row: Row, objective: Objective) -> Ratio | None:
    """The row's median with its interval (or the median alone); `None` where it was not timed."""
    time_us = row.eager_us if objective == "eager" else row.graph_us
    interval = row.eager_interval_us if objective == "eager" else row.graph_interval_us
    if row.status not in TIMED or not time_us:
        return None
    return Ratio(time_us, *(interval or (time_us, time_us)))


def _differences(before: Stamp, now: Stamp) -> tuple[str, ...]:
    facts: list[tuple[str, Any, Any]] = [
        ("device", before.device, now.device),
        ("target", before.target, now.target),
    ]
    names = dict.fromkeys((*before.versions, *now.versions))
    facts += [(name, before.versions.get(name), now.versions.get(name)) for name in names]
    return tuple(
        f"{name}: {old or '?'} before, {new or '?'} now" for name, old, new in facts if old != new
    )


def _drift(changes: Sequence[Change]) -> float | None:
    logs = [
        math.log(change.ratio)
        for change in changes
        if change.ratio and change.role not in OURS and change.objective == "eager"
    ]
    return math.exp(sum(logs) / len(logs)) if logs else None


def sources_text(stamp: Stamp) -> str:
    """The sources of a report: commit, whether it had local changes, digest, date."""
    commit = (stamp.commit or "unknown commit")[:12] + (
        " with local changes" if stamp.dirty else ""
    )
    tree = f", sources {stamp.tree[:12]}" if stamp.tree else ""
    return f"{stamp.date[:10]}, {commit}{tree}"
