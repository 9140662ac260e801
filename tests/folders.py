"""Folders of the tests, for processes that import from them."""

from __future__ import annotations

from pathlib import Path

PLUGINS = Path(__file__).parent / "plugins"
USERS = Path(__file__).parent / "users"
