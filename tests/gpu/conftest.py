"""GPU tests are collected where there is a GPU, and deselected with that reason elsewhere."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

PLUGINS = Path(__file__).parents[1] / "plugins"


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "/gpu/" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def faulty():
    """The plug-in op `twice`, whose implementations fail in every way; known here and, by its entry point, in workers."""
    if str(PLUGINS) not in sys.path:
        sys.path.insert(0, str(PLUGINS))
    return importlib.import_module("gristmill_faulty")


@pytest.fixture
def cuda():
    return torch.device("cuda", 0)


@pytest.fixture
def fresh_store(tmp_path):
    """An empty plan store for one test, and no bound call that remembers another one."""
    from gristmill import settings
    from gristmill.cache.store import store
    from gristmill.ops._dispatch import forget

    with settings.override(cache_dir=tmp_path):
        for name in ("matmul", "rms_norm"):
            forget(name)
        yield store()
    for name in ("matmul", "rms_norm"):
        forget(name)
