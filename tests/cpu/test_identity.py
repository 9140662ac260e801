"""What an implementation is known by in the store: the files that decide what it computes."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time

import pytest

from gristmill.core import registry
from gristmill.core.identity import source_hash

FILES = {
    "__init__": "",
    "spec": """
        from gristmill.core.op import Bounds, Op
        from ident_plug import numbers
        def reference(x): return x * numbers.TWO
        OP = Op(
            schema="ident(Tensor x) -> Tensor", check=lambda x: None, reference=reference,
            magnitude=reference, inputs=lambda p, g, v: (), outputs=lambda p: (),
            axes=lambda p: (), cost=lambda p: None, bounds=lambda p: Bounds(0, 0, 0, ""),
            workloads=(), dtypes=(),
        )
        """,
    "numbers": "TWO = 2",
    "constants": "BLOCK = 8",
    "helper": "from .deeper import help",
    "deeper": "def help(x): return x",
    "unrelated": "",
    "first": """
        from ident_plug.spec import OP
        from ident_plug.constants import BLOCK
        from ident_plug import helper
        import torch, gristmill.settings
        def call(x): return helper.help(x) * BLOCK
        """,
    "second": "from ident_plug.spec import OP\ndef call(x): return x + x",
}


@pytest.fixture
def plug(tmp_path, monkeypatch):
    """A third party's package; the fixture's value is where its files are."""
    folder = tmp_path / "ident_plug"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / f"{name}.py").write_text("\n".join(s.strip() for s in text.splitlines()))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield folder
    for name in [n for n in sys.modules if n.split(".")[0] == "ident_plug"]:
        del sys.modules[name]


def known_as(folder, name):
    importlib.import_module("ident_plug.unrelated")
    module = importlib.import_module(f"ident_plug.{name}")
    return source_hash(module.OP, folder / f"{name}.py", module.__name__)


@pytest.mark.parametrize("edited", ["first", "spec", "numbers", "constants", "helper", "deeper"])
def test_an_edit_of_what_decides_the_result_changes_the_hash(plug, edited):
    before = known_as(plug, "first")
    assert known_as(plug, "first") == before
    with (plug / f"{edited}.py").open("a") as file:
        file.write("\n# edited\n")
    assert known_as(plug, "first") != before


@pytest.mark.parametrize("edited", ["second", "unrelated"])
def test_an_edit_of_another_kernel_does_not(plug, edited):
    known_as(plug, "second")
    before = known_as(plug, "first")
    (plug / f"{edited}.py").write_text("edited = True")
    assert known_as(plug, "first") == before


def test_ours_include_the_spec_and_the_shared_files(monkeypatch):
    seen = []
    real = type(registry.implementation("matmul", "aten").source).read_bytes
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda p: seen.append(p.name) or real(p))
    expected = {
        ("matmul", "inductor"): {"matmul.py", "compiled.py", "precision.py", "inductor.py"},
        ("matmul", "aten"): {"matmul.py", "precision.py", "aten.py"},
        ("matmul", "tiled"): {"matmul.py", "tiles.py", "tiled.py"},
        ("rms_norm", "row"): {"rms_norm.py", "_rows.py", "rows.py", "row.py"},
        ("silu_and_mul_backward", "tiles"): {
            *("silu_and_mul_backward.py", "silu_and_mul.py", "_rows.py", "_activations.py"),
            *("_gated.py", "_gated_backward.py", "gated_tiles.py"),
            *("activations.py", "row_tiles.py", "rows.py", "tiles.py"),
        },
    }
    for (op, name), files in expected.items():
        i = registry.implementation(op, name)
        seen.clear()
        source_hash(i.op, i.source, i.module)
        assert set(seen) == files


def test_the_hash_is_cheap():
    implementation = registry.implementation("matmul", "tiled")
    times = []
    for _ in range(20):
        start = time.perf_counter()
        source_hash(implementation.op, implementation.source, implementation.module)
        times.append(time.perf_counter() - start)
    assert min(times) < 1e-3


ALONE = """
import sys
from gristmill.core.registry import implementation, implementations
op, name, everything = sys.argv[1:]
if everything == "1":
    import gristmill.tuning.runner, gristmill.bench.suite, gristmill.testing
    implementations("matmul"), implementations("rms_norm")
print(implementation(op, name).source_hash)
"""


@pytest.mark.parametrize(("op", "name"), [("matmul", "aten"), ("rms_norm", "row")])
def test_the_hash_is_the_same_whatever_else_is_imported(op, name):
    found = {
        subprocess.run(
            [sys.executable, "-c", ALONE, op, name, everything],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for everything in ("0", "1")
    }
    assert len(found) == 1


THREADS = """
import importlib, os, threading
import torch
from gristmill.core import registry
def everything(): registry.implementations("rms_norm"), registry.implementations("matmul")
def one(): registry.implementation("matmul", "tiled")
def module(): importlib.import_module("gristmill.kernels.rms_norm.row")
threads = [threading.Thread(target=f) for f in (everything, one, module, everything, one, module)]
for thread in threads: thread.start()
for thread in threads: thread.join(30)
print([t.is_alive() for t in threads].count(True), flush=True)
os._exit(0)
"""


def test_threads_may_import_kernels_in_any_order():
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", THREADS], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "0", done.stderr


HASHES = """
import sys
if sys.argv[1:]:
    import gristmill.cli.tune, gristmill.tuners.autotune
from gristmill.core.registry import implementations, op_names
print(sorted((op, i.name, i.source_hash) for op in op_names() for i in implementations(op)))
"""


def test_what_else_a_process_has_loaded_does_not_change_what_a_kernel_is_known_by():
    found = [
        subprocess.run(
            [sys.executable, "-c", HASHES, *more], capture_output=True, text=True, check=True
        ).stdout
        for more in ((), ("everything",))
    ]
    assert "split_k" in found[0]
    assert found[0] == found[1]
