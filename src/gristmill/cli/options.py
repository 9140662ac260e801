"""Options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
Seed = Annotated[int, typer.Option("--seed", help="Seed of the inputs and of random search.")]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html", help="Write a report with plots, one self-contained HTML file (extra `bench`)."
    ),
]
