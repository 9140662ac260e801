"""Artifacts in C, laid out and compiled once a session, and a process over the fake driver."""

from __future__ import annotations

import copy
import functools
import random

import aot_module_process
import aot_op_cases
import pytest

import aot_c_cases as cases
import aot_c_process
from gristmill import aot
from gristmill.tuning.strategies import _learner
from gristmill.tuning.strategies._pool import Pool

ASAN = cases.sanitizer("asan")
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1", "-O1")


@functools.lru_cache(maxsize=2)
def _pool(space, problem, target):
    return Pool(space, problem, target, 0)


@pytest.fixture
def one_pool(monkeypatch):
    """Searches of one space go over one list of its configs, where it is held as a whole: making
    that list is a third of a search's time, and no seed changes it."""

    def pool(space, problem, target, seed):
        found = _pool(space, problem, target)
        if not found.is_whole:
            return Pool(space, problem, target, seed)
        found = copy.copy(found)
        found.random = random.Random(seed)
        return found

    monkeypatch.setattr(_learner, "Pool", pool)


@pytest.fixture(
    scope="session",
    params=[
        "plain",
        pytest.param("sanitized", marks=pytest.mark.skipif(not ASAN, reason="gcc has no ASan")),
    ],
)
def flags(request):
    """Flags to compile artifacts with: none, or those of gcc's sanitizers."""
    return SANITIZED if request.param == "sanitized" else ()


@pytest.fixture(scope="session")
def drivers(tmp_path_factory):
    """A folder with the fake drivers, for LD_LIBRARY_PATH."""
    folder = tmp_path_factory.mktemp("drivers")
    for hip in (False, True):
        cases.fake_driver(folder, hip=hip)
    return folder


def _laid_out(tmp_path_factory, name, entries):
    folder = tmp_path_factory.mktemp(name)
    cases.lay_out(folder, name, entries)
    return folder


@pytest.fixture(scope="session")
def many(tmp_path_factory):
    """The folder of an artifact with a kernel of each sort."""
    return _laid_out(tmp_path_factory, *cases.many())


@pytest.fixture(scope="session")
def amd(tmp_path_factory):
    """The folder of an artifact for AMD's devices."""
    return _laid_out(tmp_path_factory, *cases.amd())


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """The folder of an artifact of one kernel, for two architectures."""
    return _laid_out(tmp_path_factory, "pair", [cases.add_entry("pair_add")])


@pytest.fixture(scope="session")
def library(many, flags):
    """The artifact `many` as a shared library."""
    return cases.shared_library(many, "many", *flags)


@pytest.fixture(scope="session")
def amd_library(amd, flags):
    """The artifact `amd` as a shared library."""
    return cases.shared_library(amd, "amd", *flags)


@pytest.fixture(scope="session")
def pair_library(pair, flags):
    """The artifact `pair` as a shared library."""
    return cases.shared_library(pair, "pair", *flags)


@pytest.fixture(scope="session")
def child(drivers, flags):
    """A process whose drivers are the fake ones."""
    # Python itself leaks at its end; what the artifacts hold is counted by the fake driver.
    # C++'s library comes with it, for torch's exceptions: the runtime wants it before it starts.
    preload = f"{ASAN}:{cases.sanitizer('stdc++')}"
    sanitized = {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0"} if flags else {}
    made = aot_c_process.Child(drivers, **sanitized)
    yield made
    made.close()


@pytest.fixture(scope="session")
def tensors(tmp_path_factory):
    """The module of tensors that say that they are on a GPU."""
    return aot_module_process.device_tensors(tmp_path_factory.mktemp("tensors"))


@pytest.fixture(scope="session")
def norms(tmp_path_factory):
    """An artifact with two operators, whose binaries are the fake driver's."""
    folder = tmp_path_factory.mktemp("artifact") / "norms"
    aot_op_cases.write(folder)
    return folder


@pytest.fixture(scope="session")
def kernel_alone(tmp_path_factory):
    """An artifact, whole, with a kernel that is no operator's."""
    folder = tmp_path_factory.mktemp("alone") / "alone"
    return aot_module_process.build(folder, "alone", [cases.add_entry("alone_add")])


@pytest.fixture(scope="session")
def project(norms, kernel_alone, tmp_path_factory):
    """The project of both."""
    out = tmp_path_factory.mktemp("project") / "fastnorms"
    return aot.wheel([norms, kernel_alone], out, name="fastnorms", namespace="norms")
