"""Show what the plan store holds, or remove some of it.

gristmill cache show
gristmill cache prune --older-than 90
gristmill cache prune --stale
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from gristmill.cache.store import StoreSummary, store
from gristmill.cli.options import Json
from gristmill.cli.output import console, print_json, table, unwritable
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
    summary = _summary()
    _check_op(op, summary)
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
    _check_op(op, _summary())
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


def _summary() -> StoreSummary:
    """What the store says of itself, and of the folder where a file that is not there yet goes."""
    summary = store().summary()
    why_not = "" if summary.path.exists() else unwritable(summary.path.parent)
    if summary.state != "ok" or not why_not:
        return summary
    return replace(summary, state="unavailable", reason=why_not)


def _check_op(op: str | None, summary: StoreSummary) -> None:
    """What is kept may be shown and removed: a user's kernel's too, or a removed package's.

    Raises:
        UnknownOpError: neither is there an op of that name, nor is anything kept of one.
    """
    if op is not None and op not in summary.by_op:
        load(op)


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
        time_us = f"{plan.evidence.time_us(plan.objective):.2f}" if plan.evidence else ""
        mark = " (measured under other versions)" if plan.revalidate else ""
        chosen = plan.candidate.config if plan.op.startswith(KERNEL) else plan.candidate
        rows.add_row(
            escape(plan.op),
            escape(_sizes(plan)),
            plan.objective,
            time_us,
            escape(f"{chosen}{mark}"),
        )
    return rows


def _sizes(plan: Plan) -> str:
    """What a plan is for: sizes and the first tensor's dtype; of a user's kernel, the key and the
    dtypes."""
    sizes, _, rest = plan.bucket.partition("|")
    if plan.op.startswith(KERNEL):
        key = rest.partition(",check=")[0].strip(",")
        return key.replace("torch.", "").replace(",", " ")
    return f"{sizes} {rest.split(':')[1] if ':' in rest else ''}"
