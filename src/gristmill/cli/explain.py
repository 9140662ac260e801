"""Show every candidate of a problem: its time, its error, chosen or why not.

Reads the plan store and measures nothing; `gristmill tune` measures.

    gristmill explain rms_norm --workload llama3-8b-m512
    gristmill explain matmul --shape a=512x4096 --shape b=4096x6144:t --dtype bfloat16
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gristmill.cli.options import (
    L2,
    Device,
    DType,
    Json,
    ObjectiveName,
    OpName,
    Scalars,
    Shapes,
    Workloads,
)
from gristmill.cli.output import console, print_json, table
from gristmill.cli.problems import chosen_device, notation, objective_named, requested
from gristmill.core.registry import load
from gristmill.core.target import device_target
from gristmill.errors import InvalidInputError
from gristmill.measure.conditions import Conditions
from gristmill.selection.explain import HEADINGS, ROWS, Explanation, Row, cells, explain_problem

app = typer.Typer(add_completion=False)

NARROW = 110  # columns

Rows = Annotated[int, typer.Option("--rows", min=1, help="How many candidates to show.")]


@app.command()
def command(
    op: OpName,
    workload: Workloads = None,
    shape: Shapes = None,
    scalar: Scalars = None,
    dtype: DType = "bfloat16",
    device: Device = None,
    l2: L2 = None,  # noqa: ARG001 - its callback has set it
    objective: ObjectiveName = "eager",
    rows: Rows = ROWS,
    as_json: Json = False,
) -> None:
    spec = load(op)
    problems = requested(spec, workload, shape, scalar, dtype)
    if not problems:
        raise InvalidInputError(
            f"no problem of `{op}` is named; `gristmill explain` needs one. "
            "Add `--workload NAME` (`gristmill list OP` shows them) or `--shape`."
        )
    target, wanted = device_target(chosen_device(device)), objective_named(objective)
    explanations = [explain_problem(spec, w.problem, target, wanted) for w in problems]
    if as_json:
        print_json({"explanations": [e.to_json() for e in explanations]})
        return
    for explanation in explanations:
        print_explanation(console(), explanation, rows)


def print_explanation(out: Console, explanation: Explanation, rows: int = ROWS) -> None:
    """The plan, the candidates, and what each constraint of a space rejected."""
    plan = explanation.plan
    out.print(
        f"[bold]{escape(explanation.problem)}[/] on {escape(explanation.target)}", soft_wrap=True
    )
    if legend := notation(explanation.problem):
        out.print(legend, style="dim")
    out.print(f"plan ({explanation.objective}): [bold]{escape(str(plan.candidate))}[/]")
    out.print(f"why: {plan.origin}; {escape(plan.reason)}")
    if explanation.frozen_to:
        out.print(f"plans are frozen to {escape(explanation.frozen_to)}", soft_wrap=True)
    if plan.revalidate:
        out.print(
            "[yellow]measured under other versions of torch, Triton or the driver: tune again[/]"
        )
    if explanation.conditions is not None:
        print_conditions(out, explanation.conditions)
    _print_candidates(out, explanation, rows)
    if len(explanation.rows) > rows:
        out.print(f"... and {len(explanation.rows) - rows} more (--rows shows them)")
    for name, reasons in explanation.rejections.items():
        total = sum(reasons.values())
        out.print(f"{escape(name)}: {total:,} points of its space are rejected")
        for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
            out.print(f"  {count:>7,}  {escape(reason)}")


def print_conditions(out: Console, conditions: Conditions) -> None:
    """What the device was like, and in yellow what to know of that."""
    if text := str(conditions):
        out.print(f"measured under: {text}", style="dim", highlight=False)
    for warning in conditions.warnings:
        out.print(warning, style="yellow", markup=False, highlight=False)


def _print_candidates(out: Console, explanation: Explanation, count: int) -> None:
    # The reason for the choice stands above the table.
    shown = [
        replace(row, note="") if row.chosen and row.status == "ok" else row
        for row in explanation.rows[:count]
    ]
    if all(row.host_us == row.device_us for row in shown):  # on a CPU a call is its own device
        shown = [replace(row, host_us=None) for row in shown]
    texts = [cells(row) for row in shown]
    notes: list[str] = []
    if out.width < NARROW:  # the notes have no room beside the numbers: under them, by number
        notes = [f"{i + 1:>3}  {line[-1]}" for i, line in enumerate(texts) if line[-1]]
        texts = [(f"{i + 1}{line[0]}", *line[1:-1], "") for i, line in enumerate(texts)]
    out.print(_candidates(shown, texts))
    for note in notes:
        out.print(escape(note), style="dim")


def _candidates(shown: Sequence[Row], texts: Sequence[tuple[str, ...]]) -> Table:
    # A column that is empty for every row (no graphs on a CPU, no registers of a vendor call) is
    # left out.
    keep = [i for i, _ in enumerate(HEADINGS) if i == 0 or any(line[i] for line in texts)]
    headings = [HEADINGS[i] for i in keep]
    rows = table(
        *headings, right=[h for h in headings if h.endswith(" us") or h in ("error/bound", "regs")]
    )
    for row, line in zip(shown, texts, strict=True):
        style = "bold green" if row.chosen else "dim" if row.status not in ("ok", "slow") else ""
        rows.add_row(*(escape(line[i]) for i in keep), style=style)
    return rows


def headline(explanations: Sequence[Explanation]) -> str:
    """One line for several explanations: how many problems, and who was chosen how often."""
    names = [e.plan.candidate.implementation for e in explanations]
    counts = ", ".join(f"{name} {names.count(name)}" for name in dict.fromkeys(names))
    return f"{len(explanations)} problems; chosen: {counts}"
