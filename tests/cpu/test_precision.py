"""Full-precision products whatever the process allows cuBLAS: withdrawn at the call, and given
back; the settings are torch's own (they are kept on a CPU build too), the operands stand-ins."""

from __future__ import annotations

import threading
import time
import timeit
from types import SimpleNamespace

import pytest
import torch

from gristmill.core import registry
from gristmill.kernels import precision
from gristmill.kernels.precision import precise

C = torch._C
FP32 = (("generic", "all"), ("cuda", "all"), ("cuda", "matmul"), ("mkldnn", "matmul"))


def pair(kind):
    return getattr(C, f"_get_cublas_allow_{kind}_reduced_precision_reduction")()


def set_pair(kind, *values):
    getattr(C, f"_set_cublas_allow_{kind}_reduced_precision_reduction")(*values)


def on_gpu(dtype):
    return SimpleNamespace(is_cuda=True, dtype=dtype)


@pytest.fixture(autouse=True)
def defaults():
    """Torch's defaults, before and after."""

    def reset():
        C._set_float32_matmul_precision("highest")
        for place in FP32:
            C._set_fp32_precision_setter(*place, "none")
        for kind in ("bf16", "fp16"):
            set_pair(kind, True, True)
        C._set_cublas_allow_fp16_accumulation(False)

    reset()
    yield
    reset()


def fp32_state():
    """Everything that can be read of float32's settings, by both APIs."""
    state = [C._get_fp32_precision_getter(*place) for place in FP32]
    for name in ("_get_cublas_allow_tf32", "_get_float32_matmul_precision"):
        try:
            state.append(getattr(C, name)())
        except RuntimeError:
            state.append("mixed")
    return state


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
@pytest.mark.parametrize("before", [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("accumulation", [False, True])
def test_16_bit_sums_are_float32_and_the_setting_is_put_back_whole(kind, before, accumulation):
    set_pair(kind, *before)
    C._set_cublas_allow_fp16_accumulation(accumulation)
    seen = []

    def product(a, b):
        seen.append((pair(kind), C._get_cublas_allow_fp16_accumulation()))

    precise(product, on_gpu(torch.bfloat16 if kind == "bf16" else torch.float16), None)
    assert seen == [((False, before[1]), accumulation if kind == "bf16" else False)]
    assert pair(kind) == before
    assert C._get_cublas_allow_fp16_accumulation() is accumulation


def _new_api(place, value):
    return lambda: C._set_fp32_precision_setter(*place, value)


@pytest.mark.parametrize(
    "allow",
    [
        lambda: None,
        lambda: C._set_cublas_allow_tf32(True),
        lambda: C._set_float32_matmul_precision("high"),
        lambda: C._set_float32_matmul_precision("medium"),
        _new_api(("cuda", "matmul"), "tf32"),
        _new_api(("cuda", "matmul"), "ieee"),
        _new_api(("cuda", "all"), "tf32"),
        _new_api(("generic", "all"), "tf32"),
    ],
)
def test_float32_is_ieee_by_either_api_and_the_setting_is_put_back(allow):
    allow()
    before = fp32_state()
    seen = []
    precise(lambda a, b: seen.append(fp32_state()), on_gpu(torch.float32), None)
    assert seen[0][2] in ("ieee", "none")
    assert seen[0][4] is False  # by the older API too, which Dynamo's guards read
    assert fp32_state() == before


def test_an_inherited_permission_is_still_inherited_afterwards():
    C._set_fp32_precision_setter("generic", "all", "tf32")
    precise(lambda a, b: None, on_gpu(torch.float32), None)
    C._set_fp32_precision_setter("generic", "all", "none")
    assert C._get_fp32_precision_getter("cuda", "matmul") == "none"


def test_an_error_puts_the_setting_back():
    with pytest.raises(ZeroDivisionError):
        precise(lambda a, b: 1 // 0, on_gpu(torch.bfloat16), None)
    assert pair("bf16") == (True, True)


def test_a_permission_given_meanwhile_stays():
    C._set_float32_matmul_precision("high")
    precise(lambda a, b: C._set_float32_matmul_precision("medium"), on_gpu(torch.float32), None)
    assert C._get_float32_matmul_precision() == "medium"
    assert C._get_fp32_precision_getter("cuda", "matmul") == "tf32"


def test_nested_and_overlapping_products_all_run_in_full_precision():
    """Many threads of ours, each of which looks at the setting all through its product."""
    reduced, stop = [], threading.Event()

    def product(a, b):
        for _ in range(3):
            if pair("bf16")[0]:
                reduced.append(1)
            time.sleep(0)
        return True

    def thread():
        a = on_gpu(torch.bfloat16)
        while not stop.is_set():
            precise(lambda x, y: precise(product, x, y) and product(x, y), a, None)

    threads = [threading.Thread(target=thread) for _ in range(6)]
    for t in threads:
        t.start()
    time.sleep(1.0)
    stop.set()
    for t in threads:
        t.join()
    assert not reduced
    assert pair("bf16") == (True, True)


def test_one_that_leaves_first_does_not_put_the_setting_back_under_another():
    entered, leave, seen = threading.Event(), threading.Event(), []

    def first(a, b):
        entered.set()
        leave.wait(10)

    a = on_gpu(torch.bfloat16)
    thread = threading.Thread(target=precise, args=(first, a, None))
    thread.start()
    entered.wait(10)

    def second(x, y):
        leave.set()
        thread.join(10)
        seen.append(pair("bf16")[0])

    precise(second, a, None)
    assert seen == [False]
    assert pair("bf16") == (True, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nothing_is_written_where_nothing_is_allowed(dtype, monkeypatch):
    set_pair("bf16", False, True)
    set_pair("fp16", False, True)
    permission = precision._PERMISSIONS[dtype]
    monkeypatch.setattr(permission, "enter", lambda: pytest.fail("it takes the lock"))
    assert precise(lambda a, b: 7, on_gpu(dtype), None) == 7


def test_on_a_cpu_nothing_is_looked_at(monkeypatch):
    monkeypatch.setattr(precision, "_PERMISSIONS", None)
    a = torch.randn(3, 4)
    torch.testing.assert_close(registry.implementation("matmul", "aten")(a, a.t()), a @ a.t())


def test_the_usual_path_is_cheap():
    """Well under a microsecond for what is not allowed anyway (0.2 to 0.3 us on the machine that it
    was written on)."""
    set_pair("bf16", False, True)
    a = on_gpu(torch.bfloat16)
    cost = (
        min(timeit.repeat(lambda: precise(lambda x, y: None, a, a), number=20_000, repeat=5))
        / 20_000
    )
    assert cost < 2e-6
