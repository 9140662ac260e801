"""Artifacts in C, laid out and compiled once a session, and a process over the fake driver."""

from __future__ import annotations

import aot_c_cases as cases
import pytest


@pytest.fixture(scope="session")
def drivers(tmp_path_factory):
    """A folder with the fake drivers, for LD_LIBRARY_PATH."""
    folder = tmp_path_factory.mktemp("drivers")
    for hip in (False, True):
        cases.fake_driver(folder, hip=hip)
    return folder


@pytest.fixture(scope="session")
def artifact(tmp_path_factory):
    """The folder of the artifact `many`."""
    folder = tmp_path_factory.mktemp("many")
    cases.lay_out(folder, *cases.many())
    return folder


@pytest.fixture(scope="session")
def library(artifact):
    """The artifact `many` as a shared library."""
    return cases.shared_library(artifact, "many")


@pytest.fixture(scope="session")
def amd_library(tmp_path_factory):
    """An artifact for AMD's devices as a shared library."""
    folder = tmp_path_factory.mktemp("amd")
    cases.lay_out(folder, *cases.amd())
    return cases.shared_library(folder, "amd")


@pytest.fixture(scope="session")
def child(drivers):
    """A process whose drivers are the fake ones."""
    made = cases.Child(drivers)
    yield made
    made.close()
