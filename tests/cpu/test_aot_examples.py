"""The examples of ahead-of-time compilation: built for architectures that are not here, their
programs compiled with -Werror and run over the fake driver."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import textwrap

import aot_module_process
import pytest

import aot_c_cases as cases
import aot_example_cases as examples
from aot_cases import EXAMPLES, module
from gristmill import aot
from gristmill.aot.inspection import faults

VECTOR_ADD = EXAMPLES / "vector_add"
MOE = EXAMPLES / "fused_moe"
sys.path.append(str(MOE))


def needs(*tools):
    missing = [tool for tool in tools if not cases.HAS[tool]]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@pytest.fixture(scope="module")
def add(tmp_path_factory):
    """`vector_add` as an artifact, and it again for the fake driver."""
    real = tmp_path_factory.mktemp("real") / "add"
    said = examples.built("vector_add", real, "sm_90", "gfx942")
    fake = tmp_path_factory.mktemp("fake") / "add"
    examples.for_fake_driver(real, fake)
    return real, fake, said


def answer(program, drivers, *arguments):
    return subprocess.run(
        [program, *arguments],
        env=cases.child_environment(drivers),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_vector_add_is_built_for_both_vendors(add):
    real, _, said = add
    assert set(said["size_bytes"]) == {"sm_90", "gfx942"}
    assert faults(real, aot.read_manifest(real)) == []


@needs("cmake", "g++")
def test_the_cpp_program_builds_with_cmake_and_its_calls_are_answered(add, drivers, tmp_path):
    _, fake, _ = add
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = [f"-DARTIFACT={fake}", "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_C_FLAGS=-Werror"]
    cases.compiled("cmake", "-S", VECTOR_ADD, "-B", tmp_path / "build", *generator, *options)
    cases.compiled("cmake", "--build", tmp_path / "build")
    program = tmp_path / "build" / "vector_add"
    done = answer(program, drivers, "--no-results")
    assert (done.returncode, done.stderr) == (0, "")
    # This driver has no memory to give: that is said, and is no wrong result.
    done = answer(program, drivers)
    assert done.returncode == 77
    assert "the driver has no function cuMem" in done.stderr
    (tmp_path / "libcuda.so.1").write_bytes(b"no library")
    done = answer(program, tmp_path, "--no-results")
    assert done.returncode == 1
    assert "the driver cannot be opened" in done.stderr


@needs("g++")
def test_a_program_whose_calls_are_refused_says_why(add, drivers, tmp_path):
    """The program fails where the artifact lacks what it calls."""
    _, fake, _ = add
    source = (VECTOR_ADD / "main.cpp").read_text()
    (tmp_path / "main.cpp").write_text(source.replace("1024, 128, 4,", "1024, 129, 4,"))
    where = [f"-I{fake}", f"-I{VECTOR_ADD}", "-std=c++17"]
    cases.compiled("gcc", "-c", f"-I{fake}", fake / "add.c", "-o", tmp_path / "add.o")
    program = [tmp_path / "main.cpp", tmp_path / "add.o", "-o", tmp_path / "main", "-ldl"]
    cases.compiled("g++", *where, *program, "-lpthread")
    done = answer(tmp_path / "main", drivers, "--no-results")
    assert done.returncode == 1
    assert "BLOCK_SIZE" in done.stderr


@needs("nvcc")
def test_the_cuda_program_compiles_without_a_warning_and_runs(add, drivers, tmp_path):
    _, fake, _ = add
    cases.compiled("gcc", "-c", f"-I{fake}", fake / "add.c", "-o", tmp_path / "add.o")
    strict = ["--Werror=all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror", "-std=c++17"]
    program = [VECTOR_ADD / "main.cu", tmp_path / "add.o", "-o", tmp_path / "main", "-arch=sm_90"]
    cases.compiled("nvcc", *strict, f"-I{fake}", *program, "-ldl")
    done = answer(tmp_path / "main", drivers, "--no-results")
    assert (done.returncode, done.stderr) == (0, "")
    done = answer(tmp_path / "main", drivers)
    assert done.returncode == 77
    assert "there is no device" in done.stderr


# ------------------------------------------------------------------------------------- fused_moe


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    """The FP8 kernel for one output type, weighted, of two experts a token: a part of the example,
    which takes a minute and more."""
    spec = module(MOE / "spec.py", "aot_example_moe_spec")
    part = spec.fused_moe.spec(MUL_ROUTED_WEIGHT=[True], top_k=[2]).types(C=["fp16"])
    folder = tmp_path_factory.mktemp("moe") / "fused_moe"
    return folder, part.build(folder, spec.TARGETS)


def test_the_moe_kernel_is_built_without_spills(moe):
    folder, report = moe
    assert faults(folder, report.manifest) == []
    # What servers pass comes first. Bytes one by one, which the last asks for, are not for speed.
    specialised, _fallback = report.manifest.kernels[0].variants
    assert specialised.usage.spill_bytes == 0
    assert specialised.usage.shared_bytes <= 232_448


def test_the_moe_kernel_in_bf16_is_built_for_amd(tmp_path):
    """Its FP8 type is none of gfx942's; unquantised, it is the same kernel with no scales."""
    spec = module(MOE / "spec.py", "aot_example_moe_spec")
    absent = aot.Ptr("fp32", align=[1], optional=True)
    kernel = (
        spec.fused_moe.spec(a_ptr=aot.Ptr("bf16"), b_ptr=aot.Ptr("bf16"))
        .spec(a_scale_ptr=absent, b_scale_ptr=absent, group_n=[0], group_k=[0])
        .spec(use_fp8_w8a8=[False], MUL_ROUTED_WEIGHT=[True], top_k=[2], BLOCK_SIZE_K=[32])
        .types(C=["bf16"])
        .where(lambda v: v.a_scale_ptr is None and v.b_scale_ptr is None)
        .where(lambda v: v.unspecialised)
    )
    report = kernel.build(tmp_path / "moe", "gfx942")
    assert report.variants == 1
    assert faults(tmp_path / "moe", report.manifest) == []


CALL = """
import sys
sys.modules["triton"] = None  # importing it raises
sys.path.append({folder!r})
import torch
from compare import CONFIG, arrange, inputs
from gristmill import aot

case = dict(M=7, N=128, K=256, E=8, top_k=2, out="float16", weighted=True)
call = arrange(**inputs(case, 0, "cpu"))
names = {{torch.float8_e4m3fn: "fp8e4nv", torch.int32: "i32"}}
passed = [
    (a.data_ptr(), names.get(a.dtype, a.dtype)) if isinstance(a, torch.Tensor) else a
    for a in call.arguments
]
artifact = aot.load({artifact!r})
launched = (CONFIG.num_warps, CONFIG.num_stages, *call.grid)
artifact.fused_moe_kernel(*passed, *launched, stream=0)
try:
    artifact.fused_moe_kernel(*passed[:-5], 6, *passed[-4:], *launched, stream=0)
except artifact.Error as error:
    print(error)
"""


@aot_module_process.NEEDS
def test_the_moe_kernel_is_called_from_python_without_triton(moe, drivers, tmp_path):
    fake = tmp_path / "fused_moe"
    examples.for_fake_driver(moe[0], fake)
    code = CALL.format(folder=str(MOE), artifact=str(fake))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**cases.child_environment(drivers), "GRISTMILL_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "top_k" in done.stdout  # the nearest variant, and what it lacks


def test_the_cases_of_the_comparison_have_every_pair():
    import covering

    chosen = covering.pairwise()
    assert all(map(covering.fits, chosen))
    assert len(chosen) < 30
    for (one, ones), (other, others) in itertools.combinations(covering.FACTORS.items(), 2):
        for pair in itertools.product(ones, others):
            assert any((case[one], case[other]) == pair for case in chosen), (one, other, pair)


@aot_module_process.NEEDS
def test_the_benchmark_runs_what_needs_no_device(tmp_path):
    """Its figures are the GPU machine's to judge; here they are there."""
    benchmark = EXAMPLES.parents[1] / "benchmarks" / "aot.py"
    command = [sys.executable, benchmark, "--out", tmp_path, "--parts", "dispatch", "launch"]
    environment = {**os.environ, "PYTHONPATH": str(examples.SOURCE), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 1, done.stderr  # one part fails: there is no device
    found = json.loads((tmp_path / "aot.json").read_text())["results"]
    assert 1 < found["dispatch"]["c_ns"] < found["dispatch"]["python_ns"] < 10_000
    assert found["launch"]["ok"] is False
    assert found["launch"]["error"]
