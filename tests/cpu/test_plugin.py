"""A third party's package, installed with pip into an environment of its own: its op is listed,
tuned, conformance-tested, benchmarked and compiled like ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILE = """
import json
from gristmill.compile.executor import EXECUTOR
from gristmill.core.registry import implementation
from gristmill.core.target import named_target
impl = implementation("squared_relu", "elementwise")
problem = impl.op.workload("llama3-8b-m512").problem
found = {}
for arch in ("sm_80", "sm_90", "sm_100", "gfx942"):
    target, values = named_target(arch), problem.meta()
    config = impl.config(None, problem, target)
    (launch,) = impl.launches(values, *impl.allocate(values, config), config)
    found[arch] = EXECUTOR.compile(launch, target).spills
print(json.dumps(found))
"""
CALL = """
import torch
from gristmill_squared_relu import squared_relu
x = torch.randn(3, 40, requires_grad=True)
y = squared_relu(x)
torch.testing.assert_close(y, x.relu().square())
torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], 2 * x.detach().relu())
compiled = torch.compile(squared_relu, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(x), y)
torch.library.opcheck(torch.ops.gristmill.squared_relu.default, (x,))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A new environment with the example installed; torch, Triton and gristmill are ours."""
    folder = tmp_path_factory.mktemp("plugin")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    where = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    paths = [ROOT / "src", sysconfig.get_path("purelib")]
    Path(where.strip(), "gristmill.pth").write_text("\n".join(map(str, paths)))
    shutil.copytree(ROOT / "examples" / "plugin", folder / "plugin")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", folder / "plugin"], check=True)
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    variables["GRISTMILL_CACHE_DIR"] = str(folder / "cache")

    def run(*command: str, **more: str) -> str:
        done = subprocess.run(
            [python, *command],
            cwd=folder,
            env={**variables, **more},
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def gristmill(environment, *args):
    return json.loads(environment("-m", "gristmill", *args, "--json"))


def test_it_is_listed_with_its_implementations(environment):
    found = {op["name"]: op for op in gristmill(environment, "list")["ops"]}
    names = {i["name"] for i in found["squared_relu"]["implementations"]}
    assert names == {"aten", "elementwise", "inductor"}


def test_it_is_called_differentiated_and_compiled(environment):
    environment("-c", CALL)


def test_it_is_tuned_and_explained(environment):
    workload = ("squared_relu", "--workload", "llama3-8b-m1")
    gristmill(environment, "tune", *workload, "--budget", "20")
    text = environment("-m", "gristmill", "explain", *workload)
    assert "aten" in text
    assert "Triton kernels need a GPU" in text


def test_it_is_benchmarked(environment):
    report = gristmill(environment, "bench", "squared_relu", "--workload", "llama3-8b-m64")
    assert report["op"] == "squared_relu"


def test_it_passes_the_conformance_suite(environment):
    output = environment("-m", "pytest", "-q", "plugin/tests", TRITON_INTERPRET="1")
    assert " passed" in output
    assert "failed" not in output


def test_it_compiles_for_every_architecture(environment):
    spills = json.loads(environment("-c", COMPILE))
    assert set(spills) == {"sm_80", "sm_90", "sm_100", "gfx942"}
    assert not any(spills.values())
