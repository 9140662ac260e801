"""The examples of ahead-of-time compilation: built for architectures that are not here, their
programs compiled with -Werror and run over the fake driver."""

from __future__ import annotations

import shutil
import subprocess

import pytest

import aot_c_cases as cases
import aot_example_cases as examples
from aot_cases import EXAMPLES
from gristmill import aot
from gristmill.aot.inspection import faults

VECTOR_ADD = EXAMPLES / "vector_add"
# The goal is 15 s on two idle cores; docs/aot-operators.md has what was measured. CI machines are
# shared, and this bound only tells a build that is broken.
MAX_MATMUL_S = 120


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


def test_64_patterns_of_the_matmul_are_few_binaries(tmp_path):
    said = examples.built("matmul", tmp_path / "matmul", "sm_90")
    assert said["variants"] == 64 + 2  # and the fall-backs for 64-bit sizes
    assert said["binaries"] <= 40
    assert said["size_bytes"]["sm_90"] < 2 << 20
    assert said["seconds"] < MAX_MATMUL_S
