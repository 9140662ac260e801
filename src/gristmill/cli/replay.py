"""Race search strategies on recorded spaces: how near to the optimum each is after so many
evaluations. Needs no GPU and measures nothing.

FILES are what `gristmill tune OP --record FILE` wrote; none means those in
benchmarks/spaces of this checkout. A strategy is given the space and nothing
that was ever measured of it: no prior, no plan, no neighbour.

    gristmill replay
    gristmill replay square-4096.jsonl.gz --strategy portfolio --seeds 10
    gristmill replay --evaluations 400 --html replay.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gristmill.bench.replay_result import (
    CHANCE,
    LEGEND,
    SPACES,
    ReplayResult,
    committed_spaces,
    replay_page,
    replayed,
)
from gristmill.cli.options import Html, Json
from gristmill.cli.output import console, print_json, table
from gristmill.cli.report import check_html, write_html
from gristmill.errors import InvalidInputError
from gristmill.tuning.replay import BATCH, MILESTONES
from gristmill.tuning.strategies import STRATEGIES, check_strategy

app = typer.Typer(add_completion=False)

SHOWN = ("random", "evolutionary", "bayesian", "portfolio")
Files = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[FILE]...", help="Recorded spaces.", show_default="benchmarks/spaces"),
]
Names = Annotated[
    list[str] | None,
    typer.Option(
        "--strategy",
        help=f"Of {', '.join(STRATEGIES)}; may be repeated.",
        show_default=", ".join(SHOWN),
    ),
]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Searches of each strategy.")]
Evaluations = Annotated[
    int, typer.Option("--evaluations", min=1, help="Configs that a search may measure.")
]
Batch = Annotated[
    int,
    typer.Option("--batch", min=1, help="Configs that are proposed before any of them is told of."),
]


@app.command()
def command(
    files: Files = None,
    strategy: Names = None,
    seeds: Seeds = 10,
    evaluations: Evaluations = MILESTONES[-1],
    batch: Batch = BATCH,
    html: Html = None,
    as_json: Json = False,
) -> None:
    check_html(html)
    paths = list(files or committed_spaces())
    if not paths:
        raise InvalidInputError(
            f"no FILE is given and {SPACES} has none; `gristmill replay` needs a recorded space. "
            "Make one with `gristmill tune OP -w NAME --record FILE`."
        )
    names = list(dict.fromkeys(strategy or SHOWN))
    for name in names:
        check_strategy(name)
    results = []
    for path in paths:
        results.append(replayed(path, names, seeds, evaluations, batch))
        if not as_json:
            _print(results[-1], seeds, batch)
    write_html(html, replay_page(results) if html else "")
    if as_json:
        print_json({"batch": batch, "spaces": [result.to_json() for result in results]})
    else:
        console().print(LEGEND)


def _print(result: ReplayResult, seeds: int, batch: int) -> None:
    recording, at = result.recording, result.milestones
    numbers = [f"{m}" for m in at]
    title = f"{result.name}: {recording.problem} on {result.device}"
    shown = table("strategy", *numbers, "own time", right=[*numbers, "own time"], title=title)
    for curve in result.curves:
        shares = [f"{curve.mean[m - 1]:.3f} ({curve.worst[m - 1]:.3f})" for m in at]
        shown.add_row(curve.strategy, *shares, f"{curve.ask_s:.1f} s")
    shown.add_row(CHANCE, *(f"{result.chance[m - 1]:.3f}" for m in at), "")
    out = console()
    out.print(shown)
    missing = f", {recording.missing} not recorded yet" if recording.missing else ""
    out.print(
        f"{len(recording.points)} configs recorded of {recording.valid} valid{missing}; "
        f"{result.right} right, {result.near_share:.1%} of them within 5% of the optimum, "
        f"{result.optimum_us:.2f} us ({result.optimum}). {seeds} seeds, batches of {batch}.\n"
    )
