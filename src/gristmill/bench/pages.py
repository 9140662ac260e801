"""The HTML reports: of benchmarks, with their comparison, and of tuning runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gristmill.bench import bench_figures, tuning_figures
from gristmill.bench.comparison import Comparison, sources_text
from gristmill.bench.comparison_text import LEGEND as COMPARISON_LEGEND
from gristmill.bench.comparison_text import summary
from gristmill.bench.page import (
    Block,
    Cell,
    Column,
    Line,
    Section,
    Table,
    Tile,
    check_extra,
    facts_of,
    number,
    render,
)
from gristmill.bench.report import (
    LEGEND,
    ceilings_text,
    condition_warnings,
    rate_text,
    verdict_text,
)
from gristmill.bench.results import Report, Result, Row
from gristmill.bench.tables import never_slower_count, plan_row, speedup_mean
from gristmill.bench.tuning_record import Contender, TuningRecord
from gristmill.bench.tuning_text import fate_text
from gristmill.core.plan import Candidate, Objective, Outcome

BADGES = {
    "never slower": "good",
    "faster": "good",
    "mended": "good",
    "chosen": "good",
    "slower": "bad",
    "broke": "bad",
    "wrong": "bad",
    "failed": "bad",
}


def bench_page(reports: Sequence[Report], comparisons: Sequence[Comparison] = ()) -> str:
    """Benchmark reports as one self-contained HTML page: speed-ups, roofline, tables, provenance.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    check_extra()
    ops = [report.op for report in reports]
    sections = []
    for i, report in enumerate(reports):
        found = (c for c in comparisons if (c.op, c.now) == (report.op, report.stamp))
        again = ops[:i].count(report.op)
        name = f"{report.op}-{again + 1}" if again else report.op
        title = f"{report.op}, {report.stamp.device}" if ops.count(report.op) > 1 else report.op
        sections.append(_bench_section(report, next(found, None), name, title))
    devices = ", ".join(dict.fromkeys(report.stamp.device for report in reports))
    names = ", ".join(dict.fromkeys(ops))
    lead = f"{devices}, {', '.join(dict.fromkeys(r.stamp.date[:10] for r in reports))}"
    return render(f"gristmill benchmark: {names}", lead, sections)


def _bench_section(report: Report, comparison: Comparison | None, name: str, title: str) -> Section:
    blocks = [Block(figure=one) for one in bench_figures.figures(report, name)]
    results = Block(title="Results", table=_results(report), text=" ".join(LEGEND.split()))
    rows = Block(title="Every provider", table=_rows(report), folded=True)
    blocks = [*blocks[:1], results, *blocks[1:], rows]
    if comparison is not None:
        blocks.insert(0, _comparison_block(comparison))
    never, total = never_slower_count(report), len(report.results)
    tiles = [Tile(f"{never} of {total}", "workloads never slower than any other provider")]
    mean, count = speedup_mean(report)
    if mean is not None:
        label = f"the fastest other provider's time over the plan's, geometric mean of {count}"
        tiles.append(Tile(f"{mean:.2f}x", label))
    tiles += [Tile(text.split(" ", 1)[1], text.split(" ", 1)[0]) for text in _ceilings(report)]
    warnings = [f"Not run, out of time: {', '.join(report.skipped)}."] if report.skipped else []
    warnings += [f"{r.workload}: {r.reason}" for r in report.results if r.reason]
    warnings += condition_warnings(report)
    if comparison is not None:
        warnings += [f"Differs from the baseline in {one}." for one in comparison.differences]
    return Section(
        name,
        title,
        tuple(blocks),
        (*facts_of(report.stamp), *_baseline_facts(comparison)),
        summary=f"never slower on {never} of {total}",
        tiles=tuple(tiles),
        warnings=tuple(warnings),
    )


def _ceilings(report: Report) -> list[str]:
    return ceilings_text(report).replace(" matmul ", "-matmul ").split(", ")


def _baseline_facts(comparison: Comparison | None) -> list[tuple[str, str]]:
    return [] if comparison is None else [("baseline", sources_text(comparison.before))]


def _others(report: Report) -> list[str]:
    rows = (row for result in report.results for row in result.rows if row.role == "other")
    return list(dict.fromkeys(row.provider for row in rows))


def _results(report: Report) -> Table:
    """A line a workload: device times, the plan, and the verdict."""
    others = _others(report)
    columns = (
        Column("workload"),
        *(Column(f"{name}, us", True, "device time, median") for name in others),
        Column("gristmill, us", True, "device time of the selected plan, median"),
        Column("plan"),
        Column("rate", True),
        Column("roofline", True),
        Column("speed-up", True, "the fastest other provider's time of a call over the plan's"),
        Column("error", True, "the plan's worst error, as a share of its bound"),
        Column("verdict"),
    )
    return Table(columns, tuple(_result(report, result, others) for result in report.results))


def _result(report: Report, result: Result, others: Sequence[str]) -> Line:
    rows = {row.provider: row for row in result.rows}
    plan = plan_row(result)
    cells = [Cell(result.workload), *(_time(rows.get(name)) for name in others)]
    if plan is None:
        failed = next((row.reason for row in result.rows if row.role == "selected"), "not run")
        last = Cell("failed", note=(result.reason or failed)[:200], badge="bad")
        return Line((*cells, *[Cell("")] * 6, last))
    share = None if plan.roofline_share is None else 100 * plan.roofline_share
    rate = plan.flops_per_s if report.matrix and result.limit == "compute" else plan.bytes_per_s
    verdict = verdict_text(result)
    losses = [
        f"{v.provider}, {v.objective}: {v.speedup:.2f}x"
        for v in result.versus
        if v.never_slower is False
    ]
    return Line(
        (
            *cells,
            _time(plan),
            Cell(plan.what.split()[0]),
            Cell(rate_text(plan, result, report.matrix), rate),
            number(share, 0, "%"),
            number(plan.speedup, 2, "x"),
            number(plan.error),
            Cell(verdict, note="; ".join(losses), badge=BADGES.get(verdict, "plain")),
        )
    )


def _time(row: Row | None) -> Cell:
    """Device time; with the host's where a call is bound by it."""
    if row is None or row.device_us is None:
        return Cell("" if row is None else row.status)
    host = f"host {row.host_us:,.1f}" if row.host_us and row.host_us > row.device_us else ""
    return number(row.device_us, 1, note=host)


def _rows(report: Report) -> Table:
    """A line for each provider of each workload."""
    columns = (
        Column("workload"),
        Column("provider"),
        *(Column(f"{name}, us", True) for name in ("device", "host", "graph")),
        Column("rate", True),
        Column("roofline", True),
        Column("speed-up", True),
        Column("error", True, "the worst error, as a share of its bound"),
        Column("status"),
    )
    lines = [_row(report, result, row) for result in report.results for row in result.rows]
    return Table(columns, tuple(lines))


def _row(report: Report, result: Result, row: Row) -> Line:
    share = None if row.roofline_share is None else 100 * row.roofline_share
    kind = {"selected": "ours", "ceiling": "quiet"}.get(row.role, "")
    badge = BADGES.get(row.status, "plain") if row.status != "ok" else ""
    return Line(
        (
            Cell(result.workload),
            Cell(row.provider, note=row.what if row.what != row.provider else ""),
            number(row.device_us),
            number(row.host_us),
            number(row.graph_us),
            Cell(rate_text(row, result, report.matrix), row.bytes_per_s),
            number(share, 0, "%"),
            number(row.speedup, 2, "x"),
            number(row.error, 2),
            Cell(row.status, note=row.reason, badge=badge),
        ),
        kind,
    )


def _comparison_block(comparison: Comparison) -> Block:
    columns = (
        Column("workload"),
        Column("provider"),
        Column("objective"),
        Column("before, us", True),
        Column("now, us", True),
        Column("ratio", True, "time before over time now: above 1 is faster now"),
        Column("95% interval", True),
        Column("beside", True, "the ratio over the middle one of the other providers"),
        Column("verdict"),
    )
    lines = []
    for change in comparison.changes:
        ours = change.role in ("selected", "own")
        interval = "" if change.ratio is None else f"{change.low:.3f} to {change.high:.3f}"
        badge = BADGES.get(change.verdict, "plain") if ours else "plain"
        note = "; ".join(filter(None, (change.reason, change.note)))
        cells = (
            Cell(change.workload),
            Cell(change.provider),
            Cell(change.objective),
            number(change.before_us),
            number(change.now_us),
            number(change.ratio, 3, "x"),
            Cell(interval),
            number(change.beside, 3, "x"),
            Cell(change.verdict, note=note, badge=badge),
        )
        lines.append(Line(cells, "" if ours else "quiet"))
    legend = COMPARISON_LEGEND.format(least=1 - comparison.threshold)
    text = f"{summary(comparison)} {' '.join(legend.split())}"
    return Block(title="Against the baseline", table=Table(columns, tuple(lines)), text=text)


def tuning_page(records: Sequence[TuningRecord], objective: Objective = "eager") -> str:
    """Tuning records as one self-contained HTML page: the best so far, every candidate with what
    became of it, time against the knobs, the choice.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    check_extra()
    sections = [_tuning_section(r, objective, f"run{i}") for i, r in enumerate(records, 1)]
    names = ", ".join(dict.fromkeys(record.op for record in records)) or "nothing"
    devices = ", ".join(dict.fromkeys(record.stamp.device for record in records))
    lead = f"{devices}; objective {objective}"
    return render(f"gristmill tuning: {names}", lead, sections)


def _tuning_section(record: TuningRecord, objective: Objective, name: str) -> Section:
    contenders = record.contenders(objective)
    drawn = [Block(figure=one) for one in tuning_figures.figures(record, objective, name)]
    candidates = Block(title="Candidates", table=_candidates(contenders))
    rejected = [
        Line((Cell(impl), number(count, 0), Cell(reason)))
        for impl, reasons in record.rejections.items()
        for reason, count in reasons.items()
    ]
    rejected += [
        Line((Cell(impl), Cell("all", float("inf")), Cell(reason)))
        for impl, reason in record.unsupported.items()
    ]
    columns = (Column("implementation"), Column("configs", True), Column("why not"))
    spaces = Block(title="Never measured", table=Table(columns, tuple(rejected)), folded=True)
    warnings = []
    if record.interrupted:
        warnings.append("The search was interrupted: its choice is of what was measured by then.")
    warnings += record.conditions.get("warnings", ())
    if objective not in record.choices:
        warnings.append("There is no plan: nothing was right on every value variant.")
    failed = sum(c.fate == "failed" for c in contenders)
    return Section(
        name,
        record.workload,
        (*drawn, candidates, *([spaces] if rejected else [])),
        (
            *((f"plan, {o}", f"{c.candidate}: {c.reason}") for o, c in record.choices.items()),
            *facts_of(record.stamp),
        ),
        subtitle=record.problem,
        summary=str(record.choices[objective].candidate) if objective in record.choices else "",
        tiles=(*_chosen(record, contenders, objective), *_counts(record, len(contenders), failed)),
        warnings=tuple(warnings),
    )


def _chosen(
    record: TuningRecord, contenders: Sequence[Contender], objective: Objective
) -> list[Tile]:
    if objective not in record.choices or not contenders or contenders[0].fate != "chosen":
        return []
    best, choice = contenders[0], record.choices[objective]
    return [
        Tile(
            choice.candidate.implementation,
            "; ".join(filter(None, ("chosen", _config_text(choice.candidate), choice.reason))),
        ),
        Tile(f"{best.outcome.time_us(objective):,.2f} us", f"{objective} time of the choice"),
    ]


def _counts(record: TuningRecord, count: int, failed: int) -> list[Tile]:
    return [
        Tile(f"{count}", f"candidates measured, {failed} of them failed"),
        Tile(f"{record.seconds:,.1f} s", "for the run"),
    ]


def _candidates(contenders: Sequence[Contender]) -> Table:
    shown: list[tuple[Column, Callable[[Outcome], Cell]]] = [
        (Column("host, us", True), lambda o: number(o.host_us)),
        (Column("graph, us", True), lambda o: number(o.graph_us)),
        (Column("registers", True), lambda o: number(o.registers, 0)),
        (Column("spills", True), lambda o: number(o.spills or None, 0)),
        (Column("shared, KiB", True), lambda o: number(_kib(o.shared_bytes), 1)),
    ]
    known = [
        (column, cell) for column, cell in shown if any(cell(c.outcome).text for c in contenders)
    ]
    columns = (
        Column("#", True, "its place in the run"),
        Column("after, s", True),
        Column("candidate"),
        Column("device, us", True),
        *(column for column, _ in known),
        Column("error", True, "the worst error, as a share of its bound"),
        Column("outcome"),
    )
    lines = []
    for c in contenders:
        fate = fate_text(c)
        order = {"chosen": 0, "tie": 1, "slower": 2, "given up": 3}.get(fate, 4)
        badge = "bad" if c.fate == "failed" else "good" if c.fate == "chosen" else "plain"
        cells = (
            number(c.order, 0),
            number(c.elapsed_s, 1),
            Cell(c.candidate.implementation, str(c.candidate), _config_text(c.candidate)),
            number(c.outcome.device_us),
            *(cell(c.outcome) for _, cell in known),
            number(c.outcome.error),
            Cell(fate, order, c.note[:300], badge),
        )
        lines.append(Line(cells, "ours" if c.fate == "chosen" else ""))
    return Table(columns, tuple(lines))


def _config_text(candidate: Candidate) -> str:
    return str(candidate.config) if candidate.config.knobs else ""


def _kib(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else size_bytes / 1024
