"""The command line: `gristmill` and `python -m gristmill`. One file per command, loaded when it is
called."""

from gristmill.cli.app import main

__all__ = ["main"]
