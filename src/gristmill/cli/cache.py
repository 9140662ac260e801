"""Show what the plan store holds, or remove some of it.

gristmill cache show
gristmill cache prune --older-than 90
gristmill cache prune --stale
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from gristmill.cache.store import StoreSummary, store
from gristmill.cli.options import Json
from gristmill.cli.output import console, print_json, table
from gristmill.core.plan import KERNEL, Plan
from gristmill.core.registry import implementations, load, op_names
from gristmill.errors import InvalidInputError

app = typer.Typer(no_args_is_help=True, add_completion=False)

SECONDS_PER_DAY = 86_400.0
OneOp = Annotated[str | None, typer.Option("--op", help="Only this op's.")]
Plans = Annotated[
    bool, typer.Option("--plans/--no-plans", help="List the plans, not only the counts.")
]
OlderThan = Annotated[
    float | None,
    typer.Option(
        "--older-than", metavar="DAYS", min=0, help="Measured longer ago than this many days."
    ),
]
Stale = Annotated[
    bool, typer.Option("--stale", help="Of implementations whose source has changed or gone.")
]
Everything = Annotated[bool, typer.Option("--all", help="Everything.")]


@app.command(help="Show where the store is, how it is, and what it holds.")
def show(op: OneOp = None, plans: Plans = True, as_json: Json = False) -> None:
    if op is not None:
        load(op)
    summary = store().summary()
    kept = [p for p in store().plans() if op in (None, p.op)]
    if as_json:
        print_json({**summary.to_json(), "plan_list": [_plan_json(p) for p in kept]})
        return
    out = console()
    out.print(f"store: {escape(str(summary.path))}", soft_wrap=True)
    out.print(f"state: {_state(summary)}, {summary.size_bytes / 1024:,.0f} KiB")
    if summary.unsaved:
        out.print(f"[yellow]{summary.unsaved} rows are in memory only[/]")
    counts = table("op", "measurements", "plans", right=("measurements", "plans"))
    for name, count in summary.by_op.items():
        if op in (None, name):
            counts.add_row(name, f"{count['measurements']:,}", f"{count['plans']:,}")
    out.print(counts if summary.by_op else "nothing is kept yet; `gristmill tune OP` measures")
    if kept and plans:
        out.print(_plan_table(kept))


@app.command(help="Remove measurements and plans; every criterion given has to hold.")
def prune(
    op: OneOp = None,
    older_than: OlderThan = None,
    stale: Stale = False,
    everything: Everything = False,
    as_json: Json = False,
) -> None:
    if op is not None:
        load(op)
    if not (op or older_than is not None or stale or everything):
        raise InvalidInputError(
            "`gristmill cache prune` was told nothing to remove; it takes --op, --older-than, "
            "--stale, --all. Add one."
        )
    sources = _current_sources() if stale else None
    age_s = None if older_than is None else older_than * SECONDS_PER_DAY
    removed = store().prune(older_than_s=age_s, op=op, keep_sources=sources, everything=everything)
    if as_json:
        print_json({"removed": removed, "path": str(store().summary().path)})
    else:
        console().print(f"removed {removed:,} rows")


def _current_sources() -> set[str]:
    """The source hashes of every implementation, and of users' kernels, which only their own
    programs know (`gristmill.autotune`)."""
    ours = {i.source_hash for name in op_names() for i in _implementations(name)}
    return ours | {p.source_hash for p in store().plans() if p.op.startswith(KERNEL)}


def _implementations(op: str) -> tuple[Any, ...]:
    load(op)
    return tuple(implementations(op))


def _state(summary: StoreSummary) -> str:
    return (
        "[green]ok[/]"
        if summary.state == "ok"
        else f"[red]{summary.state}[/] ({escape(summary.reason)})"
    )


def _plan_json(plan: Plan) -> dict[str, Any]:
    return {
        "op": plan.op,
        "bucket": plan.bucket,
        "target": plan.target,
        "objective": plan.objective,
        "implementation": plan.candidate.implementation,
        "config": plan.candidate.config.knobs,
        "time_us": plan.evidence.time_us(plan.objective) if plan.evidence else None,
        "revalidate": plan.revalidate,
        "provenance": plan.provenance,
    }


def _plan_table(plans: list[Plan]) -> Table:
    rows = table("op", "sizes", "objective", "us", "plan", right=("us",))
    for plan in plans:
        sizes, _, rest = plan.bucket.partition("|")
        dtype = rest.split(":")[1] if ":" in rest else ""
        time_us = f"{plan.evidence.time_us(plan.objective):.2f}" if plan.evidence else ""
        mark = " (measured under other versions)" if plan.revalidate else ""
        rows.add_row(
            plan.op, f"{sizes} {dtype}", plan.objective, time_us, escape(f"{plan.candidate}{mark}")
        )
    return rows
