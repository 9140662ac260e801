"""Tune problems now and keep the plans, whether there are plans already or not.

Ctrl-C ends the search: what was measured is kept, with the best of it as the plan, and the exit
code is 130.

    gristmill tune rms_norm --workload llama3-8b-m512 --budget 30
    gristmill tune matmul --shape a=512x4096 --shape b=4096x6144:t --trials 100
    gristmill tune rms_norm -w llama3-8b-m512 --out tuning.json --html tuning.html
    gristmill tune matmul -w square-4096 --record square-4096.jsonl.gz --budget 500
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape

from gristmill import settings
from gristmill.bench.pages import tuning_page
from gristmill.bench.tuning_record import TuningRecord, save_records
from gristmill.cache.store import store
from gristmill.cli.app import FAILED, INTERRUPTED
from gristmill.cli.explain import headline, print_explanation
from gristmill.cli.options import (
    L2,
    Device,
    DType,
    Html,
    Json,
    ObjectiveName,
    OpName,
    Scalars,
    Seed,
    Shapes,
    Workloads,
)
from gristmill.cli.output import check_out, console, error_console, print_json
from gristmill.cli.problems import arguments, chosen_device, objective_named, requested
from gristmill.cli.recording import Commit, Names, Points, Record, RecordOptions, record
from gristmill.cli.report import check_html, write_html
from gristmill.core.op import Workload
from gristmill.core.registry import load
from gristmill.core.target import device_target
from gristmill.errors import InvalidInputError, TuningError
from gristmill.ops.tune import tune
from gristmill.selection.explain import Explanation, explain_problem
from gristmill.tuning.budget import TuningInterrupted, TuningResult

app = typer.Typer(add_completion=False)

SHOWN = 10  # candidates of each problem
Budget = Annotated[
    float | None,
    typer.Option(
        "--budget", metavar="SECONDS", help="Wall clock for each problem.", show_default="60"
    ),
]
Trials = Annotated[int | None, typer.Option("--trials", help="Triton candidates for each problem.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write the record of the runs as JSON.")]
Strategy = Annotated[
    str,
    typer.Option(
        "--strategy", help="exhaustive, random, evolutionary, bayesian, optuna, portfolio, or auto."
    ),
]
RooflineStop = Annotated[
    float | None,
    typer.Option(
        "--roofline-stop",
        metavar="SHARE",
        help="End a search within this share of the roofline, as 0.02.",
        show_default="off",
    ),
]


Afresh = Annotated[
    bool, typer.Option("--afresh", help="Measure what was measured before too.", show_default=False)
]


@app.command()
def command(
    op: OpName,
    workload: Workloads = None,
    shape: Shapes = None,
    scalar: Scalars = None,
    dtype: DType = "bfloat16",
    device: Device = None,
    l2: L2 = None,  # noqa: ARG001 - its callback has set it
    budget: Budget = None,
    trials: Trials = None,
    strategy: Strategy = "auto",
    roofline_stop: RooflineStop = None,
    afresh: Afresh = False,
    seed: Seed = 0,
    objective: ObjectiveName = "eager",
    out: Out = None,
    html: Html = None,
    record_to: Record = None,
    points: Points = None,
    implementation: Names = None,
    commit: Commit = None,
    as_json: Json = False,
) -> None:
    check_out("--out", out)
    check_html(html)
    spec, where, shown = load(op), chosen_device(device), objective_named(objective)
    problems = _named(op, requested(spec, workload, shape, scalar, dtype))
    seconds = settings.current().budget_s if budget is None else budget
    options = RecordOptions(record_to, points, implementation or (), commit)
    if options.check(problems, trials=trials, out=out, html=html, strategy=strategy != "auto"):
        record(options, problems[0], where, seconds, seed, as_json)
        return
    explanations, records, reports, interrupted = [], [], [], False
    for one in problems:
        try:
            result = _tune(one, where, seconds, trials, strategy, seed, roofline_stop, afresh)
        except KeyboardInterrupt as stop:
            interrupted = True
            result = stop.result if isinstance(stop, TuningInterrupted) else TuningResult()
        except TuningError as error:
            error_console().print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
            reports.append({"workload": one.name, "error": str(error)})
            continue
        explanation = explain_problem(spec, one.problem, device_target(where), shown)
        explanations.append(explanation)
        records.append(TuningRecord.of(op, one.name, where, result, explanation))
        reports.append(_report(one.name, result, explanation))
        if not as_json:
            print_explanation(console(), explanation, SHOWN)
        if interrupted:
            break
    if out is not None:
        save_records(out, records)
    write_html(html, tuning_page(records, shown) if html else "")
    _print_end(reports, explanations, interrupted, as_json)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if any("error" in report for report in reports):
        raise typer.Exit(FAILED)


def _named(op: str, problems: list[Workload]) -> list[Workload]:
    """The problems, of which there has to be one."""
    if not problems:
        raise InvalidInputError(
            f"no problem of `{op}` is named; `gristmill tune` needs one. "
            "Add `--workload NAME` (`gristmill list OP` shows them) or `--shape`."
        )
    return problems


def _print_end(
    reports: Sequence[dict[str, Any]],
    explanations: Sequence[Explanation],
    interrupted: bool,
    as_json: bool,
) -> None:
    """After all problems: the JSON document, or who was chosen how often and where it is kept."""
    if interrupted:
        error_console().print("interrupted: what was measured is kept")
    kept = store().summary()
    if as_json:
        print_json({"problems": reports, "interrupted": interrupted, "store": kept.to_json()})
        return
    if len(explanations) > 1:
        console().print(headline(explanations))
    console().print(
        f"kept in {kept.path}" if not kept.unsaved else f"not kept on disk: {kept.reason}"
    )


def _tune(
    workload: Workload,
    device: torch.device,
    seconds: float,
    trials: int | None,
    strategy: str,
    seed: int,
    roofline_stop: float | None = None,
    afresh: bool = False,
) -> TuningResult:
    values = arguments(workload.problem, device)
    result = tune(
        workload.problem.op,
        values,
        budget_s=seconds,
        trials=trials,
        strategy=strategy,
        seed=seed,
        roofline_stop=roofline_stop,
        afresh=afresh,
    )
    if not result.outcomes:
        raise TuningError(
            f"{workload.problem} was not tuned: another process is tuning this very problem. "
            "Wait for it, then run `gristmill explain`."
        )
    return result


def _report(workload: str, result: TuningResult, explanation: Explanation) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for outcome in result.outcomes.values():
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
    return {
        "workload": workload,
        "interrupted": result.interrupted,
        "stopped": result.stopped,
        "seconds": result.seconds,
        "candidates": counts,
        "conditions": result.conditions.to_json(),
        "explanation": explanation.to_json(),
    }
