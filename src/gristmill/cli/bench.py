"""Compare providers of ops on named problems: correctness first, then interleaved launches.

Providers: gristmill (the selected plan), copy (a `copy_` of as many bytes),
torch (the plain call, with torch's settings as they are here), every
implementation by name, as `gristmill list OP` shows them, and what plug-ins
or --providers-from register.

Tune first: an untuned problem is run with its prior, and the table says so.

Exit code 1 where a provider failed or gave wrong results, or with --strict
the plan is slower than another provider. With --compare 3 where something of
ours is slower than in the baseline or no longer runs; 1 also where nothing
could be judged.

    gristmill bench rms_norm --workload 'llama3-8b-*'
    gristmill bench rms_norm matmul --out now.json --html now.html
    gristmill bench --suite llama3-8b --compare before.json
    gristmill bench matmul -w square-4096 -p gristmill -p aten --json
"""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from gristmill.bench.comparison import THRESHOLD
from gristmill.bench.results import load_reports, save_reports
from gristmill.bench.suite import CPU_LIMIT_FLOPS, bench_all, fits_cpu
from gristmill.bench.suites import SUITES, suite_named
from gristmill.cli.app import FAILED
from gristmill.cli.options import L2, Device, DType, Html, Json, Scalars, Seed, Shapes, Workloads
from gristmill.cli.output import check_out, error_console
from gristmill.cli.problems import Selection, chosen_device, requested_of
from gristmill.cli.report import Baseline, Threshold, check_html, compared, show_reports
from gristmill.core.registry import load, op_names
from gristmill.errors import GristmillError, InvalidInputError

app = typer.Typer(add_completion=False)

Ops = Annotated[
    list[str] | None,
    typer.Argument(metavar="OP", help="Ops by name; `gristmill list` shows them."),
]
SuiteName = Annotated[
    str | None,
    typer.Option(
        "--suite", help=f"Workloads of all ops: {', '.join(f'{s.name} ({s.doc})' for s in SUITES)}."
    ),
]
Providers = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        "-p",
        help="A column; may be repeated.",
        show_default="gristmill, copy, torch, and what is no Triton kernel",
    ),
]
ProvidersFrom = Annotated[
    list[Path] | None,
    typer.Option(
        "--providers-from",
        metavar="FILE.py",
        help="A script that registers providers with `gristmill.bench.provider`; may be repeated.",
    ),
]
Pairs = Annotated[
    int, typer.Option("--pairs", min=2, help="Interleaved launches of each provider.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Write the JSON report to this file too.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Fail where the plan is slower than another provider.")
]


@app.command()
def command(
    ops: Ops = None,
    suite: SuiteName = None,
    workload: Workloads = None,
    shape: Shapes = None,
    scalar: Scalars = None,
    dtype: DType = "bfloat16",
    provider: Providers = None,
    providers_from: ProvidersFrom = None,
    pairs: Pairs = 60,
    device: Device = None,
    l2: L2 = None,  # noqa: ARG001 - its callback has set it
    seed: Seed = 0,
    out: Out = None,
    html: Html = None,
    compare: Baseline = None,
    threshold: Threshold = THRESHOLD,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    where = chosen_device(device)
    check_out("--out", out)
    check_html(html)
    baseline = load_reports(compare) if compare is not None else None
    for file in providers_from or ():
        _run(file)
    problems = _problems(ops or (), suite, (workload, shape, scalar), dtype, where)
    with error_console().status("measuring the ceilings") as status:
        reports = bench_all(
            problems,
            provider,
            device=where,
            pairs=pairs,
            seed=seed,
            tell=lambda name: status.update(f"measuring {name}"),
        )
    if out is not None:
        save_reports(out, reports)
    comparisons = compared(reports, baseline, threshold)
    code = show_reports(reports, comparisons, html, as_json)
    if strict and any(report.slower for report in reports):
        code = code or FAILED
    if code:
        raise typer.Exit(code)


def _problems(
    ops: Sequence[str],
    suite: str | None,
    named: tuple[list[str] | None, list[str] | None, list[str] | None],
    dtype: str,
    device: torch.device,
) -> Selection:
    """The workloads of each op; on a CPU, those that take seconds, but for those that are named."""
    if suite is None and not ops:
        raise InvalidInputError(
            f"no op is named; there are {', '.join(op_names())}. Name some, or a suite: "
            f"`--suite {SUITES[0].name}`."
        )
    if suite is not None and any(named):
        raise InvalidInputError(
            "`--suite` is given together with `--workload`, `--shape` or `--scalar`; problems are "
            "named one way. Leave one out."
        )
    if suite is not None:
        problems = suite_named(suite).select(ops)
    else:
        problems = requested_of([load(op) for op in dict.fromkeys(ops)], *named, dtype)
    if device.type != "cpu" or any(named):
        return problems
    fitting = [(op, [w for w in workloads if fits_cpu(op, w)]) for op, workloads in problems]
    left_out = sum(len(workloads) for _, workloads in problems)
    left_out -= sum(len(workloads) for _, workloads in fitting)
    if left_out:
        error_console().print(
            f"{left_out} workloads of more than {CPU_LIMIT_FLOPS / 1e9:g} GFLOP or 64 MB are "
            "left out on a CPU; name one with --workload to run it"
        )
    return fitting


def _run(file: Path) -> None:
    """Run a script that registers providers."""
    if not file.is_file():
        raise InvalidInputError(
            f"`--providers-from` is '{file}'; there is no such file. Name a Python script that "
            "registers providers with `gristmill.bench.provider`."
        )
    try:
        runpy.run_path(str(file), run_name=file.stem)
    except GristmillError:
        raise
    except Exception as error:
        raise InvalidInputError(
            f"`--providers-from` is '{file}'; running it raised {type(error).__name__}: {error}. "
            "Mend the script."
        ) from error
