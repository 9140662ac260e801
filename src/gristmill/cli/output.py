"""What commands print: JSON or text on stdout, messages on stderr."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from gristmill.errors import InvalidInputError

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


def unwritable(folder: Path) -> str:
    """Why no file can be made in a folder (made if need be), or an empty string."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return str(error)


def check_out(option: str, path: Path | None) -> None:
    """Before anything is measured: whether a file can be written there.

    Raises:
        InvalidInputError: it cannot; the message says why.
    """
    if path is None:
        return
    folder = path.parent
    if not folder.is_dir():
        fault = f"{folder} is no folder"
    elif path.is_dir():
        fault = "it is a folder"
    elif not os.access(folder, os.W_OK):
        fault = f"{folder} cannot be written to"
    else:
        return
    raise InvalidInputError(
        f"`{option}` is '{path}'; the report cannot be written there: {fault}. Name a file in a "
        "folder that exists and can be written to."
    )


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
