"""What a build tells while it runs: nothing, or a bar with the specialisations that are done."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from gristmill import settings


@contextlib.contextmanager
def bar(name: str, total: int) -> Iterator[Callable[[bool], None]]:
    """A function to call with each specialisation that ends, and whether it compiled. A bar is
    drawn on stderr where the settings or a terminal ask for one."""
    wanted = settings.current().progress
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield lambda compiled: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("compiling [bold]{task.description}[/bold]"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    failed = 0
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=total, note="")

        def told(compiled: bool) -> None:
            nonlocal failed
            failed += not compiled
            progress.update(task, advance=1, note=f"{failed} failed" if failed else "")

        yield told
