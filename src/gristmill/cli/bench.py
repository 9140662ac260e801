"""Compare providers of an op on named problems: correctness first, then interleaved launches.

Providers: gristmill (the selected plan), copy (a `copy_` of as many bytes),
torch (the plain call, with torch's settings as they are here), and every
implementation by name, as `gristmill list OP` shows them.

Tune first: an untuned problem is run with its prior, and the table says so.

Exit code 1 where a provider failed or gave wrong results, or with --strict
the plan is slower than another provider.

    gristmill bench rms_norm --workload 'llama3-8b-*'
    gristmill bench matmul -w square-4096 -p gristmill -p aten --json
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from gristmill.bench.report import print_report
from gristmill.bench.suite import CPU_LIMIT_FLOPS, bench, fits_cpu
from gristmill.cli.options import Device, DType, Json, OpName, Scalars, Seed, Shapes, Workloads
from gristmill.cli.output import console, error_console, print_json
from gristmill.cli.problems import chosen_device, requested
from gristmill.core.registry import load
from gristmill.errors import InvalidInputError

app = typer.Typer(add_completion=False)

Providers = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        "-p",
        help="A column; may be repeated.",
        show_default="gristmill, copy, torch, and what is no Triton kernel",
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
    op: OpName,
    workload: Workloads = None,
    shape: Shapes = None,
    scalar: Scalars = None,
    dtype: DType = "bfloat16",
    provider: Providers = None,
    pairs: Pairs = 60,
    device: Device = None,
    seed: Seed = 0,
    out: Out = None,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    spec, where = load(op), chosen_device(device)
    if out is not None:
        _check_out(out)
    problems = requested(spec, workload, shape, scalar, dtype)
    if not problems:
        problems = [w for w in spec.workloads if where.type != "cpu" or fits_cpu(spec, w)]
        left_out = len(spec.workloads) - len(problems)
        if left_out:
            error_console().print(
                f"{left_out} workloads of more than {CPU_LIMIT_FLOPS / 1e9:g} GFLOP or 64 MB are "
                f"left out on a CPU; "
                "name one with --workload to run it"
            )
    with error_console().status("measuring the ceilings") as status:
        report = bench(
            spec,
            problems,
            provider,
            device=where,
            pairs=pairs,
            seed=seed,
            tell=lambda name: status.update(f"measuring {name}"),
        )
    if out is not None:
        report.save(out)
    if as_json:
        print_json(report.to_json())
    else:
        print_report(console(), report)
    if report.failed or (strict and report.slower):
        raise typer.Exit(1)


def _check_out(path: Path) -> None:
    """Before anything is measured: whether the report can be written there."""
    folder = path.parent
    if not folder.is_dir():
        fault = f"{folder} is no folder"
    elif path.is_dir():
        fault = "it is a folder"
    elif not os.access(folder, os.W_OK):
        fault = f"{folder} cannot be written to"
    else:
        return
    raise InvalidInputError(
        f"`--out` is '{path}'; the report cannot be written there: {fault}. Name a file in a "
        "folder that exists and can be written to."
    )
