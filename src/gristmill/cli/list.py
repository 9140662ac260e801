"""List the ops; with an op, its implementations and workloads.

gristmill list
gristmill list matmul
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from gristmill.cli.options import Json
from gristmill.cli.output import console, print_json, table
from gristmill.cli.problems import notation
from gristmill.core.op import Op
from gristmill.core.registry import implementations, load, op_names

app = typer.Typer(add_completion=False)

Name = Annotated[str | None, typer.Argument(metavar="[OP]", help="Show this op in detail.")]


@app.command()
def command(op: Name = None, as_json: Json = False) -> None:
    if op is None:
        ops = [load(name) for name in op_names()]
        if as_json:
            print_json({"ops": [_describe(o) for o in ops]})
        else:
            _print_ops(ops)
        return
    spec = load(op)
    if as_json:
        print_json(_describe(spec))
    else:
        _print_op(spec)


def _describe(op: Op) -> dict[str, Any]:
    return {
        "name": op.name,
        "schema": op.schema,
        "dtypes": [str(d).removeprefix("torch.") for d in op.dtypes],
        "implementations": [
            {"name": i.name, "kind": i.kind, "space_points": i.space.size, "when": _when(i.doc)}
            for i in implementations(op.name)
        ],
        "workloads": [{"name": w.name, **w.problem.to_json()} for w in op.workloads],
    }


def _when(doc: str) -> str:
    return " ".join(doc.split("\n\n", maxsplit=1)[0].split())


def _print_ops(ops: list[Op]) -> None:
    columns = ("op", "implementations", "workloads")
    rows = table(*columns, right=("workloads",), wrap=("implementations",))
    for op in ops:
        names = ", ".join(i.name for i in implementations(op.name))
        rows.add_row(op.name, names, str(len(op.workloads)))
    console().print(rows)
    for op in ops:
        console().print(
            f"[bold]{op.name}[/]{escape(op.schema.removeprefix(op.name))}", soft_wrap=True
        )
    console().print("`gristmill list OP` shows an op's implementations and workloads.")


def _print_op(op: Op) -> None:
    out = console()
    out.print(f"[bold]{op.name}[/]{op.schema.removeprefix(op.name)}", soft_wrap=True)
    rows = table("implementation", "kind", "points", "what it is", right=("points",))
    for i in implementations(op.name):
        rows.add_row(
            i.name, i.kind, f"{i.space.size:,}" if i.space.knobs else "-", escape(_when(i.doc))
        )
    out.print(rows)
    rows = table("workload", "problem")
    for workload in op.workloads:
        rows.add_row(workload.name, escape(str(workload.problem).removeprefix(op.name)))
    out.print(rows)
    if legend := notation(*(str(w.problem) for w in op.workloads)):
        out.print(legend, style="dim")
