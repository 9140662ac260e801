"""Operators in artifacts whose binaries are the fake driver's: what the tests of their C functions
and of projects share."""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_double, c_int32, c_int64, c_void_p
from dataclasses import replace

import aot_c_cases as cases
from aot_cases import entry
from gristmill import aot
from gristmill.aot import writing
from gristmill.aot.manifest import Manifest
from gristmill.native import runtime
from gristmill.specs import rms_norm, silu_and_mul

PROBLEMS = {
    "rms_norm": [rms_norm.problem_of((m, 4096)) for m in (16, 4096)]
    + [rms_norm.problem_of((4, 40, 128))],
    "silu_and_mul": [
        silu_and_mul.problem_of((16, 1536), packed=packed) for packed in (True, False)
    ],
}


def manifest(name, ops=tuple(PROBLEMS), arch="sm_90"):
    """A manifest with operators, and its binaries: text for the fake driver."""
    made = [aot.op_kernels(op, arch, problems=PROBLEMS[op]) for op in ops]
    entries, binaries = [], {}
    for kernel in (kernel for one in made for kernel in one.kernels):
        bare = entry(kernel, arch)
        variants = []
        for v in bare.variants:
            more = {"num_warps": v.num_warps, "num_stages": v.num_stages}
            fake, binary = cases.variant(
                bare.name, bare.parameters, v.arch, v.types, v.arguments, **more
            )
            variants.append(fake)
            binaries[fake.binary] = binary
        entries.append(replace(bare, variants=tuple(variants)))
    functions = tuple(one.function for one in made)
    tools = {"gristmill": "0.1.0"}
    return Manifest(name, tuple(entries), tools, functions=functions), binaries


def write(folder, *args, **more):
    """An artifact with operators in `folder`; returns the manifest."""
    made, binaries = manifest(folder.name, *args, **more)
    source = folder.parent / f"{folder.name}-binaries"
    source.mkdir()
    for digest, binary in binaries.items():
        (source / f"{digest}.cubin").write_bytes(binary)
    return writing.write(made, source, writing.check_place(folder))


class Operand(ctypes.Structure):
    """`gristmill_operand`."""

    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int32),
        ("rank", c_int32),
        ("sizes", c_int64 * 8),
        ("strides", c_int64 * 8),
        ("integer", c_int64),
        ("number", c_double),
        ("text", c_char_p),
    ]

    def shape(self):
        """Its sizes and strides."""
        return tuple(self.sizes[: self.rank]), tuple(self.strides[: self.rank])

    @classmethod
    def of(cls, value):
        """Of a test's argument: (element type, address, sizes, strides), a float, or None."""
        made = cls()
        if isinstance(value, float):
            made.number = value
        elif value is not None:
            made.dtype, made.data = runtime.ELEMENTS[value[0]], value[1]
            made.rank = len(value[2])
            made.sizes[: made.rank], made.strides[: made.rank] = value[2:]
        return made


class Plan(ctypes.Structure):
    """`gristmill_op_plan`."""

    _fields_ = [("row", c_int32), ("outputs", c_int32), ("workspaces", c_int32)]
