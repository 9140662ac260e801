"""Show stored reports or tuning records, compare them, or make an HTML page. Measures nothing.

FILES are what `gristmill bench --out` or `gristmill tune --out` wrote, all of
one kind.

Exit code 3 where something of ours is slower than in the baseline or no
longer runs; else 1 where a provider failed or nothing could be judged.

    gristmill report benchmarks/results/nvidia-h200/rms_norm.json --html rms_norm.html
    gristmill report now.json --compare before.json --threshold 0.05
    gristmill report tuning.json --html tuning.html
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gristmill.bench.comparison import THRESHOLD, Comparison, compare_all
from gristmill.bench.comparison_text import print_comparison
from gristmill.bench.pages import bench_page, check_extra, tuning_page
from gristmill.bench.report import print_report
from gristmill.bench.results import Report, load_reports, read_json, reports_json
from gristmill.bench.tuning_record import is_record, load_records, records_json
from gristmill.bench.tuning_text import print_record
from gristmill.cli.app import FAILED, REGRESSED
from gristmill.cli.options import Html, Json
from gristmill.cli.output import check_out, console, error_console, print_json
from gristmill.errors import InvalidInputError

app = typer.Typer(add_completion=False)

Files = Annotated[list[Path], typer.Argument(metavar="FILE", help="Stored reports.")]
Baseline = Annotated[
    Path | None,
    typer.Option(
        "--compare", metavar="BASELINE.json", help="A stored report to compare the times with."
    ),
]
Threshold = Annotated[
    float,
    typer.Option(
        "--threshold",
        min=0.0,
        max=0.99,
        help="The share of time by which slower is a regression, with --compare.",
    ),
]


@app.command()
def command(
    files: Files,
    html: Html = None,
    compare: Baseline = None,
    threshold: Threshold = THRESHOLD,
    as_json: Json = False,
) -> None:
    check_html(html)
    records = [is_record(read_json(file)) for file in files]
    if any(records):
        if not all(records) or compare is not None:
            raise InvalidInputError(
                f"'{files[records.index(True)]}' is a tuning record; it goes neither with "
                "benchmark reports nor with `--compare`. Give it alone."
            )
        _show_records(files, html, as_json)
        return
    reports = [report for file in files for report in load_reports(file)]
    baseline = load_reports(compare) if compare is not None else None
    code = show_reports(reports, compared(reports, baseline, threshold), html, as_json)
    if code:
        raise typer.Exit(code)


def _show_records(files: Sequence[Path], html: Path | None, as_json: bool) -> None:
    records = [record for file in files for record in load_records(file)]
    write_html(html, tuning_page(records) if html else "")
    if as_json:
        print_json(records_json(records))
        return
    for record in records:
        print_record(console(), record)


def compared(
    reports: Sequence[Report], baseline: Sequence[Report] | None, threshold: float
) -> tuple[Comparison, ...]:
    """The comparison with each baseline; empty where there is none."""
    return () if baseline is None else compare_all(reports, baseline, threshold)


def show_reports(
    reports: Sequence[Report],
    comparisons: Sequence[Comparison],
    html: Path | None,
    as_json: bool,
) -> int:
    """Print reports and their comparison, as text or JSON, and write the page; the exit code."""
    write_html(html, bench_page(reports, comparisons) if html else "")
    if as_json:
        found = {"comparisons": [one.to_json() for one in comparisons]} if comparisons else {}
        print_json({**reports_json(reports), **found})
    else:
        for report in reports:
            print_report(console(), report, legend=report is reports[-1])
        for one in comparisons:
            print_comparison(console(), one)
    if any(one.regressions for one in comparisons):
        return REGRESSED
    failed = any(report.failed for report in reports)
    return FAILED if failed or not all(one.judged for one in comparisons) else 0


def check_html(path: Path | None) -> None:
    """Before anything is measured: whether the page can be made and written.

    Raises:
        InvalidInputError, MissingExtraError: it cannot.
    """
    check_out("--html", path)
    if path is not None:
        check_extra()


def write_html(path: Path | None, page: str) -> None:
    """Write a page, and say where it is on stderr."""
    if path is not None:
        path.write_text(page, encoding="utf-8")
        error_console().print(f"wrote {path}", soft_wrap=True)
