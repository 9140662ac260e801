"""Calls of an artifact's Python module, in a process whose driver is the fake one and that has
tensors which say that they are on a GPU."""

from __future__ import annotations

import ctypes
import sysconfig
from pathlib import Path

import pytest

import aot_c_cases as cases
from aot_c_process import Launch
from gristmill import aot, native
from gristmill.aot import writing
from gristmill.native.building import loaded

STREAM = 0x7777
FLOAT16, FLOAT32, BFLOAT16 = (2, 16), (2, 32), (4, 16)  # DLPack's codes and bits


NEEDS = pytest.mark.skipif(
    not cases.HAS["gcc"] or not Path(sysconfig.get_paths()["include"], "Python.h").exists(),
    reason="needs gcc and Python's headers",
)


def build(folder, name, entries):
    """An artifact, whole, in `folder`."""
    laid_out = folder.parent / f"{folder.name}-laid-out"
    manifest = cases.lay_out(laid_out, name, entries)
    writing.write(manifest, laid_out / "kernels", writing.check_place(folder))
    return folder


def python_headers():
    """The folder of Python's headers."""
    return Path(sysconfig.get_paths()["include"])


def compiled(folder, name, *flags):
    """An artifact's module, compiled into its folder `build`."""
    out = folder / "build" / f"{name}.abi3.so"
    out.parent.mkdir()
    flags = [*cases.WARNINGS, "-O2", "-fPIC", "-shared", "-fvisibility=hidden", *flags]
    includes = [f"-I{folder}", f"-isystem{python_headers()}"]
    source = folder / f"{name}_module.c"
    cases.compiled("gcc", "-std=c11", *flags, *includes, source, "-o", out)
    return out


def device_tensors(folder):
    """The module of tensors that say that they are on a GPU."""
    out = folder / "device_tensors.so"
    includes = [f"-I{Path(native.__file__).parent}", f"-I{python_headers()}"]
    source = cases.DATA / "device_tensors.c"
    cases.compiled("gcc", "-std=gnu11", "-O2", "-fPIC", "-shared", *includes, source, "-o", out)
    return out


class Module:
    """An artifact, opened in a process over a fake driver that is as new."""

    def __init__(self, folder, tensors, device=0):
        self.artifact = aot.load(folder)
        self.tensors = loaded("device_tensors", tensors)
        self.tensors.set_stream(STREAM)
        self.fake = ctypes.CDLL("libcuda.so.1")
        self.fake.fake_launch.restype = ctypes.POINTER(Launch)
        self.fake.fake_reset()
        self.fake.fake_use(device)
        self.artifact.unload()
        self.fake.fake_reset()

    def tensor(self, address, dtype=FLOAT16, **more):
        """A tensor on device 0."""
        return self.tensors.Tensor(address, dtype, **more)

    def ok(self, kernel, *args, **more):
        """A call that succeeds; returns what the driver was asked for."""
        before = self.fake.fake_launches()
        assert self.artifact[kernel](*args, **more) is None
        assert self.fake.fake_launches() == before + 1
        return self.fake.fake_launch(before).contents

    def add_arguments(self, dtype=FLOAT16):
        """Arguments of `many_add`."""
        tensors = [self.tensor(address, dtype) for address in (0x1000, 0x2000, 0x3000)]
        return [*tensors, 1024, 1.5, 64]
