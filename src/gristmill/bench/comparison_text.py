"""A comparison with a baseline as text: one table for people."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gristmill.bench.comparison import Change, Comparison, sources_text

STYLES = {"slower": "bold red", "broke": "bold red", "faster": "green", "mended": "green"}
LEGEND = (
    "\nratio: time before over time now, above 1 is faster now, with its 95% interval. beside: "
    "that ratio over the middle one of the other providers, which took turns in both runs. slower: "
    "the interval does not reach {least:g}, more than 0.3 us apart, and of ours also beside the "
    "others; drifted: not beside them."
)


def print_comparison(out: Console, comparison: Comparison) -> None:
    """Where the two runs come from and how they differ, every change, then the regressions."""
    out.print(f"\n[bold]{comparison.op}[/] against the baseline")
    out.print(f"before: {escape(sources_text(comparison.before))}", soft_wrap=True)
    out.print(f"now:    {escape(sources_text(comparison.now))}", soft_wrap=True)
    for difference in comparison.differences:
        out.print(f"[bold yellow]differs[/] {escape(difference)}", soft_wrap=True)
    out.print(_table(comparison))
    for verb, names in (("not run", comparison.only_before), ("new", comparison.only_now)):
        if names:
            out.print(f"{verb}: {escape(', '.join(names))}", soft_wrap=True)
    out.print(summary(comparison), soft_wrap=True)
    for change in comparison.regressions:
        out.print(f"  [bold red]{escape(change_text(change))}[/]", soft_wrap=True)
    out.print(LEGEND.format(least=1 - comparison.threshold), style="dim")


def _table(comparison: Comparison) -> Table:
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(
        (
            "workload",
            "provider",
            "objective",
            "before us",
            "now us",
            "ratio",
            "95%",
            "beside",
            "verdict",
        )
    ):
        rows.add_column(name, justify="right" if 3 <= i <= 7 else "left", no_wrap=True)
    for change in comparison.changes:
        verdict = change.verdict + (f" ({change.reason[:40]})" if change.reason else "")
        style = STYLES.get(change.verdict, "") if change.regression else "dim"
        rows.add_row(
            *map(escape, (change.workload, change.provider, change.objective, *numbers(change))),
            escape(verdict),
            style=style if change.regression or change.role not in ("selected", "own") else "",
        )
    return rows


def numbers(change: Change) -> tuple[str, str, str, str, str]:
    """The cells of the times, the ratio, its interval, and the ratio beside the control's."""
    before, now = ("" if t is None else f"{t:,.2f}" for t in (change.before_us, change.now_us))
    if change.ratio is None:
        return before, now, "", "", ""
    beside = "" if change.beside is None else f"{change.beside:.3f}"
    return before, now, f"{change.ratio:.3f}", f"{change.low:.3f}-{change.high:.3f}", beside


def summary(comparison: Comparison) -> str:
    """One sentence: how many regressions, and what the others did."""
    count = len(comparison.regressions)
    if not comparison.judged:
        text = "Nothing of ours could be judged"
    elif not count:
        text = "No regression"
    else:
        text = f"{count} regression{'s' if count > 1 else ''}"
    if comparison.drift is not None:
        text += f"; what is not ours runs at {comparison.drift:.3f}x its speed of then"
    return text + "."


def change_text(change: Change) -> str:
    """A change in words."""
    where = f"{change.workload}, {change.provider}, {change.objective}"
    if change.ratio is None:
        return f"{where}: {change.verdict}, {change.reason}"
    times = f"{change.before_us:,.2f} us before, {change.now_us:,.2f} now"
    note = f"; {change.note}" if change.note else ""
    return f"{where}: {change.verdict}, {times}: {change.ratio:.3f}x{note}"
