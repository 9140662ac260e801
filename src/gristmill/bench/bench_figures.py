"""The figures of a benchmark: speed-ups, the roofline, and the rate over the size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gristmill.bench.figures import (
    GRID,
    INK,
    MUTED,
    PAPER,
    SERIES,
    Canvas,
    Figure,
    binary,
    colours,
    drawing,
    si,
    svg,
    ticks,
)
from gristmill.bench.providers import COPY, GRISTMILL
from gristmill.bench.results import Report, Result, Row, Versus

WIDTH = 9.6  # inches
PANELS = 4  # beside each other
ROW = 0.27  # inches a workload
SPEEDUPS = [0.1, 0.2, 0.5, 0.8, 1.0, 1.25, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]
TIMED = ("ok", "outside")
LEAST_SPAN = 16  # of sizes, for a figure over them


def figures(report: Report, name: str) -> list[Figure]:
    """Every figure that this report has the numbers for; `name` keeps them apart from others'."""
    made = [speedups(report, name), roofline(report, name), rates(report, name)]
    return [figure for figure in made if figure is not None]


def speedups(report: Report, name: str) -> Figure | None:
    """Bars for each provider: its time over the plan's, eager above graph, with the interval."""
    results = [result for result in report.results if result.versus]
    others = list(dict.fromkeys(v.provider for result in results for v in result.versus))
    if not others:
        return None
    objectives = list(dict.fromkeys(v.objective for result in results for v in result.versus))
    rows = -(-len(others) // PANELS)
    height = rows * (0.9 + ROW * len(results)) + 0.3
    with drawing(WIDTH, height) as canvas:
        columns = min(PANELS, len(others))
        axes = canvas.figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        low, high = _span(results)
        for axis in axes.flat[len(others) :]:
            axis.set_visible(False)
        for axis, other in zip(axes.flat, others, strict=False):
            axis.set_title(f"over {other}")
            axis.set_xscale("log")
            axis.set_xlim(low, high)
            ticks(axis.xaxis, lambda v: f"{v:g}x", _speedup_ticks(low, high, columns))
            axis.grid(axis="x")
            axis.axvline(1, color=INK, linewidth=1)
            axis.set_yticks(range(len(results)), [result.workload for result in results])
            axis.set_ylim(len(results) - 0.4, -0.6)
            axis.tick_params(axis="y", length=0)
            for y, result in enumerate(results):
                found = [v for v in result.versus if v.provider == other]
                for versus in found:
                    _bar(canvas, axis, y, result, versus, len(objectives))
        _speedup_legend(canvas, objectives)
        drawn = svg(canvas, f"{name}-speedups", f"Speed-ups of {report.op}")
    caption = (
        "Time of each provider over the plan's, with the 95% interval. Right of 1x the plan is "
        "faster."
    )
    return Figure(f"{name}-speedups", "Speed-up over each provider", caption, drawn)


def _bar(
    canvas: Canvas, axis: Any, y: float, result: Result, versus: Versus, objectives: int
) -> None:
    eager = versus.objective == "eager"
    thick = 0.72 / objectives
    at = y + (0 if objectives == 1 else (-thick / 2 if eager else thick / 2))
    colour = {True: SERIES[0], False: SERIES[1], None: MUTED}[versus.never_slower]
    (bar,) = axis.barh(
        at, versus.speedup - 1, thick * 0.86, left=1, color=colour, alpha=1 if eager else 0.5
    )
    axis.plot([versus.low, versus.high], [at, at], color=INK, linewidth=0.9, solid_capstyle="butt")
    verdict = {True: "never slower", False: "slower", None: "too few pairs"}[versus.never_slower]
    text = f"{result.workload}, {versus.objective}: {versus.speedup:.2f}x {versus.provider}"
    canvas.tip(bar, f"{text} (95% {versus.low:.2f} to {versus.high:.2f}), {verdict}")


def _span(results: Sequence[Result]) -> tuple[float, float]:
    values = [x for result in results for v in result.versus for x in (v.low, v.high, v.speedup)]
    return min(0.8, min(values) / 1.1), max(1.25, max(values) * 1.1)


def _speedup_ticks(low: float, high: float, columns: int) -> list[float]:
    """As many as have room beside each other, 1x always among them."""
    inside = [value for value in SPEEDUPS if low <= value <= high]
    coarse = [value for value in inside if value in (0.1, 0.5, 1, 2, 10, 100)]
    if len(inside) * columns <= 16:
        return inside
    return coarse if len(coarse) > 2 else [inside[0], 1.0, inside[-1]]


def _speedup_legend(canvas: Canvas, objectives: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=SERIES[0], label="never slower"), Patch(color=SERIES[1], label="slower")]
    if len(objectives) > 1:
        handles += [
            Patch(color=MUTED, label="upper bar: eager"),
            Patch(color=MUTED, alpha=0.5, label="lower bar: graph"),
        ]
    canvas.figure.legend(handles=handles, loc="outside upper left", ncols=4, borderaxespad=0.2)


def _points(report: Report) -> dict[str, list[tuple[Result, Row]]]:
    """The timed rows by provider, the copy aside."""
    found: dict[str, list[tuple[Result, Row]]] = {}
    for result in report.results:
        for row in result.rows:
            if row.status in TIMED and row.device_us and row.role != "ceiling":
                found.setdefault(row.provider, []).append((result, row))
    return found


def roofline(report: Report, name: str) -> Figure | None:
    """Achieved operations a second over operations a byte, under the ceilings of the run."""
    points = _points(report)
    copy_rate = float(report.ceilings["copy_bytes_per_s"])
    flat = [(r, row) for rows in points.values() for r, row in rows if r.flops and row.flops_per_s]
    if not flat:
        return None
    intensities = [result.flops / result.size_bytes for result, _ in flat]
    rates = report.ceilings["flops_per_s"]
    ridges = [rate / copy_rate for rate in rates.values()]
    low = min(intensities) / 3
    high = max(*intensities, *ridges, low * 9) * 3
    with drawing(WIDTH, 4.4) as canvas:
        axis = canvas.figure.subplots()
        axis.set_xscale("log")
        axis.set_yscale("log")
        top = max(rates.values(), default=high * copy_rate)
        ridge = top / copy_rate
        axis.plot([low, ridge], [low * copy_rate, top], color=INK, linewidth=1.2)
        for dtype, rate in rates.items():
            axis.plot([rate / copy_rate, high], [rate, rate], color=INK, linewidth=1.2)
            text = f"{dtype} matmul, {si(rate, 'FLOP/s')}"
            axis.annotate(text, (high, rate), (-2, 4), textcoords="offset points", ha="right")
        axis.set_xlim(low, high)
        floor = min(row.flops_per_s or 0.0 for _, row in flat)
        axis.set_ylim(min(floor, low * copy_rate) / 2, top * 2.5)
        _copy_label(axis, low, copy_rate, min(ridge, high))
        _scatter(
            canvas,
            axis,
            points,
            lambda result, row: (result.flops / result.size_bytes, row.flops_per_s),
        )
        ticks(axis.xaxis, lambda v: f"{v:g}")
        ticks(axis.yaxis, si)
        axis.set_xlabel("arithmetic intensity, FLOP/byte")
        axis.set_ylabel("achieved, FLOP/s")
        axis.grid()
        _provider_legend(canvas, axis)
        drawn = svg(canvas, f"{name}-roofline", f"Roofline of {report.op}")
    caption = (
        "Operations over device time, against operations a byte of the least traffic. Lines: a "
        "large copy_ and a large matmul of the same run. A problem that fits into L2 can pass "
        "the copy's line."
    )
    return Figure(f"{name}-roofline", "Roofline", caption, drawn)


def _copy_label(axis: Any, low: float, copy_rate: float, high: float) -> None:
    """The copy's rate, along its line."""
    x = (low * high**0.5 * low**0.5) ** 0.5 if high > low * 20 else (low * high) ** 0.5
    axis.annotate(
        f"copy, {si(copy_rate, 'B/s')}",
        (x, x * copy_rate),
        (-4, 5),
        textcoords="offset points",
        ha="right",
        rotation_mode="anchor",
    )


def _scatter(canvas: Canvas, axis: Any, points: dict[str, Any], place: Any) -> None:
    """The points of each provider, in a colour and a shape of its own; ours on top."""
    looks = colours(list(points), GRISTMILL)
    for name in sorted(points, key=lambda name: name == GRISTMILL):
        colour, marker = looks[name]
        for index, (result, row) in enumerate(points[name]):
            x, y = place(result, row)
            (mark,) = axis.plot(
                [x], [y], marker, color=colour, markersize=6.5, markeredgecolor=PAPER,
                markeredgewidth=0.6, label=name if index == 0 else None,
            )  # fmt: skip
            share = f", {row.roofline_share:.0%} of the roofline" if row.roofline_share else ""
            canvas.tip(mark, f"{name}, {result.workload}: {row.device_us:,.2f} us{share}")


def _provider_legend(canvas: Canvas, axis: Any) -> None:
    """The legend above the drawing, ours first."""
    entries = sorted(
        zip(*axis.get_legend_handles_labels(), strict=True), key=lambda e: e[1] != GRISTMILL
    )
    handles, labels = zip(*entries, strict=True)
    canvas.figure.legend(handles, labels, loc="outside upper left", ncols=7, borderaxespad=0.2)


def rates(report: Report, name: str) -> Figure | None:
    """The least bytes over device time, against the bytes, for what memory limits; with the copy of
    as many bytes."""
    results = [result for result in report.results if result.limit == "memory"]
    points = {
        provider: [(result, row) for result, row in rows if result in results]
        for provider, rows in _points(report).items()
    }
    points = {provider: rows for provider, rows in points.items() if rows}
    sizes = [result.size_bytes for result in results]
    if not points or max(sizes) < LEAST_SPAN * min(sizes):
        return None
    copies = sorted(
        (result.size_bytes, row.bytes_per_s)
        for result in results
        for row in result.rows
        if row.provider == COPY and row.bytes_per_s
    )
    with drawing(WIDTH, 4.0) as canvas:
        axis = canvas.figure.subplots()
        axis.set_xscale("log", base=2)
        axis.axhline(float(report.ceilings["copy_bytes_per_s"]), color=MUTED, linestyle=(0, (4, 3)))
        axis.annotate(
            f"large copy, {si(float(report.ceilings['copy_bytes_per_s']), 'B/s')}",
            (0.01, float(report.ceilings["copy_bytes_per_s"])),
            (0, 4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
        )
        if copies:
            axis.plot(
                *zip(*copies, strict=True), color=INK, linewidth=1, label="copy of as many bytes"
            )
        _scatter(canvas, axis, points, lambda result, row: (result.size_bytes, row.bytes_per_s))
        axis.set_ylim(0, 1.12 * axis.get_ylim()[1])
        low, high = axis.get_xlim()
        ticks(axis.xaxis, binary, [4.0**i for i in range(4, 20) if low <= 4.0**i <= high])
        ticks(axis.yaxis, si)
        axis.set_xlabel("least bytes moved")
        axis.set_ylabel("achieved, bytes/s")
        axis.grid(color=GRID)
        _provider_legend(canvas, axis)
        drawn = svg(canvas, f"{name}-rates", f"Memory rate of {report.op}")
    caption = "The least bytes over device time: small problems are bound by the launch."
    return Figure(f"{name}-rates", "Memory rate over size", caption, drawn)
