"""Artifacts in C on two GPUs: the calling thread's device decides, and each loads for itself."""

from __future__ import annotations

import threading

import pytest
import torch
import triton
import triton.language as tl

import aot_c_cases as cases
import aot_real

pytestmark = [
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
    pytest.mark.skipif(not cases.HAS["gcc"], reason="needs gcc"),
]


@triton.jit
def _scale_kernel(x_ptr, n, alpha, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + at, tl.load(x_ptr + at, mask=at < n) * alpha, mask=at < n)


@pytest.mark.parametrize("preloaded", [False, True])
def test_the_current_device_decides(preloaded, tmp_path):
    odd = torch.empty(64, device="cuda:0")[1:]
    with torch.cuda.device(0):
        made = _scale_kernel.warmup(odd, 17, 0.5, BLOCK=128, grid=(1,))
    major, minor = torch.cuda.get_device_capability(0)
    kinds = {"BLOCK": ("constexpr", "int")}
    path = aot_real.build(tmp_path, "two", [("scale", made, kinds)], f"sm_{major}{minor}")
    lib = aot_real.Real(path, "two")
    if preloaded:
        for device in (0, 1):
            assert lib.c.two_preload(device) == 0, lib.error
            assert torch.cuda.current_device() == 0
    found = []

    def work(device):
        with torch.cuda.device(device):
            x = torch.ones(1000, device="cuda")
            for _ in range(10):
                stream = torch.cuda.current_stream()
                lib.call("scale", x, 1000, 2.0, 128, grid=(8, 1, 1), stream=stream)
            found.append(bool((x == 1024).all()))

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8
    assert lib.c.two_unload() == 0
