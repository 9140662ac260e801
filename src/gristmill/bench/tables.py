"""The benchmark tables of a Markdown file, regenerated from committed results: `gristmill tables
README.md`, or `python -m gristmill.bench.tables README.md`.

Replaces what stands between `<!-- benchmarks:begin -->` and `<!-- benchmarks:end -->` by one table
per op and device of the reports in `benchmarks/results/<device>/*.json`. With `--check`, changes
nothing and fails where the file is not up to date.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from gristmill.bench.beside import BESIDE
from gristmill.bench.report import ceilings_text, rate_text
from gristmill.bench.results import (
    Report,
    Result,
    Row,
    load_reports,
    outside_text,
)
from gristmill.errors import GristmillError, InvalidInputError

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
NOTHING = "Not measured yet: no results are committed under `benchmarks/results`."
RESULTS = Path("benchmarks/results")


def tables(results: Path) -> str:
    """The Markdown of every device's results under this folder."""
    parts: list[str] = []
    for folder in sorted(p for p in results.glob("*") if p.is_dir()):
        paths = [path for path in sorted(folder.glob("*.json")) if _has_reports(path)]
        parts += [report_markdown(one) for path in paths for one in load_reports(path)]
        parts += [
            markdown(json.loads((folder / name).read_text()))
            for name, markdown in BESIDE.items()
            if (folder / name).exists()
        ]
    return "\n\n".join(parts) or NOTHING


def report_markdown(report: Report) -> str:
    """One op on one device: a line a workload, losses included, with where the numbers come
    from."""
    others = list(
        dict.fromkeys(row.provider for r in report.results for row in r.rows if row.role == "other")
    )
    header = [
        "workload",
        *(f"{name} us" for name in others),
        "gristmill us",
        "plan",
        "rate",
        "roofline",
        "speed-up",
        "verdict",
    ]
    lines = [
        f"**{report.op}**, {report.stamp.device}: {ceilings_text(report)}",
        "",
        "| " + " | ".join(header) + " |",
        "|---|" + "---:|" * (len(others) + 1) + "---|---:|---:|---:|---|",
    ]
    lines += [
        "| " + " | ".join(_line(result, others, report.matrix)) + " |" for result in report.results
    ]
    lines += ["", _summary(report)] if report.results else []
    outside = [
        f"{row.provider} on {result.workload} by {row.error:.3g}x"
        if row.error is not None
        else f"{row.provider} on {result.workload}"
        for result in report.results
        for row in result.rows
        if row.status == "outside"
    ]
    if outside:
        lines += [
            "",
            f"\\* {outside_text(None)}, so timed but in no verdict: {'; '.join(outside)}.",
        ]
    if report.skipped:
        lines += ["", f"Not run, out of time: {', '.join(report.skipped)}."]
    versions = report.stamp.versions
    commit = (report.stamp.commit or "unknown commit")[:12]
    commit += " with local changes" if report.stamp.dirty else ""
    software = f"torch {versions.get('torch')}, Triton {versions.get('triton')}"
    if report.stamp.tree:
        commit += f" (sources {report.stamp.tree[:12]})"
    lines += ["", f"{report.stamp.date[:10]}, {commit}, {software}."]
    return "\n".join(lines)


def _line(result: Result, others: Sequence[str], matrix: bool) -> list[str]:
    rows = {row.provider: row for row in result.rows}
    selected = next((row for row in result.rows if row.role == "selected"), None)
    cells = [result.workload, *(_time(rows.get(name)) for name in others)]
    if selected is None or selected.status != "ok":
        reason = result.reason or (selected.reason if selected else "not run")
        return [*cells, "failed", reason.replace("|", "/")[:80], "", "", "", ""]
    losses = [
        f"{v.provider}, {v.objective}: {v.speedup:.2f}x"
        for v in result.versus
        if v.never_slower is False
    ]
    unsure = any(v.never_slower is None for v in result.versus)
    verdict = (
        f"slower ({'; '.join(losses)})" if losses else "too few pairs" if unsure else "never slower"
    )
    return [
        *cells,
        _time(selected),
        selected.what.split()[0],
        rate_text(selected, result, matrix),
        f"{selected.roofline_share:.0%}" if selected.roofline_share is not None else "",
        f"{selected.speedup:.2f}x" if selected.speedup is not None else "",
        verdict,
    ]


def _time(row: Row | None) -> str:
    """Device time, and host time where a call is bound by it."""
    if row is None or row.device_us is None:
        return "-" if row is None or row.status == "unsupported" else row.status
    text = f"{row.device_us:,.1f}" + (r"\*" if row.status == "outside" else "")
    return (
        f"{text} (host {row.host_us:.1f})" if row.host_us and row.host_us > row.device_us else text
    )


def _summary(report: Report) -> str:
    """On how many of all workloads the plan is never slower, with what failed among the rest."""
    total, failed = len(report.results), sum(plan_row(r) is None for r in report.results)
    text = f"Never slower on {never_slower_count(report)} of {total} workloads"
    if failed:
        text += f", {failed} failed"
    mean, count = speedup_mean(report)
    if mean is not None:
        text += (
            f"; the plan's speed-up over the fastest other provider: {mean:.2f}x, geometric mean"
        )
        text += f" of {count}" if count < total else ""
    return text + "."


def never_slower_count(report: Report) -> int:
    """On how many workloads the plan is never slower than any other provider."""
    return sum(
        plan_row(r) is not None and bool(r.versus) and all(v.never_slower for v in r.versus)
        for r in report.results
    )


def speedup_mean(report: Report) -> tuple[float | None, int]:
    """The geometric mean of the plan's speed-up over the fastest other provider, and of how many
    workloads it is."""
    plans = [plan_row(result) for result in report.results]
    speedups = [plan.speedup for plan in plans if plan is not None and plan.speedup]
    if not speedups:
        return None, 0
    return math.exp(sum(map(math.log, speedups)) / len(speedups)), len(speedups)


def plan_row(result: Result) -> Row | None:
    """The selected plan's row; `None` where it was not measured or is wrong."""
    if result.reason:
        return None
    return next((r for r in result.rows if r.role == "selected" and r.status == "ok"), None)


def _has_reports(path: Path) -> bool:
    """Whether this is of `bench` (beside it lie those of `bench.beside`)."""
    data = json.loads(path.read_text())
    return isinstance(data, dict) and ("reports" in data or {"op", "results"} <= data.keys())


def replaced(text: str, content: str) -> str:
    """`text` with `content` between the markers.

    Raises:
        InvalidInputError: it has no such markers.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InvalidInputError(
            f"the file has no {BEGIN} ... {END}; the tables go between them. Add the two lines."
        )
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def update(file: Path, results: Path, check: bool = False) -> bool:
    """Rewrite the tables of a file; whether they were not up to date. With `check`, it stays as it
    is.

    Raises:
        InvalidInputError: there is no such file, it has no markers, or a result does not load.
    """
    if not file.is_file():
        raise InvalidInputError(
            f"'{file}' is no file; the tables go into a Markdown file with {BEGIN} and {END}. Name "
            "one."
        )
    old = file.read_text()
    new = replaced(old, tables(results))
    if new != old and not check:
        file.write_text(new)
    return new != old


def main() -> int:
    """Rewrite the tables of the file that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", default=Path("README.md"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail where the file is not up to date"
    )
    arguments = parser.parse_args()
    try:
        changed = update(arguments.file, arguments.results, arguments.check)
    except GristmillError as error:
        raise SystemExit(str(error)) from error
    if changed and arguments.check:
        command = f"gristmill tables {arguments.file}"
        raise SystemExit(f"{arguments.file} is not up to date: run `{command}`")
    return 0


if __name__ == "__main__":
    sys.exit(main())
