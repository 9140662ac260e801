"""Write the benchmark tables of a Markdown file from the committed results.

Replaces what stands between `<!-- benchmarks:begin -->` and
`<!-- benchmarks:end -->` by a table for each op and device in the results.

Exit code 1 where --check finds the file not up to date.

    gristmill tables README.md
    gristmill tables README.md --check
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gristmill.bench.tables import RESULTS, update
from gristmill.cli.app import FAILED
from gristmill.cli.options import Json
from gristmill.cli.output import console, error_console, print_json

app = typer.Typer(add_completion=False)

File = Annotated[Path, typer.Argument(metavar="[FILE]", help="The Markdown file.")]
Results = Annotated[Path, typer.Option("--results", help="The folder with a folder per device.")]
Check = Annotated[bool, typer.Option("--check", help="Change nothing; fail where not up to date.")]


@app.command()
def command(
    file: File = Path("README.md"),
    results: Results = RESULTS,
    check: Check = False,
    as_json: Json = False,
) -> None:
    changed = update(file, results, check)
    if as_json:
        print_json({"file": str(file), "up_to_date": not changed, "written": changed and not check})
    elif not check:
        console().print(f"{file}: {'written' if changed else 'was up to date'}", soft_wrap=True)
    if changed and check:
        error_console().print(
            f"{file} is not up to date: run `gristmill tables {file}`", soft_wrap=True
        )
        raise typer.Exit(FAILED)
