"""The figures of a tuning run: the best so far over evaluations and seconds, and time against each
knob."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gristmill.bench.figures import (
    GRID,
    INK,
    MUTED,
    PAPER,
    Canvas,
    Figure,
    colours,
    drawing,
    svg,
    ticks,
)
from gristmill.bench.tuning_record import Contender, TuningRecord
from gristmill.core.plan import Candidate, Objective
from gristmill.tuning.budget import Evaluation

WIDTH = 9.6  # inches
PANELS = 4  # beside each other
FAILED_AT = 1.04  # of the axis: what has no time stands above it
TIMED = ("ok", "slow")
TIP_CHARS = 300


def figures(record: TuningRecord, objective: Objective, name: str) -> list[Figure]:
    """Every figure that this run has the numbers for; `name` keeps them apart from other runs'."""
    made = [anytime(record, objective, name), *knobs(record, objective, name)]
    return [figure for figure in made if figure is not None]


def anytime(record: TuningRecord, objective: Objective, name: str) -> Figure | None:
    """The best time so far over evaluations and over seconds, with every evaluation."""
    search = [e for e in record.evaluations if e.stage == "search"]
    timed = [e for e in search if e.outcome.status in TIMED]
    if not timed:
        return None
    looks = colours(list(dict.fromkeys(e.candidate.implementation for e in timed)))
    fell = {c.candidate for c in record.contenders(objective) if c.fate == "failed"}
    counts, seconds = [float(i + 1) for i in range(len(search))], [e.elapsed_s for e in search]
    with drawing(WIDTH, 3.6) as canvas:
        axes = canvas.figure.subplots(1, 2, sharey=True)
        for axis, label, xs in zip(
            axes, ("evaluations", "seconds"), (counts, seconds), strict=True
        ):
            for x, evaluation in zip(xs, search, strict=True):
                _mark(canvas, axis, x, evaluation, objective, looks, evaluation.candidate in fell)
            _best_line(axis, xs, search, objective, fell)
            axis.set_xlabel(label)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.set_xlim(0, 1.03 * xs[-1])
            axis.grid()
        race = [e.elapsed_s for e in record.evaluations if e.stage == "race"]
        if race:
            axes[1].axvspan(seconds[-1], race[-1], color=GRID, linewidth=0, zorder=0)
            axes[1].set_xlim(0, 1.03 * race[-1])
        _times_axis(axes[0], [e.outcome.time_us(objective) for e in timed])
        axes[0].set_ylabel(f"{objective} time, us")
        _legend(canvas, looks, bool(race))
        drawn = svg(canvas, f"{name}-anytime", f"Best time so far of {record.problem}")
    caption = (
        "Line: the best candidate so far, of those that stayed right. Hollow: given up early, of "
        "few repeats. Crosses: failed, above the axis, or in the race at the time that they had. "
        "The choice is made in that race, by paired samples."
    )
    return Figure(f"{name}-anytime", "Best so far", caption, drawn)


def _mark(
    canvas: Canvas,
    axis: Any,
    x: float,
    evaluation: Evaluation,
    objective: Objective,
    looks: Mapping[str, tuple[str, str]],
    fell: bool,
) -> None:
    """One evaluation at `x`; a cross where it failed, or fell later."""
    outcome, candidate = evaluation.outcome, evaluation.candidate
    if outcome.status not in TIMED:
        mark = _cross(axis, x, FAILED_AT, axis.get_xaxis_transform())
        canvas.tip(mark, f"{candidate}: {outcome.status}, {outcome.reason}"[:TIP_CHARS])
        return
    y = outcome.time_us(objective)
    if fell:
        canvas.tip(_cross(axis, x, y, axis.transData), f"{candidate}: {y:,.2f} us, fell later")
        return
    colour, marker = looks[candidate.implementation]
    (mark,) = axis.plot(
        [x], [y], marker, color=colour, markersize=5.5, zorder=3,
        markerfacecolor=colour if outcome.ok else "none",
        markeredgecolor=PAPER if outcome.ok else colour, markeredgewidth=0.6,
    )  # fmt: skip
    early = "" if outcome.ok else ", given up early"
    canvas.tip(mark, f"{candidate}: {y:,.2f} us{early}, after {evaluation.elapsed_s:.1f} s")


def _cross(axis: Any, x: float, y: float, transform: Any) -> Any:
    (mark,) = axis.plot(
        [x], [y], "x", color=MUTED, markersize=5, clip_on=False, transform=transform
    )
    return mark


def _best_line(
    axis: Any,
    xs: Sequence[float],
    search: Sequence[Evaluation],
    objective: Objective,
    fell: Collection[Candidate],
) -> None:
    """The best right time so far, as steps from its first evaluation to the last one."""
    places: list[float] = []
    best: list[float] = []
    for x, evaluation in zip(xs, search, strict=True):
        y = evaluation.outcome.time_us(objective)
        right = evaluation.outcome.ok and evaluation.candidate not in fell
        if right and (not best or y < best[-1]):
            places.append(x)
            best.append(y)
    if best:
        axis.step([*places, xs[-1]], [*best, best[-1]], where="post", color=INK)


def _legend(canvas: Canvas, looks: Mapping[str, tuple[str, str]], race: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Line2D([], [], color=INK, label="best so far")]
    handles += [
        Line2D([], [], color=colour, marker=marker, linestyle="", markersize=5.5, label=name)
        for name, (colour, marker) in looks.items()
    ]
    handles.append(Line2D([], [], color=MUTED, marker="x", linestyle="", label="failed"))
    if race:
        handles.append(Patch(color=GRID, label="race"))
    canvas.figure.legend(handles=handles, loc="outside upper left", ncols=7, borderaxespad=0.2)


def _times_axis(axis: Any, times: Sequence[float]) -> None:
    """Logarithmic where a slow candidate would press the others together."""
    if max(times) > 4 * min(times):
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    ticks(axis.yaxis, lambda v: f"{v:,.3g}" if v < 1000 else f"{v:,.0f}")


def knobs(record: TuningRecord, objective: Objective, name: str) -> list[Figure]:
    """For each implementation, time against every knob that was varied."""
    contenders = record.contenders(objective)
    implementations = dict.fromkeys(c.candidate.implementation for c in contenders)
    made = []
    for implementation in implementations:
        some = [c for c in contenders if c.candidate.implementation == implementation]
        figure = _knobs(implementation, some, objective, f"{name}-{implementation}")
        if figure is not None:
            made.append(figure)
    return made


def _knobs(
    implementation: str,
    contenders: Sequence[Contender],
    objective: Objective,
    name: str,
) -> Figure | None:
    varied = {
        knob: values
        for knob in dict.fromkeys(k for c in contenders for k in c.candidate.config.knobs)
        if len(values := _values(contenders, knob)) > 1
    }
    times = [c.outcome.time_us(objective) for c in contenders if c.outcome.status in TIMED]
    if not varied or not times:
        return None
    rows = -(-len(varied) // PANELS)
    with drawing(WIDTH, 2.1 * rows + 0.2) as canvas:
        columns = min(PANELS, max(2, len(varied)))
        axes = canvas.figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axis in axes.flat[len(varied) :]:
            axis.set_visible(False)
        for axis, (knob, values) in zip(axes.flat, varied.items(), strict=False):
            _panel(canvas, axis, contenders, knob, values, objective)
        _times_axis(axes[0, 0], times)
        for axis in axes[:, 0]:
            axis.set_ylabel("us")
        drawn = svg(canvas, name, f"Time against the knobs of {implementation}")
    caption = (
        f"{objective.capitalize()} time of every {implementation} config by the value of each "
        "knob; bar: the best of a value; ringed: the choice; crosses above the axis: failed."
    )
    return Figure(name, f"Knobs of {implementation}", caption, drawn)


def _values(contenders: Sequence[Contender], knob: str) -> list[Any]:
    found = {c.candidate.config.knobs.get(knob) for c in contenders}
    return sorted(found, key=lambda v: (isinstance(v, str), v is None, v if v is not None else 0))


def _panel(
    canvas: Canvas,
    axis: Any,
    contenders: Sequence[Contender],
    knob: str,
    values: Sequence[Any],
    objective: Objective,
) -> None:
    colour, _ = colours([knob])[knob]
    axis.set_title(knob, pad=11)
    axis.set_xticks(range(len(values)), [_value_text(value) for value in values])
    axis.set_xlim(-0.6, len(values) - 0.4)
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="y")
    for x, value in enumerate(values):
        some = [c for c in contenders if c.candidate.config.knobs.get(knob) == value]
        best = min((c.outcome.time_us(objective) for c in some if c.outcome.ok), default=None)
        if best is not None:
            axis.plot([x - 0.3, x + 0.3], [best, best], color=INK, linewidth=1.6)
        for contender in some:
            timed = contender.outcome.status in TIMED
            chosen = contender.fate == "chosen"
            (mark,) = axis.plot(
                [x], [contender.outcome.time_us(objective) if timed else FAILED_AT],
                "o" if timed else "x", color=colour, markersize=8 if chosen else 5,
                alpha=1 if chosen else 0.6, clip_on=False,
                markeredgecolor=INK if chosen else colour, markeredgewidth=1.6 if chosen else 0.8,
                transform=axis.transData if timed else axis.get_xaxis_transform(),
            )  # fmt: skip
            note = contender.note or contender.fate
            canvas.tip(mark, f"{contender.candidate}: {note}"[:TIP_CHARS])


def _value_text(value: Any) -> str:
    return {"": "none", None: "-", True: "yes", False: "no"}.get(value, str(value))
