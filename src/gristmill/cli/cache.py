"""Show what the plan store holds, remove some of it, or carry it in packs.

gristmill cache show
gristmill cache prune --older-than 90
gristmill cache prune --stale
gristmill cache export --plans-only h200.jsonl
gristmill cache import h200.jsonl
gristmill cache merge a.jsonl b.jsonl -o both.jsonl
gristmill cache diff before.jsonl after.jsonl
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from gristmill import settings
from gristmill.cache import packs
from gristmill.cache.difference import Difference, differences, time_us
from gristmill.cache.evidence import forget_runs
from gristmill.cache.exchange import collect
from gristmill.cache.packs import Pack
from gristmill.cache.shipped import pack_name
from gristmill.cache.store import StoreSummary, store
from gristmill.cli.options import Json
from gristmill.cli.output import console, print_json, table, unwritable
from gristmill.core.plan import KERNEL, Plan
from gristmill.core.registry import implementations, load, op_names
from gristmill.core.target import device_name
from gristmill.errors import InvalidInputError
from gristmill.ops.plans import import_plans

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
PackFile = Annotated[Path, typer.Argument(metavar="FILE", help="A pack.")]
OfDevice = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Only of devices with this in their name or target (H200, sm_90, cpu), or a pattern.",
    ),
]
PlansOnly = Annotated[
    bool,
    typer.Option(
        "--plans-only",
        help="The plans that this version can use, with what they rest on; not every measurement.",
    ),
]
Shipped = Annotated[
    bool,
    typer.Option(
        "--shipped", help="Write to gristmill's own packs, under the device's name (no FILE)."
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The pack to write.")]
DropStale = Annotated[
    bool, typer.Option("--drop-stale", help="Without rows of kernels that have changed or gone.")
]


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
    if everything:
        forget_runs(store().folder)
    if as_json:
        print_json({"removed": removed, "path": str(store().summary().path)})
    else:
        console().print(f"removed {removed:,} rows")


@app.command(help="Write what the store holds to a pack: a text file, sorted, one row a line.")
def export(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The pack to write.", show_default=False)
    ] = None,
    op: OneOp = None,
    device: OfDevice = None,
    plans_only: PlansOnly = False,
    shipped: Shipped = False,
    as_json: Json = False,
) -> None:
    if (file is None) != shipped:
        raise InvalidInputError(
            f"`gristmill cache export` was given {'no FILE' if file is None else 'FILE'} and "
            f"{'--shipped' if shipped else 'no --shipped'}; it writes one pack. Name a FILE, or "
            "use --shipped without one."
        )
    exported = collect(store(), op=op, device=device, plans_only=plans_only)
    where = file or _shipped_file(exported.pack)
    if shipped and op is not None and where.exists():
        exported = replace(exported, pack=_in_place(packs.read(where), op, exported.pack))
    exported.pack.write(where)
    if as_json:
        print_json({"path": str(where), **exported.to_json()})
        return
    out = console()
    out.print(f"{escape(str(where))}: {_counts(exported.pack)}", soft_wrap=True)
    for reason, count in exported.left_out.items():
        out.print(f"[yellow]left out: {count:,} rows {reason}[/]")


@app.command("import", help="Put a pack's rows into the store; what was measured here stays.")
def import_(file: PackFile, as_json: Json = False) -> None:
    done = import_plans(file)
    if as_json:
        print_json(done.to_json())
        return
    out = console()
    out.print(f"new: {done.plans:,} plans, {done.measurements:,} measurements")
    if done.kept:
        out.print(f"{done.kept:,} rows stay as they are in the store")
    if done.stale:
        out.print(f"[yellow]{done.stale:,} plans are of kernels that are others here[/]")


@app.command("merge", help="Make one pack of several; of two rows for one thing the better stays.")
def merge_packs(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Packs.")],
    out: Out,
    drop_stale: DropStale = False,
    as_json: Json = False,
) -> None:
    merged = packs.merge([packs.read(file) for file in files])
    if drop_stale:
        merged = packs.current_only(merged)
    merged.write(out)
    if as_json:
        print_json({"path": str(out), **merged.header()})
    else:
        console().print(f"{escape(str(out))}: {_counts(merged)}", soft_wrap=True)


@app.command(help="Show for what two packs have other plans; exit code 1 where there is any.")
def diff(first: PackFile, second: PackFile, as_json: Json = False) -> None:
    found = differences(packs.read(first), packs.read(second))
    if as_json:
        print_json({"differ": bool(found), "differences": [d.to_json() for d in found]})
    elif not found:
        console().print("the same plans")
    else:
        console().print(_difference_table(found))
    if found:
        raise typer.Exit(1)


def _shipped_file(pack: Pack) -> Path:
    """Where gristmill's own pack of a device lies."""
    if len(pack.targets) != 1:
        names = ", ".join(map(device_name, pack.targets))
        raise InvalidInputError(
            f"the store has plans of {names}; a shipped pack is of one device. Name it with "
            "--device."
        )
    return settings.PACKS / pack_name(pack.targets[0])


def _in_place(whole: Pack, op: str, of_op: Pack) -> Pack:
    """A pack with an op's rows in place of those that it had of the op."""
    plans = (p for p in whole.plans if p.plan.op != op)
    measurements = (m for m in whole.measurements if m.op != op)
    return Pack((*plans, *of_op.plans), (*measurements, *of_op.measurements))


def _counts(pack: Pack) -> str:
    devices = escape(", ".join(map(device_name, pack.targets))) or "no device"
    return f"{len(pack.plans):,} plans, {len(pack.measurements):,} measurements; {devices}"


def _difference_table(found: list[Difference]) -> Table:
    rows = table("op", "sizes", "objective", "us", "first", "us ", "second", right=("us", "us "))

    def cells(plan: Plan | None) -> tuple[str, str]:
        time = time_us(plan)
        chosen = "none" if plan is None else f"{plan.candidate} ({plan.source_hash[:6]})"
        return "" if time is None else f"{time:.2f}", escape(chosen)

    for d in found:
        sizes = escape(_sizes(d.plan))
        pair = (*cells(d.first), *cells(d.second))
        rows.add_row(escape(d.plan.op), sizes, d.plan.objective, *pair)
    return rows


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
