"""Artifacts from Python on a device, in processes where importing Triton raises: bitwise the JIT's
results, the current stream, CUDA graphs, wrong devices; and a project of operators in torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
import triton
import triton.language as tl

import aot_c_cases as cases
from gristmill import aot
from gristmill.core.registry import implementation
from gristmill.specs import rms_norm

pytestmark = [
    pytest.mark.skipif(not cases.HAS["gcc"], reason="needs gcc"),
    pytest.mark.skipif(torch.version.hip is not None, reason="these binaries are NVIDIA's"),
]
SIZES = (1, 255, 256, 4096, 100_003)


@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n)
    tl.store(out_ptr + at, x + tl.load(y_ptr + at, mask=at < n), mask=at < n)


@triton.jit
def scale_kernel(x_ptr, out_ptr, n, alpha, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.load(x_ptr + at, mask=at < n) * alpha, mask=at < n)


def build(folder, arch):
    """An artifact of both kernels."""
    grid, n, pointer = "cdiv(n, BLOCK)", aot.Int([16, None]), aot.Ptr("T")
    add = aot.Kernel(add_kernel).spec(
        x_ptr=pointer, y_ptr=pointer, out_ptr=pointer, n=n, BLOCK=[256]
    )
    add = add.types(T=["fp16", "bf16", "fp32"]).tie("x_ptr", "y_ptr", "out_ptr").grid(grid)
    floats = aot.Ptr("fp32")
    scale = aot.Kernel(scale_kernel).spec(
        x_ptr=floats, out_ptr=floats, n=n, alpha=aot.Float("fp32"), BLOCK=[256]
    )
    return aot.build(folder, [add, scale.tie("x_ptr", "out_ptr").grid(grid)], arch)


def this_arch():
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The artifact, for the device at hand."""
    return build(tmp_path_factory.mktemp("python") / "both", this_arch()).folder


def run(program, *paths):
    """A program in a process where importing Triton raises; `sys.argv` has the paths."""
    blocked = "import sys\nsys.modules['triton'] = None\nimport torch\n"
    command = [sys.executable, "-c", blocked + textwrap.dedent(program), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


BITWISE = """
    from gristmill import aot

    artifact = aot.load(sys.argv[1])
    for x, y, alpha, total, scaled in torch.load(sys.argv[2]):
        x, y = x.cuda(), y.cuda()
        out = torch.full_like(x, torch.nan)
        artifact.add_kernel(x, y, out, x.numel(), 256)
        assert torch.equal(out.cpu(), total), (x.dtype, x.numel())
        apart = torch.full((x.numel() + 1,), torch.nan, dtype=x.dtype, device="cuda")[1:]
        artifact.add_kernel(x, y, apart, x.numel(), 256)  # at no multiple of 16
        assert torch.equal(apart.cpu(), total), (x.dtype, x.numel())
        if scaled is not None:
            artifact.scale_kernel(x, out, x.numel(), alpha, 256, grid_x=-(-x.numel() // 256))
            assert torch.equal(out.cpu(), scaled), x.numel()
"""


def test_results_are_bitwise_the_jits(folder, tmp_path):
    cases_of = []
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for n in SIZES:
            x, y = torch.randn(2, n, device="cuda").to(dtype)
            total, scaled = torch.empty_like(x), torch.empty_like(x)
            grid = (triton.cdiv(n, 256),)
            add_kernel[grid](x, y, total, n, BLOCK=256)
            scale_kernel[grid](x, scaled, n, 0.1, BLOCK=256)
            of = scaled.cpu() if dtype is torch.float32 else None
            cases_of.append((x.cpu(), y.cpu(), 0.1, total.cpu(), of))
    torch.save(cases_of, tmp_path / "cases.pt")
    run(BITWISE, folder, tmp_path / "cases.pt")


STREAMS = """
    from gristmill import aot

    artifact = aot.load(sys.argv[1])
    artifact.preload(0)
    x, y = torch.randn(2, 1 << 20, device="cuda")
    out = torch.zeros_like(x)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # the kernel comes after it, if it is on this stream
        artifact.add_kernel(x, y, out, x.numel(), 256)
    early = out.clone()  # on the default stream, which waits for nobody
    torch.cuda.default_stream().synchronize()
    assert not side.query()
    assert not early.any()
    side.synchronize()
    assert torch.equal(out, x + y)
    for stream in (side, side.cuda_stream, torch.cuda.current_stream()):
        out.zero_()
        torch.cuda.synchronize()
        artifact.add_kernel(x, y, out, x.numel(), 256, stream=stream)
        torch.cuda.synchronize()
        assert torch.equal(out, x + y)
    for wrong, error in ((x.cpu(), ValueError), (x.double(), artifact.Error)):
        try:
            artifact.add_kernel(wrong, wrong, wrong, x.numel(), 256)
        except error as caught:
            assert "add_kernel: " in str(caught)
        else:
            raise AssertionError(error)
"""


def test_the_current_stream_is_taken(folder):
    run(STREAMS, folder)


PAST_THE_TABLE = """
    import ctypes
    from gristmill import aot

    class Table(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32 * 2), ("more", ctypes.c_void_p * 4)]
        _fields_ += [("view", ctypes.c_void_p), ("stream", ctypes.c_void_p)]

    View = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    python, name = ctypes.pythonapi, b"dlpack_exchange_api"
    python.PyCapsule_GetPointer.restype = ctypes.c_void_p
    python.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    python.PyCapsule_New.restype = ctypes.py_object
    python.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    there = python.PyCapsule_GetPointer(torch.Tensor.__dlpack_c_exchange_api__, name)
    table = Table.from_buffer_copy(Table.from_address(there))
    own, asked = View(table.view), []

    @View
    def view(tensor, out):
        asked.append(tensor)
        return own(tensor, out)

    table.view = ctypes.cast(view, ctypes.c_void_p).value
    capsule = python.PyCapsule_New(ctypes.addressof(table), name, None)
    torch.Tensor.__dlpack_c_exchange_api__ = capsule
    artifact = aot.load(sys.argv[1])
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for start in (0, 1, 8):
            x, y = torch.randn(2, 1000, device="cuda").to(dtype)
            x, y, out = x[start:], torch.nn.Parameter(y[start:]), torch.empty_like(x[start:])
            artifact.add_kernel(x, y, out, out.numel(), 256)
            assert torch.equal(out, x + y), (dtype, start)
            assert len(asked) == 2, (dtype, start)  # of the first tensor, and the first Parameter
    for wrong, error in ((x.cpu(), ValueError), (x.view(8, -1).to_sparse(), TypeError)):
        try:
            artifact.add_kernel(wrong, y, out, out.numel(), 256)
        except error as caught:
            assert "add_kernel: `x_ptr`" in str(caught), caught
        else:
            raise AssertionError(error)
    assert len(asked) == 4  # which gave the reasons
"""


def test_torchs_own_tensors_are_read_past_their_table(folder):
    run(PAST_THE_TABLE, folder)


CAPTURE = """
    from gristmill import aot

    artifact = aot.load(sys.argv[1])
    artifact.preload()
    x, y = torch.randn(2, 1000, device="cuda")
    out = torch.zeros_like(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        artifact.add_kernel(x, y, out, 1000, 256)
    assert not out.any()
    for _ in range(3):
        x.normal_()
        graph.replay()
        assert torch.equal(out, x + y)
"""


def test_a_graph_captures_a_call(folder):
    run(CAPTURE, folder)


OPERATORS = """
    sys.modules["gristmill"] = None
    sys.path.insert(0, sys.argv[1])
    import fastnorms

    fastnorms.preload()
    for x, w, expected in torch.load(sys.argv[2]):
        x, w = x.cuda(), w.cuda()
        assert torch.equal(fastnorms.rms_norm(x, w, 1e-6).cpu(), expected)
        compiled = torch.compile(fastnorms.rms_norm, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x, w, 1e-6).cpu(), expected)
    torch.library.opcheck(
        torch.ops.fastnorms.rms_norm.default, (x, w), test_utils=("test_schema", "test_faketensor")
    )
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fastnorms.rms_norm(x, w, 1e-6)
    graph.replay()
    assert torch.equal(out.cpu(), expected)
"""


@pytest.mark.skipif(not cases.HAS["cmake"] or not cases.HAS["g++"], reason="needs CMake and g++")
def test_a_project_of_operators_is_bitwise_the_library(tmp_path):
    problems = [rms_norm.problem_of((m, 4096)) for m in (16, 4096)]
    build = aot.build_ops(
        tmp_path / "norms", "rms_norm", this_arch(), problems={"rms_norm": problems}
    )
    project = aot.wheel(build.folder, tmp_path / "project", name="fastnorms")
    made = tmp_path / "build"
    python = f"-DPython3_EXECUTABLE={sys.executable}"
    cases.compiled("cmake", "-S", project, "-B", made, python)
    cases.compiled("cmake", "--build", made)
    package = shutil.copytree(project / "python" / "fastnorms", made / "python" / "fastnorms")
    shutil.copy(made / "_C.abi3.so", package)
    (function,) = build.manifest.functions
    (form,) = function.forms
    cases_of = []
    for rows in (1, 16, 17, 4096):
        x = torch.randn(rows, 4096, device="cuda", dtype=torch.bfloat16)
        w = torch.randn(4096, device="cuda", dtype=torch.bfloat16)
        sizes = {"x_size_0": rows, "x_size_1": 4096, "x_stride_0": 4096, "x_stride_1": 1}
        sizes |= {"weight_size_0": 4096, "weight_stride_0": 1, "x_address": 0, "weight_address": 0}
        row = aot.row_of(form, this_arch(), sizes)
        impl = implementation("rms_norm", row.implementation)
        cases_of.append((x.cpu(), w.cpu(), impl(x, w, 1e-6, config=row.config).cpu()))
    torch.save(cases_of, tmp_path / "cases.pt")
    run(OPERATORS, package.parent, tmp_path / "cases.pt")
