"""Tune problems now and keep the plans, whether there are plans already or not.

Ctrl-C ends the search: what was measured is kept, with the best of it as the plan, and the exit
code is 130.

    gristmill tune rms_norm --workload llama3-8b-m512 --budget 30
    gristmill tune matmul --shape a=512x4096 --shape b=4096x6144:t --trials 100
    gristmill tune rms_norm -w llama3-8b-m512 --out tuning.json --html tuning.html
    gristmill tune matmul -w square-4096 --record square-4096.jsonl.gz --budget 500
    gristmill tune all --suite llama3-8b --devices all
    gristmill tune all --suite llama3-8b --ray auto
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.markup import escape

from gristmill import settings
from gristmill.cli.app import FAILED, INTERRUPTED
from gristmill.cli.fleet import Devices, RayAddress, SuiteName, problems_of, where_to
from gristmill.cli.options import (
    L2,
    Device,
    DType,
    Html,
    Json,
    ObjectiveName,
    Scalars,
    Seed,
    Shapes,
    Workloads,
)
from gristmill.cli.output import check_out, error_console
from gristmill.cli.problems import arguments, chosen_device, objective_named
from gristmill.cli.recording import Commit, Names, Points, Record, RecordOptions, record
from gristmill.cli.report import check_html
from gristmill.cli.tuned import Tuned
from gristmill.core.op import Workload
from gristmill.core.target import device_target
from gristmill.errors import InvalidInputError, TuningError
from gristmill.ops.tune import limits_of, tune
from gristmill.ops.tune_many import Where, tune_workloads
from gristmill.tuning.budget import TuningInterrupted, TuningResult
from gristmill.tuning.fleet.fleet import Ended
from gristmill.tuning.fleet.run import Wishes

app = typer.Typer(add_completion=False)

OpOrAll = Annotated[
    str,
    typer.Argument(metavar="OP", help="The op's name, or all; `gristmill list` shows them."),
]
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
    op: OpOrAll,
    workload: Workloads = None,
    suite: SuiteName = None,
    shape: Shapes = None,
    scalar: Scalars = None,
    dtype: DType = "bfloat16",
    device: Device = None,
    devices: Devices = None,
    ray: RayAddress = None,
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
    tuned = Tuned(objective_named(objective), as_json, stamped=bool(out or html))
    problems = problems_of(op, suite, (workload, shape, scalar), dtype)
    seconds = settings.current().budget_s if budget is None else budget
    fleet = {"devices": devices, "ray": ray}
    options = RecordOptions(record_to, points, implementation or (), commit)
    others = {"trials": trials, "out": out, "html": html, "strategy": strategy != "auto", **fleet}
    if options.check(problems, **others):
        record(options, problems[0], chosen_device(device), seconds, seed, as_json)
        return
    wishes = Wishes(limits_of(seconds, trials, strategy, roofline_stop), strategy, seed, afresh)
    where = where_to(devices, ray, device, problems)
    if where is None:
        interrupted = _one_by_one(problems, chosen_device(device), wishes, tuned)
    else:
        if where.ray is not None:
            _check_unstamped(out, html)
        interrupted = _shared_out(problems, where, wishes, tuned)
    tuned.end(out, html, interrupted)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if tuned.failed:
        raise typer.Exit(FAILED)


def _one_by_one(
    problems: Sequence[Workload], device: torch.device, wishes: Wishes, tuned: Tuned
) -> bool:
    """Tune problems on one device; whether Ctrl-C ended it."""
    interrupted = False
    for one in problems:
        try:
            result = _tune(one, device, wishes)
        except KeyboardInterrupt as stop:
            interrupted = True
            result = stop.result if isinstance(stop, TuningInterrupted) else TuningResult()
        except TuningError as error:
            tuned.fail(one, error)
            continue
        tuned.add(one, result, device_target(device), device)
        if interrupted:
            break
    return interrupted


def _shared_out(problems: Sequence[Workload], where: Where, wishes: Wishes, tuned: Tuned) -> bool:
    """Tune problems on several devices; whether Ctrl-C ended it."""

    def tell(ended: Ended) -> None:
        workload = Workload(ended.job.name, ended.job.problem)
        if ended.result is None or ended.result.skipped:
            tuned.fail(workload, ended.why)
        else:
            device = None if where.ray is not None else torch.device(ended.site)
            tuned.add(workload, ended.result, ended.job.target, device)

    def say(text: str) -> None:
        error_console().print(escape(text), soft_wrap=True)

    return tune_workloads(problems, where, wishes, tell, say).interrupted


def _check_unstamped(out: Path | None, html: Path | None) -> None:
    for option, path in (("--out", out), ("--html", html)):
        if path is not None:
            raise InvalidInputError(
                f"`{option}` is given together with `--ray`; a record says of which machine it is, "
                "and these would be of several. Leave one out; the store has what was measured."
            )


def _tune(workload: Workload, device: torch.device, wishes: Wishes) -> TuningResult:
    budget = wishes.budget
    result = tune(
        workload.problem.op,
        arguments(workload.problem, device),
        budget_s=budget.seconds,
        trials=budget.trials,
        strategy=wishes.strategy,
        seed=wishes.seed,
        roofline_stop=budget.roofline_stop,
        afresh=wishes.afresh,
    )
    if not result.outcomes:
        raise TuningError(
            f"{workload.problem} was not tuned: another process is tuning this very problem. "
            "Wait for it, then run `gristmill explain`."
        )
    return result
