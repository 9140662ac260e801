"""Fixtures of the CPU tests."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parents[1] / "plugins"


@pytest.fixture
def faulty():
    """The plug-in op `twice`, whose implementations fail in every way; known here and, by its entry point, in workers."""
    if str(PLUGINS) not in sys.path:
        sys.path.insert(0, str(PLUGINS))
    return importlib.import_module("gristmill_faulty")
