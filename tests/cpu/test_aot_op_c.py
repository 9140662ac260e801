"""Operators of an artifact as C functions: each row, output and launch is what the manifest says,
read in Python. Launches go to the fake driver."""

from __future__ import annotations

import ctypes
import struct

import aot_module_process as process
import pytest
from aot_op_cases import Operand, Plan

import aot_c_cases as cases
from aot_c_process import Launch
from gristmill import aot
from gristmill.aot.row_choice import value

pytestmark = process.NEEDS
NO_SPECIALISATION, NO_ARCHITECTURE = 2, 3


@pytest.fixture(scope="module")
def library(project, tmp_path_factory):
    """Its C functions."""
    out = tmp_path_factory.mktemp("library") / "libnorms_ops.so"
    flags = [*cases.WARNINGS, "-O2", "-fPIC", "-shared", f"-I{project}/include"]
    folder = project / "csrc" / "norms"
    cases.compiled("gcc", "-std=c11", *flags, f"-I{folder}", folder / "norms_ops.c", "-o", out)
    return out


def names_of(form, given):
    """What the names of expressions stand for."""
    found = {}
    for argument, one in zip(form.arguments, given, strict=True):
        if argument.kind == "tensor":
            found[f"{argument.name}_address"] = one[1]
            for d, (size, stride) in enumerate(zip(one[2], one[3], strict=True)):
                found[f"{argument.name}_size_{d}"], found[f"{argument.name}_stride_{d}"] = (
                    size,
                    stride,
                )
    return found


def expected_bytes(kernel, launch, names, tensors, floats):
    """What the binary is passed, by the manifest: of the arguments that it may have as they are."""
    made = []
    for parameter, given in zip(kernel.parameters, launch.arguments, strict=True):
        if given.kind == "tensor":
            made.append(struct.pack("<Q", tensors[given.source]))
        elif given.kind == "scalar":
            made.append(struct.pack("<f", floats[given.source]))
        elif given.kind == "integer" or (given.kind == "constant" and parameter.kind == "integer"):
            number = value(given.source, names) if given.kind == "integer" else given.value
            made.append(struct.pack("<q", number))
    return made


def calls_agree(path, folder, op, forms):
    """Every call's row, outputs and launches, against the manifest read in Python."""
    c, fake = ctypes.CDLL(str(path)), ctypes.CDLL("libcuda.so.1")
    fake.fake_launch.restype = ctypes.POINTER(Launch)
    fake.fake_reset()
    fake.fake_use(0)
    manifest = aot.read_manifest(folder)
    (function,) = (f for f in manifest.functions if f.name == op)
    kernels = {kernel.name: kernel for kernel in manifest.kernels}
    rows = [row for form in function.forms for row in form.rows]
    for number, given in forms:
        form = function.forms[number]
        operands = (Operand * 8)(*map(Operand.of, given))
        plan, names = Plan(), names_of(form, given)
        status = getattr(c, f"norms_{op}_plan")(operands, ctypes.byref(plan))
        row = aot.row_of(form, "sm_90", names)
        c.norms_last_error.restype = ctypes.c_char_p
        assert status == (0 if row else NO_SPECIALISATION), (given, c.norms_last_error())
        if row is None:
            continue
        assert rows[plan.row] == row, given
        made = [*form.outputs, *row.workspace]
        assert (plan.outputs, plan.workspaces) == (len(form.outputs), len(row.workspace))
        tensors = {
            a.name: g[1] for a, g in zip(form.arguments, given, strict=True) if a.kind == "tensor"
        }
        floats = {
            a.name: g for a, g in zip(form.arguments, given, strict=True) if a.kind == "scalar"
        }
        for i, tensor in enumerate(made):
            operand = operands[len(given) + i]
            parts = (tensor.sizes, tensor.strides)
            assert operand.shape() == tuple(tuple(value(e, names) for e in p) for p in parts)
            operand.data = tensors[tensor.name] = 0x100000 * (i + 1)
        before = fake.fake_launches()
        assert getattr(c, f"norms_{op}_run")(operands, ctypes.byref(plan), ctypes.c_void_p(7)) == 0
        grids = [[value(e, names) for e in launch.grid] for launch in row.launches]
        real = [one for one in zip(row.launches, grids, strict=True) if 0 not in one[1]]
        assert fake.fake_launches() == before + len(real)
        for i, (launch, grid) in enumerate(real):
            seen = fake.fake_launch(before + i).contents
            assert (seen.symbol.decode(), list(seen.grid), seen.stream) == (launch.kernel, grid, 7)
            left = iter(expected_bytes(kernels[launch.kernel], launch, names, tensors, floats))
            for passed in seen.parameters[
                :-2
            ]:  # each is the next, or the one after what is compiled in
                assert any(passed == whole[: len(passed)] for whole in left), (given, launch)


def tensor(shape, strides=None, type_="bf16", address=0x10000):
    """A tensor: (element type, address, sizes, strides)."""
    made, step = [], 1
    for size in reversed(shape):
        made.insert(0, step)
        step *= max(size, 1)
    return type_, address, shape, strides or tuple(made)


def test_c_functions_do_what_the_manifest_says(child, norms, library):
    weight = tensor((4096,), address=0x80000)
    short = tensor((128,), address=0x80000)
    rows = [(0, (tensor((m, 4096)), weight, 1e-5)) for m in (0, 1, 2, 15, 16, 17, 4095, 70_000)]
    rows += [
        (0, (tensor((33, 4096), (9000, 1)), weight, 1e-6)),  # rows apart
        (0, (tensor((33, 4096), address=0x10008), weight, 1e-6)),  # at no multiple of 16
        (0, (tensor((33, 4096), (1, 33)), weight, 1e-6)),  # transposed: no row
        (0, (tensor((33, 4097)), tensor((4097,)), 1e-6)),  # another weight: no row
        *((1, (tensor(shape), short, 1e-6)) for shape in ((1, 1, 128), (4, 40, 128), (9, 1, 128))),
    ]
    child.run(calls_agree, library, norms, "rms_norm", rows)
    up = tensor((5, 1536), address=0x90000)
    halves = [(0, (tensor((m, 3072)), None)) for m in (0, 1, 16, 5000)]
    halves += [(0, (tensor((5, 3072), (4000, 1)), None)), (1, (tensor((5, 1536)), up))]
    child.run(calls_agree, library, norms, "silu_and_mul", halves)


def refused(path):
    c, fake = ctypes.CDLL(str(path)), ctypes.CDLL("libcuda.so.1")
    c.norms_last_error.restype = ctypes.c_char_p
    fake.fake_reset()
    fake.fake_use(0)

    def plan(*given):
        operands = (Operand * 8)(*map(Operand.of, given))
        return c.norms_rms_norm_plan(operands, ctypes.byref(Plan())), c.norms_last_error().decode()

    weight = tensor((4096,))
    status, message = plan(tensor((3, 4096), type_="fp64"), weight, 1e-6)
    assert (status, "types (fp64[3, 4096], bf16[4096], -)" in message) == (NO_SPECIALISATION, True)
    assert "there are (x: bf16, 2 dimensions, weight: bf16, 1 dimension, eps: a number)" in message
    status, message = plan(tensor((3, 4097)), weight, 1e-6)
    assert (status, "the nearest need `x_size_1 == 4096`" in message) == (NO_SPECIALISATION, True)
    operands = (Operand * 8)(*map(Operand.of, (tensor((3, 4096)), weight, 1e-6)))
    assert c.norms_rms_norm_run(operands, ctypes.byref(Plan(row=9999)), None) == 1
    assert "the plan's row is 9999" in c.norms_last_error().decode()
    fake.fake_use(1)  # whose capability is 8.0
    status, message = plan(tensor((3, 4096)), weight, 1e-6)
    assert status == NO_ARCHITECTURE
    fake.fake_use(0)


def test_calls_that_nothing_was_compiled_for(child, library):
    child.run(refused, library)
