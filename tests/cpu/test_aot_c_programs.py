"""Artifacts in C as parts of programs: compilers, symbols, CMake and pkg-config, C++, threads under
sanitizers, no driver, and what a call costs. Nothing here needs a GPU."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys

import pytest

import aot_c_cases as cases
from aot_c_cases import DATA, WARNINGS, compiled

pytestmark = pytest.mark.skipif(not cases.HAS["gcc"], reason="needs gcc")

# Beside the driver, on a loaded machine; docs/aot-c.md has what an idle one takes.
MAX_CALL_NS = 400
LIBS = ("-ldl", "-lpthread")


def needs(*tools):
    """Skips a test where a tool is missing."""
    missing = [tool for tool in tools if not cases.HAS[tool]]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def run(*command, drivers=None, **environment):
    """Runs a program, over the fake driver if there is a folder of it; returns what it printed."""
    env = {**(cases.child_environment(drivers) if drivers else os.environ), **environment}
    done = subprocess.run(
        [*map(str, command)], env=env, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}{done.stderr}"
    assert done.stderr == ""
    return done.stdout


COMPILERS = [
    pytest.param(["gcc", "-std=c11", *WARNINGS, "-O2"], id="gcc"),
    pytest.param(["gcc", "-std=c11", *WARNINGS, "-O0"], id="gcc without optimisation"),
    pytest.param(
        ["g++", "-x", "c++", "-std=c++17", *WARNINGS, "-O2"], id="g++", marks=needs("g++")
    ),
    pytest.param(["clang", "-std=c11", *WARNINGS], id="clang", marks=needs("clang")),
    pytest.param(
        ["nvcc", "-x", "cu", "-std=c++17", "-Xcompiler", "-Wall,-Wextra,-Werror"],
        id="nvcc",
        marks=needs("nvcc"),
    ),
]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_compilers_take_it_without_a_warning(compiler, many, tmp_path):
    """From another folder: binaries are found by the include path."""
    where = [f"-I{many}", many / "many.c", "-o", tmp_path / "many.o"]
    done = subprocess.run(
        [*compiler, "-c", *map(str, where)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@needs("nm")
def test_a_shared_library_exports_its_functions_and_needs_no_driver(many):
    path = cases.shared_library(many, "many")
    symbols = [line.split() for line in run("nm", "-D", path).splitlines()]
    defined = {words[-1] for words in symbols if words[-2] in "TDBRVW"}
    artifact = {f"many_{name}" for name in ("last_error", "preload", "unload", "set_allocator")}
    assert artifact <= defined
    kernels = {entry.name for entry, _ in cases.many()[1]}
    derived = {f"{kernel}_{suffix}" for kernel in kernels for suffix in ("grid", "tuned")}
    assert kernels <= defined <= artifact | kernels | derived
    undefined = {words[-1] for words in symbols if words[-2] == "U"}
    assert not {name for name in undefined if name.startswith(("cu", "hip"))}
    if platform.system() == "Linux" and shutil.which("readelf"):
        needed = run("readelf", "-d", path)
        assert "libcuda" not in needed
        assert "libamdhip" not in needed


def test_two_artifacts_in_one_program_and_no_driver(pair, amd, tmp_path):
    folder = tmp_path / "none"
    folder.mkdir()
    where = [f"-I{pair}", f"-I{amd}"]
    sources = [DATA / "consumer.c", pair / "pair.c", amd / "amd.c"]
    compiled("gcc", "-std=c11", *WARNINGS, *where, *sources, "-o", tmp_path / "consumer", *LIBS)
    assert "the driver cannot be opened" in run(tmp_path / "consumer", drivers=folder)


@needs("g++")
def test_cpp_deduces_types(many, pair, drivers, tmp_path):
    objects = [tmp_path / "many.o", tmp_path / "pair.o"]
    for where, made in zip((many, pair), objects, strict=True):
        compiled("gcc", "-c", f"-I{where}", where / f"{made.stem}.c", "-o", made)
    where = [f"-I{many}", f"-I{pair}"]
    program = [DATA / "wrappers.cc", *objects, "-o", tmp_path / "wrappers", *LIBS]
    compiled("g++", "-std=c++17", *WARNINGS, *where, *program)
    run(tmp_path / "wrappers", drivers=drivers)


@needs("nvcc")
def test_a_cuda_program_calls_it(pair, tmp_path):
    flags = ["-std=c++17", "-Xcompiler", "-Wall,-Wextra,-Werror", f"-I{pair}"]
    compiled("nvcc", *flags, "-c", DATA / "consumer.cu", "-o", tmp_path / "consumer.o")


def sanitized(flag, runtime):
    present = cases.sanitizer(runtime) is not None
    return pytest.param(flag, marks=pytest.mark.skipif(not present, reason=f"gcc has no {runtime}"))


SANITIZERS = ["", sanitized("thread", "tsan"), sanitized("address,undefined", "asan")]


@pytest.mark.parametrize("sanitizers", SANITIZERS)
def test_32_threads_load_each_binary_once(sanitizers, pair, tmp_path):
    flags = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"] if sanitizers else []
    cases.fake_driver(tmp_path, *flags)
    sources = [DATA / "race.c", pair / "pair.c", "-o", tmp_path / "race", *LIBS]
    compiled("gcc", "-std=gnu11", *flags, "-g", "-O1", "-Wall", f"-I{pair}", *sources)
    run(tmp_path / "race", drivers=tmp_path)


def test_children_of_a_process_that_is_loading(pair, drivers, tmp_path):
    sources = [DATA / "forks.c", pair / "pair.c", "-o", tmp_path / "forks", *LIBS]
    compiled("gcc", "-std=gnu11", "-O1", "-Wall", f"-I{pair}", *sources)
    run(tmp_path / "forks", drivers=drivers)


def test_what_a_call_costs(pair, drivers, tmp_path):
    sources = [DATA / "latency.c", pair / "pair.c", "-o", tmp_path / "latency", *LIBS]
    compiled("gcc", "-std=gnu11", "-O2", f"-I{pair}", *sources)
    taken_ns = float(run(tmp_path / "latency", drivers=drivers))
    assert 1 < taken_ns < MAX_CALL_NS


CONSUMER = """
cmake_minimum_required(VERSION 3.18)
project(consumer LANGUAGES C)
{finding}
add_executable(consumer main.c)
target_link_libraries(consumer PRIVATE pair::pair)
"""
MAIN = """
#include "pair.h"
int main(void) {
    const gristmill_pointer x = {0, GRISTMILL_FP16};
    return pair_add(x, x, x, 16, 1.0, 64, 4, 3, 0, 1, 1, 0);
}
"""


@needs("cmake")
@pytest.mark.parametrize("shared", ["OFF", "ON"])
def test_cmake_builds_installs_and_finds_it(shared, pair, tmp_path):
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    common = [*generator, "-DCMAKE_BUILD_TYPE=Release", f"-DBUILD_SHARED_LIBS={shared}"]
    common += ["-DCMAKE_C_FLAGS=-Werror"]
    # Even where link-time optimisation is on.
    common += ["-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=ON", "-DCMAKE_POLICY_DEFAULT_CMP0069=NEW"]
    prefix = tmp_path / "prefix"
    for name, finding in (
        ("within", f"add_subdirectory({pair} pair)"),
        ("found", "find_package(pair REQUIRED)"),
    ):
        source = tmp_path / name
        source.mkdir()
        (source / "CMakeLists.txt").write_text(CONSUMER.format(finding=finding))
        (source / "main.c").write_text(MAIN)
        build = source / "build"
        compiled("cmake", "-S", source, "-B", build, *common, f"-DCMAKE_PREFIX_PATH={prefix}")
        compiled("cmake", "--build", build)
        run(build / "consumer")
        if name == "within":
            compiled("cmake", "--install", build, "--prefix", prefix)
    if shared == "OFF":
        assert (prefix / "lib" / "libpair.a").exists()
    if cases.HAS["pkg-config"]:
        flags = run(
            "pkg-config",
            "--cflags",
            "--libs",
            "--static",
            "pair",
            PKG_CONFIG_PATH=f"{prefix}/lib/pkgconfig",
        )
        compiled("gcc", tmp_path / "within" / "main.c", *flags.split(), "-o", tmp_path / "main")
        run(tmp_path / "main", LD_LIBRARY_PATH=str(prefix / "lib"))


ALONE = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.pair_last_error.restype = ctypes.c_char_p
print(library.pair_preload(-1), library.pair_last_error().decode())
print(library.pair_preload(0))
print(library.pair_unload())
"""


def test_without_a_driver_or_with_an_old_one_a_call_says_so(pair, tmp_path):
    library = cases.shared_library(pair, "pair")

    def asked():
        return run(sys.executable, "-S", "-c", ALONE, library, drivers=tmp_path).splitlines()

    (tmp_path / "libcuda.so.1").write_bytes(b"no library")
    first, *rest = asked()
    assert first.startswith("4 pair_preload: the driver cannot be opened: ")
    assert rest == ["4", "0"]
    (tmp_path / "old.c").write_text("int cuInit(unsigned flags) { return (int)flags; }\n")
    cases.compiled("gcc", "-shared", "-fPIC", tmp_path / "old.c", "-o", tmp_path / "libcuda.so.1")
    first, *rest = asked()
    assert "libcuda.so.1 has no function cu" in first
    assert "the driver is too old" in first
    assert rest == ["4", "0"]


BROKEN = (
    """
import ctypes, sys
fake = ctypes.CDLL("libcuda.so.1")
fake.fake_fail(b"cuInit", 100, 0, 1)
fake.fake_use(0)
"""
    + ALONE
)


def test_a_driver_that_does_not_start_is_tried_again(pair, drivers):
    library = cases.shared_library(pair, "pair")
    shown = run(sys.executable, "-S", "-c", BROKEN, library, drivers=drivers)
    first, second, third = shown.splitlines()
    assert first.startswith("4 pair_preload: cuInit failed with error 100 CUDA_ERROR_FAKE")
    assert (second, third) == ("0", "0")
