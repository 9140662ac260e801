"""Tune problems now and keep the plans, whether there are plans already or not.

Ctrl-C ends the search: what was measured is kept, with the best of it as the plan, and the exit
code is 130.

    gristmill tune rms_norm --workload llama3-8b-m512 --budget 30
    gristmill tune matmul --shape a=512x4096 --shape b=4096x6144:t --trials 100
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from gristmill import settings
from gristmill.cache.store import store
from gristmill.cli.explain import headline, print_explanation
from gristmill.cli.options import (
    Device,
    DType,
    Json,
    ObjectiveName,
    OpName,
    Scalars,
    Seed,
    Shapes,
    Workloads,
)
from gristmill.cli.output import console, error_console, print_json
from gristmill.cli.problems import arguments, chosen_device, objective_named, requested
from gristmill.core.op import Workload
from gristmill.core.registry import load
from gristmill.core.target import device_target
from gristmill.errors import InvalidInputError, TuningError
from gristmill.ops.get_op import tune
from gristmill.selection.explain import explain_problem
from gristmill.tuning.budget import TuningResult

app = typer.Typer(add_completion=False)

SHOWN = 10  # candidates of each problem
Budget = Annotated[
    float | None,
    typer.Option(
        "--budget", metavar="SECONDS", help="Wall clock for each problem.", show_default="60"
    ),
]
Trials = Annotated[int | None, typer.Option("--trials", help="Triton candidates for each problem.")]
Strategy = Annotated[str, typer.Option("--strategy", help="exhaustive, random, or auto.")]


@app.command()
def command(
    op: OpName,
    workload: Workloads = None,
    shape: Shapes = None,
    scalar: Scalars = None,
    dtype: DType = "bfloat16",
    device: Device = None,
    budget: Budget = None,
    trials: Trials = None,
    strategy: Strategy = "auto",
    seed: Seed = 0,
    objective: ObjectiveName = "eager",
    as_json: Json = False,
) -> None:
    spec, where, shown = load(op), chosen_device(device), objective_named(objective)
    problems = requested(spec, workload, shape, scalar, dtype)
    if not problems:
        raise InvalidInputError(
            f"no problem of `{op}` is named; `gristmill tune` needs one. "
            "Add `--workload NAME` (`gristmill list OP` shows them) or `--shape`."
        )
    explanations, reports, failures = [], [], 0
    interrupted = False
    for one in problems:
        try:
            result = _tune(one, where, budget, trials, strategy, seed)
        except KeyboardInterrupt:
            interrupted, result = True, None
        except TuningError as error:
            failures += 1
            error_console().print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
            reports.append({"workload": one.name, "error": str(error)})
            continue
        explanation = explain_problem(spec, one.problem, device_target(where), shown)
        explanations.append(explanation)
        reports.append(
            {"workload": one.name, **_report(result), "explanation": explanation.to_json()}
        )
        if not as_json:
            print_explanation(console(), explanation, SHOWN)
        if interrupted:
            break
    kept = store().summary()
    if as_json:
        print_json({"problems": reports, "interrupted": interrupted, "store": kept.to_json()})
    else:
        if len(explanations) > 1:
            console().print(headline(explanations))
        console().print(
            f"kept in {kept.path}" if not kept.unsaved else f"not kept on disk: {kept.reason}"
        )
    if interrupted:
        error_console().print("interrupted: what was measured is kept")
        raise typer.Exit(130)
    if failures:
        raise typer.Exit(1)


def _tune(
    workload: Workload,
    device: Any,
    budget_s: float | None,
    trials: int | None,
    strategy: str,
    seed: int,
) -> TuningResult:
    values = arguments(workload.problem, device)
    seconds = settings.current().budget_s if budget_s is None else budget_s
    result = tune(
        workload.problem.op, values, budget_s=seconds, trials=trials, strategy=strategy, seed=seed
    )
    if not result.outcomes:
        raise TuningError(
            f"{workload.problem} was not tuned: another process is tuning this very problem. "
            "Wait for it, then run `gristmill explain`."
        )
    return result


def _report(result: TuningResult | None) -> dict[str, Any]:
    if result is None:
        return {"interrupted": True}
    counts: dict[str, int] = {}
    for outcome in result.outcomes.values():
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
    return {"interrupted": False, "seconds": result.seconds, "candidates": counts}
