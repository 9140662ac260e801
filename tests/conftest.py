"""Rules for every test: a plan store of its own, and hypothesis profiles `dev` and `ci`."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from folders import PLUGINS, USERS

# No test, nor a process that it starts, may see or change the user's plans. Set before gristmill
# reads its environment, that is before any test module is imported.
SCRATCH = Path(tempfile.mkdtemp(prefix="gristmill-tests-"))
os.environ["GRISTMILL_CACHE_DIR"] = str(SCRATCH / "cache")
os.environ["GRISTMILL_PACK_DIR"] = str(SCRATCH / "packs")  # untuned is untuned on any device
os.environ["GRISTMILL_LOCK_DIR"] = str(SCRATCH / "locks")  # other test runs are no tuners
# Processes that a test starts see the sources that it sees (`pythonpath` in pyproject.toml).
SOURCES = [str(Path(__file__).parents[1] / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(SOURCES)

# `dev` looks for new examples; `ci` runs the same ones every time, so a red run is a red commit.
settings.register_profile("dev", max_examples=25, deadline=None)
settings.register_profile("ci", max_examples=25, deadline=None, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_unconfigure():
    shutil.rmtree(SCRATCH, ignore_errors=True)


def pytest_ignore_collect(collection_path):
    """The interpreter's tests run with TRITON_INTERPRET=1, in a process of their own."""
    if collection_path == Path(__file__).parent / "interpret":
        return True if os.environ.get("TRITON_INTERPRET") != "1" else None
    return None


@pytest.fixture
def fresh_store(tmp_path):
    """An empty plan store for one test, and no bound call or lock that remembers another one's
    plans."""
    from gristmill import settings as library
    from gristmill.cache.store import store
    from gristmill.core.registry import op_names
    from gristmill.ops._dispatch import forget
    from gristmill.selection import frozen

    def forget_all():
        for name in (*op_names(), "twice"):
            forget(name)
        frozen.activate(None)
        frozen.forget_used()

    with library.override(cache_dir=tmp_path / "cache"):
        forget_all()
        yield store()
    forget_all()


@pytest.fixture
def shards_store():
    """Every plan store is a folder of shards, as on a network file system."""
    from gristmill import settings as library

    with library.override(store="shards"):
        yield


@pytest.fixture
def pack_dir(tmp_path, fresh_store):
    """An empty folder for shipped packs; nothing is remembered of another one."""
    from gristmill import settings as library
    from gristmill.cache import shipped

    folder = tmp_path / "packs"
    folder.mkdir()
    shipped._read.cache_clear()
    with library.override(pack_dir=folder):
        yield folder
    shipped._read.cache_clear()


@pytest.fixture
def faulty():
    """The plug-in op `twice`, whose implementations fail in every way; known here and, by its entry
    point, in workers."""
    if str(PLUGINS) not in sys.path:
        sys.path.insert(0, str(PLUGINS))
    return importlib.import_module("gristmill_faulty")


@pytest.fixture
def x():
    """A few rows."""
    import torch

    return torch.randn(6, 32)


@pytest.fixture
def weight():
    """A weight for them."""
    import torch

    return torch.randn(32)


@pytest.fixture
def user_modules(monkeypatch):
    """Have processes of ours find the modules in `tests/users`."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(USERS), os.environ["PYTHONPATH"]]))


@pytest.fixture
def only(monkeypatch, faulty):
    """Have runs know no other implementations of any op than those of these names."""
    from gristmill.core.registry import implementations

    def keep(*names):
        monkeypatch.setattr(
            "gristmill.tuning.runner.implementations",
            lambda op: tuple(i for i in implementations(op) if i.name in names),
        )

    return keep


@pytest.fixture
def run(fresh_store):
    """Run the command line in this process, with a plan store of its own."""
    from typer.testing import CliRunner

    from gristmill.cli.app import app

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "140"})
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return run
