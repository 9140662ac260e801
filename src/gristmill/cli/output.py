"""What commands print: JSON or text on stdout, messages on stderr."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 120  # of text that goes to no terminal, where COLUMNS does not say


def console() -> Console:
    """Standard output, for results."""
    return Console(highlight=False, width=shutil.get_terminal_size((WIDTH, 50)).columns)


def error_console() -> Console:
    """Standard error, for messages and progress."""
    return Console(stderr=True, highlight=False)


def print_json(data: Any) -> None:
    """One JSON document on stdout (an infinite or undefined number is null: JSON has neither)."""
    print(json.dumps(_finite(data), indent=2, default=str))


def table(
    *columns: str, right: Sequence[str] = (), wrap: Sequence[str] = (), title: str | None = None
) -> Table:
    """An empty table in the house style; columns named in `right` are numbers, those in `wrap` and
    the last one may take several lines."""
    made = Table(
        box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False
    )
    for name in columns:
        wraps = name == columns[-1] or name in wrap
        made.add_column(
            name, justify="right" if name in right else "left", overflow="fold", no_wrap=not wraps
        )
    return made


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
