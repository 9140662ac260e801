"""Calls of artifacts in C, by ctypes, in a process whose driver is the fake one."""

from __future__ import annotations

import concurrent.futures
import ctypes
import multiprocessing
import os
import unittest.mock
from ctypes import c_double, c_int32, c_int64, c_uint32, c_uint64, c_void_p

import aot_c_cases as cases
from gristmill.native.runtime import ELEMENTS


class Child:
    """A process with the fake driver, started when it is first used; functions run in it."""

    def __init__(self, folder, **environment):
        self._environment = cases.child_environment(folder) | environment
        self._pool = None

    def run(self, function, *args):
        """`function(*args)` there: a function of a module, as it is found by name."""
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn)
            with unittest.mock.patch.dict(os.environ, self._environment):
                self._pool.submit(int).result()  # started, with that environment
        return self._pool.submit(function, *args).result(timeout=60)

    def close(self):
        if self._pool is not None:
            self._pool.shutdown()


class Pointer(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("dtype", c_int32)]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int32),
        ("shape", c_void_p),
        ("strides", c_void_p),
    ]


class Number(ctypes.Structure):
    _fields_ = [("value", c_double), ("dtype", c_int32)]


class Launch(ctypes.Structure):
    _fields_ = [
        ("symbol", ctypes.c_char * 64),
        ("label", ctypes.c_char * 80),
        ("grid", c_uint32 * 3),
        ("block", c_uint32 * 3),
        ("shared", c_uint32),
        ("attribute_count", c_uint32),
        ("parameter_count", c_uint32),
        ("device", c_int32),
        ("stream", c_uint64),
        ("attribute_ids", c_int32 * 8),
        ("attribute_values", c_uint32 * 3 * 8),
        ("sizes", c_uint32 * 64),
        ("bytes", ctypes.c_ubyte * 128 * 64),
    ]

    @property
    def parameters(self):
        """The bytes of each parameter."""
        return [bytes(self.bytes[i][: self.sizes[i]]) for i in range(self.parameter_count)]

    @property
    def attributes(self):
        """Values of launch attributes by their CUDA numbers."""
        return {
            self.attribute_ids[i]: tuple(self.attribute_values[i])
            for i in range(self.attribute_count)
        }


def at(address, type_="fp16"):
    return Pointer(address, ELEMENTS[type_])


class Library:
    """An artifact in a process, over a fake driver that is as new, on device 0."""

    def __init__(self, path, name, device=0, driver="libcuda.so.1"):
        self.name = name
        self.fake = ctypes.CDLL(driver)
        self.fake.fake_last_size.restype = c_uint64
        self.fake.fake_last_map_address.restype = c_uint64
        self.fake.fake_last_map.restype = c_void_p
        self.fake.fake_launch.restype = ctypes.POINTER(Launch)
        self.fake.fake_launch_size.restype = ctypes.c_size_t
        assert self.fake.fake_launch_size() == ctypes.sizeof(Launch)
        self.c = ctypes.CDLL(str(path))
        getattr(self.c, f"{name}_last_error").restype = ctypes.c_char_p
        self.fake.fake_reset()
        self.fake.fake_use(device)
        assert self.unload() == 0
        self.fake.fake_reset()
        # What other artifacts of this process hold.
        self._others = self.fake.fake_live_libraries(), self._retained()

    def _retained(self):
        return [self.fake.fake_retained(device) for device in range(2)]

    @property
    def loaded(self):
        """Libraries or modules that this artifact has loaded."""
        return self.fake.fake_live_libraries() - self._others[0]

    @property
    def retained(self):
        """How often this artifact retains each device's primary context."""
        return [now - then for now, then in zip(self._retained(), self._others[1], strict=True)]

    @property
    def error(self):
        return getattr(self.c, f"{self.name}_last_error")().decode()

    def unload(self):
        return getattr(self.c, f"{self.name}_unload")()

    def preload(self, device=-1):
        return getattr(self.c, f"{self.name}_preload")(device)

    def calls(self, function):
        return self.fake.fake_calls(function.encode())

    def fail(self, function, code=999, skip=0, times=1):
        self.fake.fake_fail(function.encode(), code, skip, times)

    def call(self, kernel, *args, warps=4, stages=3, grid=(2, 3, 4), stream=0x5151):
        """A call; plain integers are 64-bit ones, and floats doubles."""
        types = {int: c_int64, float: c_double}
        given = [types[type(a)](a) if type(a) in types else a for a in args]
        more = [c_int32(warps), c_int32(stages), *map(c_int64, grid), c_void_p(stream)]
        return getattr(self.c, kernel)(*given, *more)

    def ok(self, kernel, *args, **more):
        """A call that succeeds; returns what the driver was asked for."""
        before = self.fake.fake_launches()
        status = self.call(kernel, *args, **more)
        assert status == 0, self.error
        assert self.fake.fake_launches() == before + 1
        return self.fake.fake_launch(before).contents

    def add(self, warps=4, stages=3, **arguments):
        """A call of the kernel of `add_entry` that succeeds."""
        given = self.add_arguments(**arguments)
        return self.ok(f"{self.name}_add", *given, warps=warps, stages=stages)

    @staticmethod
    def add_arguments(x=0x1000, y=0x2000, out=0x3000, n=1024, alpha=1.5, block=64, type_="fp16"):
        return at(x, type_), at(y, type_), at(out, type_), n, alpha, block
