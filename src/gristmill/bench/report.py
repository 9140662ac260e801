"""A report as text: one table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gristmill.bench.results import Report, Result, Row, Versus, outside_text

COLUMNS = (
    "provider",
    "device us",
    "host us",
    "graph us",
    "rate",
    "roofline",
    "speed-up",
    "error",
    "verdict",
)

LEGEND = (  # the console wraps it
    "\nrate: the least bytes, or the operations, over device time. roofline: the least time (of a "
    "copy_ of as many bytes in this run, or of the operations at the matrix rate) over device "
    "time. speed-up: the fastest other provider's time of a call over this one's. error: share of "
    "the bound; torch's plain call outside of it is timed, and is in no verdict."
)


def print_report(out: Console, report: Report, legend: bool = True) -> None:
    """Every workload with its providers, the ceilings, and what was skipped."""
    out.print(
        f"[bold]{report.op}[/] on {escape(report.stamp.device)}: {ceilings_text(report)}",
        soft_wrap=True,
    )
    for result in report.results:
        out.print()
        _print_result(out, result, report.matrix)
    for warning in condition_warnings(report):
        out.print(warning, style="yellow", markup=False, highlight=False)
    if report.skipped:
        out.print(f"\nskipped, out of time: {', '.join(map(escape, report.skipped))}")
    out.print(LEGEND if legend else "", style="dim")


def condition_warnings(report: Report) -> list[str]:
    """What to know of the device under which workloads were measured, each warning with the
    workload."""
    return [
        f"{result.workload}: {warning}"
        for result in report.results
        for warning in (result.conditions or {}).get("warnings", ())
    ]


def ceilings_text(report: Report) -> str:
    """The ceilings of the run in one line."""
    rates = [f"copy {float(report.ceilings['copy_bytes_per_s']) / 1e9:,.0f} GB/s"]
    rates += [
        f"{name} matmul {rate / 1e12:,.3g} TFLOP/s"
        for name, rate in report.ceilings["flops_per_s"].items()
    ]
    return ", ".join(rates)


def _print_result(out: Console, result: Result, matrix: bool) -> None:
    named = result.workload != result.problem
    name = f"[bold]{escape(result.workload)}[/]  " if named else ""
    out.print(name + escape(result.problem), soft_wrap=True)
    if result.reason:
        out.print(f"[bold red]failed[/] {escape(result.reason)}")
        return
    lines = [_cells(row, result, matrix) for row in result.rows]
    shown = [i for i, _ in enumerate(COLUMNS) if any(line[i] for line in lines)]
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i in shown:
        rows.add_column(
            COLUMNS[i],
            justify="left" if COLUMNS[i] in ("provider", "verdict") else "right",
            no_wrap=True,
        )
    for row, line in zip(result.rows, lines, strict=True):
        style = (
            "bold"
            if row.role == "selected"
            else "dim"
            if row.role == "ceiling" or row.status != "ok"
            else ""
        )
        rows.add_row(*(line[i] for i in shown), style=style)
    out.print(rows)
    for row in result.rows:
        if row.role in ("selected", "own"):
            hint = _untuned(row)
            out.print(f"  {row.provider}: {escape(row.what)}{hint}", style="dim", soft_wrap=True)
        if row.status != "ok":
            colour = "yellow" if row.status == "outside" else "red"
            out.print(f"  [{colour}]{row.provider}: {escape(row.reason)}[/]", soft_wrap=True)
    for versus in result.versus:
        if versus.never_slower is False:
            same = _same(versus, result.rows)
            out.print(f"  [red]{_loss(versus)}[/]{same}", soft_wrap=True)


def _cells(row: Row, result: Result, matrix: bool) -> tuple[str, ...]:
    times = tuple(
        "" if t is None else f"{t:,.2f}" for t in (row.device_us, row.host_us, row.graph_us)
    )
    share = "" if row.roofline_share is None else f"{row.roofline_share:.0%}"
    speedup = "" if row.speedup is None else f"{row.speedup:.2f}x"
    error = "" if row.error is None else f"{row.error:.2f}"
    verdict = verdict_text(result) if row.role == "selected" else ""
    if row.status != "ok":
        verdict = outside_text(row.error) if row.status == "outside" else row.status
    style = {"never slower": "green", "slower": "bold red", "too few pairs": "yellow"}.get(
        verdict, "red"
    )
    verdict = f"[{style}]{verdict}[/]" if verdict else ""
    return (row.provider, *times, rate_text(row, result, matrix), share, speedup, error, verdict)


def rate_text(row: Row, result: Result, matrix: bool) -> str:
    """TFLOP/s where operations are the limit, else GB/s."""
    if matrix and result.limit == "compute":
        return "" if row.flops_per_s is None else f"{row.flops_per_s / 1e12:,.3g} TFLOP/s"
    return "" if row.bytes_per_s is None else f"{row.bytes_per_s / 1e9:,.0f} GB/s"


def verdict_text(result: Result) -> str:
    """Whether the plan is never slower than each other provider: in words, empty where there is
    none to compare."""
    if not result.versus:
        return ""
    if result.slower:
        return "slower"
    return "too few pairs" if any(v.never_slower is None for v in result.versus) else "never slower"


def _loss(versus: Versus) -> str:
    interval = f"95% interval {versus.low:.2f} to {versus.high:.2f}"
    return f"slower than {versus.provider} ({versus.objective}): {versus.speedup:.2f}x, {interval}"


def _untuned(row: Row) -> str:
    """What to do where the plan was not measured for this problem."""
    if row.role != "selected" or row.what.endswith("[tuned]"):
        return ""
    return "; not tuned for this problem: `gristmill tune` finds its plan"


def _same(versus: Versus, rows: Sequence[Row]) -> str:
    """Where the plan is that very provider: what the difference then is."""
    plan = next((row.what.split()[0] for row in rows if row.role == "selected"), "")
    if plan != versus.provider:
        return ""
    return f"; the plan is {plan} itself: the rest is the bound call's check of its key"


def print_compact(out: Console, report: Report) -> None:
    """One line a workload: the plan against the fastest other provider, our best own kernel, and
    the verdict."""
    rows = Table(box=None, pad_edge=False, padding=(0, 1))
    for i, name in enumerate(
        (
            "workload",
            "plan",
            "us",
            "host",
            "graph",
            "rate",
            "roof",
            "vs best",
            "of",
            "own",
            "verdict",
        )
    ):
        rows.add_column(name, justify="right" if 2 <= i <= 7 else "left", no_wrap=True)
    for result in report.results:
        rows.add_row(result.workload, *_compact_cells(result, report.matrix))
    out.print(rows)
    for result in report.results:
        failures = [
            (row.provider, row.reason)
            for row in result.rows
            if row.status != "ok" and row.role != "own"
        ]
        if result.reason:
            failures.append(("", result.reason))
        for provider, reason in failures:
            out.print(f"{result.workload} {provider}: {escape(reason[:200])}", soft_wrap=True)
    for warning in condition_warnings(report):
        out.print(warning, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if report.skipped:
        out.print(f"skipped, out of time: {', '.join(map(escape, report.skipped))}", soft_wrap=True)


def _compact_cells(result: Result, matrix: bool) -> tuple[str, ...]:
    selected = next((row for row in result.rows if row.role == "selected"), None)
    if result.reason or selected is None or selected.status != "ok":
        return ("FAILED", *[""] * 9)
    losses = [
        f"{v.provider}/{v.objective} {v.speedup:.2f}"
        for v in result.versus
        if v.never_slower is False
    ]
    owns = [
        (row.device_us, row.provider) for row in result.rows if row.role == "own" and row.device_us
    ]
    own_us, own = min(owns, default=(None, ""))
    best_us = min(
        (
            row.device_us
            for row in result.rows
            if row.role == "other" and row.status == "ok" and row.device_us
        ),
        default=None,
    )
    own_text = f"{own} {best_us / own_us:.2f}x" if own_us and best_us else own
    verdict = verdict_text(result) + (f": {', '.join(losses)}" if losses else "")
    return (
        selected.what.split()[0],
        f"{selected.device_us:,.1f}",
        f"{selected.host_us:.1f}" if selected.host_us is not None else "",
        f"{selected.graph_us:,.1f}" if selected.graph_us is not None else "",
        rate_text(selected, result, matrix).replace(" ", ""),
        f"{selected.roofline_share:.0%}" if selected.roofline_share is not None else "",
        f"{selected.speedup:.2f}x" if selected.speedup is not None else "",
        result.baseline or "",
        own_text,
        verdict,
    )
