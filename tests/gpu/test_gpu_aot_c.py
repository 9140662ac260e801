"""Artifacts in C on a device: bitwise the JIT's results, graph capture, scratch memory,
descriptors, and what a launch costs against the driver's own."""

from __future__ import annotations

import ctypes
import subprocess

import pytest
import torch
import triton
import triton.language as tl
from aot_kernels import _axpy_kernel

import aot_c_cases as cases
import aot_real

pytestmark = [
    pytest.mark.skipif(not cases.HAS["gcc"], reason="needs gcc"),
    pytest.mark.skipif(torch.version.hip is not None, reason="these binaries are NVIDIA's"),
]

# Of a raw loop of cuLaunchKernelEx, in the same run.
MAX_LAUNCH_RATIO = 1.2


@triton.jit
def _transpose_kernel(x_ptr, out_ptr, M, N, BLOCK: tl.constexpr):
    x = tl.make_tensor_descriptor(x_ptr, [M, N], [N, 1], [BLOCK, BLOCK])
    out = tl.make_tensor_descriptor(out_ptr, [N, M], [M, 1], [BLOCK, BLOCK])
    m, n = tl.program_id(0) * BLOCK, tl.program_id(1) * BLOCK
    out.store([n, m], x.load([m, n]).T)


@triton.jit
def _copy_kernel(x_desc, out_ptr, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    m, n = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    tile = x_desc.load([m, n])
    rows, columns = m + tl.arange(0, BLOCK_M)[:, None], n + tl.arange(0, BLOCK_N)[None, :]
    tl.store(out_ptr + rows * N + columns, tile, mask=(rows < M) & (columns < N))


INTEGER_CONSTEXPR = ("constexpr", "int")


def _arch():
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


needs_tma = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0),
    reason="needs descriptors in hardware (sm_90 or later)",
)


@pytest.fixture(scope="module")
def axpy(tmp_path_factory):
    """The library of an fp32 axpy that takes any addresses and sizes, and its CompiledKernel."""
    odd = torch.empty(64, device="cuda")[1:]
    made = _axpy_kernel.warmup(odd, odd, odd, 17, 0.5, BLOCK=256, grid=(1,))
    kinds = {"BLOCK": INTEGER_CONSTEXPR}
    folder = tmp_path_factory.mktemp("axpy")
    path = aot_real.build(folder, "real", [("axpy", made, kinds)], _arch())
    return aot_real.Real(path, "real"), folder


@pytest.mark.parametrize("n", [1, 255, 256, 257, 100_003])
def test_axpy_is_bitwise_the_jits(axpy, n):
    lib, _ = axpy
    x, y = torch.randn(2, n, device="cuda")
    expected, out = torch.empty_like(x), torch.full_like(x, torch.nan)
    grid = (triton.cdiv(n, 256),)
    _axpy_kernel[grid](x, y, expected, n, 0.1, BLOCK=256)
    lib.call("axpy", x, y, out, n, 0.1, 256, grid=(*grid, 1, 1), stream=torch.cuda.current_stream())
    assert torch.equal(out.view(torch.int32), expected.view(torch.int32))


def test_a_captured_graph_replays_after_a_preload(axpy):
    lib, _ = axpy
    assert lib.c.real_unload() == 0
    assert lib.c.real_preload(0) == 0, lib.error
    x, y = torch.randn(2, 1000, device="cuda")
    out = torch.zeros_like(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stream = torch.cuda.current_stream()
        lib.call("axpy", x, y, out, 1000, 2.0, 256, grid=(4, 1, 1), stream=stream)
    assert not out.any()
    for _ in range(3):
        x.normal_()
        graph.replay()
        expected = torch.empty_like(out)
        _axpy_kernel[(4,)](x, y, expected, 1000, 2.0, BLOCK=256)
        assert torch.equal(out, expected)


@needs_tma
@pytest.mark.parametrize("captured", [False, True])
def test_descriptors_made_on_the_device_have_scratch_memory(captured, tmp_path):
    triton.set_allocator(lambda size, _, __: torch.empty(size, dtype=torch.int8, device="cuda"))
    x = torch.randn(200, 136, device="cuda").half()
    expected, out = (torch.zeros(136, 200, device="cuda", dtype=torch.half) for _ in range(2))
    grid = (triton.cdiv(200, 64), triton.cdiv(136, 64))
    made = _transpose_kernel[grid](x, expected, 200, 136, BLOCK=64)
    assert made.metadata.global_scratch_size > 0
    kinds = {"BLOCK": INTEGER_CONSTEXPR}
    path = aot_real.build(tmp_path, "turn", [("transpose", made, kinds)], _arch())
    lib = aot_real.Real(path, "turn")
    assert lib.c.turn_preload(-1) == 0, lib.error

    def call():
        stream = torch.cuda.current_stream()
        lib.call("transpose", x, out, 200, 136, 64, grid=(*grid, 1), stream=stream)

    if captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        for _ in range(3):
            graph.replay()
    else:
        for _ in range(100):
            call()
    torch.cuda.synchronize()
    assert torch.equal(out, expected)
    assert torch.equal(out, x.T)
    assert lib.c.turn_unload() == 0


@needs_tma
def test_descriptors_made_on_the_host(tmp_path):
    from triton.tools.tensor_descriptor import TensorDescriptor

    x = torch.randn(200, 136, device="cuda").half()
    expected, out = (torch.zeros_like(x) for _ in range(2))
    grid = (triton.cdiv(200, 64), triton.cdiv(136, 32))
    described = TensorDescriptor.from_tensor(x, [64, 32])
    made = _copy_kernel[grid](described, expected, 200, 136, BLOCK_M=64, BLOCK_N=32)
    kinds = {"BLOCK_M": INTEGER_CONSTEXPR, "BLOCK_N": INTEGER_CONSTEXPR}
    path = aot_real.build(tmp_path, "host", [("copy", made, kinds)], _arch())
    lib = aot_real.Real(path, "host")
    tensor = aot_real.tensor(x, "fp16")
    stream = torch.cuda.current_stream()
    lib.call("copy", tensor, out, 200, 136, 64, 32, grid=(*grid, 1), stream=stream)
    torch.cuda.synchronize()
    assert torch.equal(out, expected)
    assert torch.equal(out, x)


def test_an_error_of_the_device_is_a_code(axpy):
    """Work that cannot be launched: no process dies, and the next call works."""
    lib, _ = axpy
    x = torch.ones(16, device="cuda")
    pointers = [ctypes.c_void_p(x.data_ptr())] * 3
    arguments = [*pointers, ctypes.c_int64(16), ctypes.c_double(1.0), ctypes.c_int64(256)]
    warps = [ctypes.c_int32(0), ctypes.c_int32(0)]
    grid = [ctypes.c_int64(1), ctypes.c_int64(70_000), ctypes.c_int64(1)]
    assert lib.c.axpy(*arguments, *warps, *grid, None) == 1
    assert "the grid is (1, 70000, 1)" in lib.error
    lib.call("axpy", x, x, x, 16, 1.0, 256, grid=(1, 1, 1), stream=torch.cuda.current_stream())
    assert torch.equal(x, torch.full_like(x, 2.0))


def test_a_launch_costs_little_more_than_the_drivers(axpy, tmp_path):
    lib, folder = axpy
    del lib
    binary = next((folder / "kernels").iterdir())
    flags = ["-std=gnu11", "-O2", f"-I{folder}", f'-DBINARY="{binary}"']
    sources = [cases.DATA / "launches.c", folder / "real.c", "-ldl", "-lpthread"]
    cases.compiled("gcc", *flags, *sources, "-o", tmp_path / "launches")
    done = subprocess.run([tmp_path / "launches"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    artifact_us, raw_us = map(float, done.stdout.split())
    assert artifact_us < MAX_LAUNCH_RATIO * raw_us
