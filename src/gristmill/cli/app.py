"""The command group: loads a command's module when it is called, and turns errors into messages and
exit codes."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from gristmill import __version__
from gristmill.cli.output import error_console
from gristmill.errors import (
    GristmillError,
    InvalidConfigError,
    InvalidInputError,
    PackError,
    UnknownOpError,
    UnsupportedProblemError,
)

FAILED, BAD_INPUT, REGRESSED, INTERRUPTED = 1, 2, 3, 130
INPUT_ERRORS = (
    InvalidInputError,
    InvalidConfigError,
    PackError,
    UnknownOpError,
    UnsupportedProblemError,
)
COMMANDS = (
    "list", "explain", "tune", "replay", "bench", "report", "tables", "cache", "freeze",
    "aot", "doctor",
)  # fmt: skip


class LazyCommand(TyperCommand):
    """Stands for the command in `gristmill.cli.<name>`: its help is that module's docstring, read
    without importing it (torch alone takes a second), and the real command takes over when there
    are arguments to parse."""

    def __init__(self, name: str) -> None:
        self.module = f"gristmill.cli.{name}"
        spec = importlib.util.find_spec(self.module)
        assert spec is not None
        assert spec.origin is not None
        super().__init__(
            name=name, help=ast.get_docstring(ast.parse(Path(spec.origin).read_text()))
        )

    @cached_property
    def real(self) -> Any:
        """The command itself; its module is imported here."""
        module = importlib.import_module(self.module)
        command = typer.main.get_command(module.app)
        command.name, command.help = self.name, self.help
        return command

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        return self.real.make_context(info_name, args, parent, **extra)


class Commands(TyperGroup):
    """Runs a command; a problem of ours ends it with one message, never a traceback."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(
            **{**attributes, "commands": {name: LazyCommand(name) for name in COMMANDS}}
        )

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GristmillError as error:
            error_console().print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
            raise typer.Exit(BAD_INPUT if isinstance(error, INPUT_ERRORS) else FAILED) from None
        except KeyboardInterrupt:
            error_console().print("interrupted")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=Commands,
    help="Triton operators for PyTorch: the fastest correct implementation, chosen by measurement "
    "and remembered.",
    epilog="Exit codes: 0 done; 1 a check, a benchmark or tuning failed; 2 wrong usage or input; "
    "3 slower than the baseline; 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"gristmill {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=False)
def _group(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console entry."""
    app(prog_name="gristmill")
