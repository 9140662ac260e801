"""Options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from gristmill import settings
from gristmill.errors import InvalidInputError
from gristmill.settings import L2State

OpName = Annotated[
    str, typer.Argument(metavar="OP", help="The op's name; `gristmill list` shows them.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document in place of text.")]
Workloads = Annotated[
    list[str] | None,
    typer.Option(
        "--workload",
        "-w",
        metavar="NAME",
        help="A named problem, or a pattern such as 'llama3-8b-*'; may be repeated. "
        "`gristmill list OP` shows them.",
    ),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        "-s",
        metavar="NAME=SIZES",
        help="A tensor argument, as x=512x4096; with ':t' it is a transposed view, "
        "as b=4096x6144:t.",
    ),
]
Scalars = Annotated[
    list[str] | None,
    typer.Option("--scalar", metavar="NAME=VALUE", help="Any other argument, as eps=1e-5."),
]
DType = Annotated[
    str, typer.Option("--dtype", help="dtype of the --shape tensors: bfloat16, float16, float32.")
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="Where to run: cuda, cuda:1, cpu.",
        show_default="cuda if there is one, else cpu",
    ),
]
ObjectiveName = Annotated[
    str,
    typer.Option(
        "--objective", help="What 'fastest' means: eager (a call) or graph (CUDA-graph replay)."
    ),
]


def _l2(context: typer.Context, value: str | None) -> str | None:
    """Run the command under this state of L2."""
    if value is not None:
        if value not in get_args(L2State):
            raise InvalidInputError(
                f"`--l2` is {value!r}; it can be {' or '.join(get_args(L2State))}. Choose one."
            )
        context.with_resource(settings.override(l2=value))
    return value


L2 = Annotated[
    str | None,
    typer.Option(
        "--l2",
        callback=_l2,
        help="What a call finds in L2: nothing of it (cold), or what the same call left (warm); "
        "each has plans of its own.",
        show_default="the setting GRISTMILL_L2, cold",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the inputs and of random search.")]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html", help="Write a report with plots, one self-contained HTML file (extra `bench`)."
    ),
]
