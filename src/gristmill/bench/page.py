"""A page: sections of figures, tables and facts, rendered into one HTML file that needs nothing
else."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gristmill.bench.figures import Figure
from gristmill.bench.stamp import Stamp
from gristmill.errors import MissingExtraError

TEMPLATES = Path(__file__).parent / "templates"
NEEDED = ("jinja2", "matplotlib")  # the extra `bench`


@dataclass(frozen=True, slots=True)
class Column:
    """A table's column; of numbers, it is set to the right. `tip` explains its name."""

    name: str
    number: bool = False
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell: what it shows, what it sorts by (else its text), a note below, and the badge
    of a verdict: `good`, `bad` or `plain`."""

    text: str
    key: float | str | None = None
    note: str = ""
    badge: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A table's row; `kind` sets it in bold (`ours`) or grey (`quiet`)."""

    cells: tuple[Cell, ...]
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A sortable table."""

    columns: tuple[Column, ...]
    rows: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A figure, or a table with its title and legend, folded where it is for reference."""

    figure: Figure | None = None
    title: str = ""
    table: Table | None = None
    text: str = ""
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Tile:
    """A number to be seen first."""

    value: str
    label: str


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page, with an anchor of its own."""

    name: str
    title: str
    blocks: tuple[Block, ...]
    facts: tuple[tuple[str, str], ...]
    subtitle: str = ""
    summary: str = ""
    tiles: tuple[Tile, ...] = ()
    warnings: tuple[str, ...] = ()


def check_extra() -> None:
    """Whether pages can be made here.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"an HTML report needs {' and '.join(NEEDED)}; not installed: {', '.join(missing)}. "
            "Run `pip install 'gristmill[bench]'`, or leave out `--html`."
        )


def render(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The page as HTML, with its style, script and drawings inside.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    check_extra()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return (
        environment.get_template("page.j2")
        .render(
            title=title,
            lead=lead,
            sections=sections,
            css=(TEMPLATES / "page.css").read_text(),
            script=(TEMPLATES / "page.js").read_text(),
        )
        .lstrip()
    )


def number(value: float | None, digits: int = 2, suffix: str = "", note: str = "") -> Cell:
    """A cell with a number that it sorts by; empty where there is none."""
    if value is None:
        return Cell("", None, note)
    return Cell(f"{value:,.{digits}f}{suffix}", value, note)


def facts_of(stamp: Stamp) -> tuple[tuple[str, str], ...]:
    """A stamp in words, with everything that is needed to measure again."""
    commit = stamp.commit or "unknown"
    dirty = {True: " with local changes", False: "", None: " (whether changed is unknown)"}
    pairs = [
        ("device", stamp.device),
        ("target", stamp.target),
        *((name, version) for name, version in stamp.versions.items() if version),
        ("commit", commit + dirty[stamp.dirty]),
        ("sources", stamp.tree or "no digest"),
        ("date", stamp.date),
        ("command", stamp.command),
    ]
    return tuple(pairs)
