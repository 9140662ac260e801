"""How calls reach the C module: its table in a dispatcher and a bound operator, the layout of what
kernels are passed, and a machine or a torch without it."""

from __future__ import annotations

import gc
import struct
import subprocess
import sys
import sysconfig
import weakref
from types import SimpleNamespace

import pytest
import torch
import triton
import triton.language as tl
from torch.autograd import forward_ad

import gristmill as gm
from gristmill import settings
from gristmill.compile import programs
from gristmill.compile.executor import EXECUTOR
from gristmill.compile.programs import declared_sizes
from gristmill.core import registry
from gristmill.core.launch import Launch, TensorMap
from gristmill.core.registry import load
from gristmill.core.target import named_target
from gristmill.native import calls as native_calls
from gristmill.native.calls import calls, why_not
from gristmill.ops._dispatch import Dispatcher

# ---------------------------------------------------------------------------------------- tables


def test_the_oldest_entries_are_dropped():
    table = calls().Table()
    for n in range(1, 101):
        table.add((torch.empty(n),), len)
    table.drop(25)
    assert len(table) == 75
    found = [n for n in range(1, 101) if table(torch.empty(n)) is not calls().MISS]
    assert found == list(range(26, 101))
    assert table.knows((torch.empty(50),))
    assert not table.knows((torch.empty(5),))
    assert not table.knows(("text", []))
    table.clear()
    assert not table.knows((torch.empty(50),))
    assert len(table) == 0
    assert table(torch.empty(50)) is calls().MISS
    table.drop(3)


def test_entries_are_let_go():
    class Call:
        def __call__(self, a):
            return 1

    table, call = calls().Table(), Call()
    gone = weakref.ref(call)
    table.add((torch.empty(1),), call)
    del call
    assert gone() is not None
    table.clear()
    assert gone() is None
    cycle = Call()
    cycle.table, gone = table, weakref.ref(cycle)
    table.add((torch.empty(1),), cycle)
    del table, cycle
    gc.collect()
    assert gone() is None


def test_garbage_that_uses_a_table_while_it_grows():
    """Making an entry may collect garbage, whose destructors may add, and clear."""
    table = calls().Table()

    class Adds:
        def __init__(self, clears):
            self.cycle, self.clears = self, clears

        def __del__(self):
            if self.clears:
                table.clear()
            for n in range(100, 140):
                table.add((torch.empty(n),), len)

    before = gc.get_threshold()
    gc.freeze()  # what torch and the tests before have made: each collection would walk all of it
    try:
        for threshold in range(1, 40):
            table.clear()
            gc.collect()
            Adds(clears=threshold % 2 == 0)
            gc.set_threshold(threshold)
            for n in range(1, 30):
                table.add((torch.empty(n),), len)
            gc.set_threshold(*before)
            known = [n for n in range(1, 140) if table.knows((torch.empty(n),))]
            assert len(table) == len(known)
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def test_a_call_may_clear_its_own_table():
    table, x = calls().Table(), torch.empty(3)

    class Call:
        def __call__(self, a):
            table.clear()
            gc.collect()
            return "done"

    table.add((x,), Call())
    assert table(x) == "done"
    assert len(table) == 0


# -------------------------------------------------------------------------------------- the ops


def test_calls_go_through_it_and_plans_that_change_are_seen(fresh_store):
    x, w = torch.randn(4, 64), torch.randn(64)
    dispatch = Dispatcher(load("rms_norm"), "eager")
    truth = torch.rms_norm(x, (64,), w, 1e-6)
    torch.testing.assert_close(dispatch.direct(x, w, 1e-6), truth)
    table = dispatch._tables["direct"]
    assert len(table) == 1
    torch.testing.assert_close(table(x, w, 1e-6), truth)
    dispatch.forget()
    assert len(table) == 0
    assert dispatch.direct(x, w, 1e-6).shape == x.shape
    bound = gm.get_op("rms_norm", (x, w), tune="never")
    bound(x, w)
    torch.testing.assert_close(bound._table(x, w, 1e-6), truth)
    assert bound._table(torch.randn(5, 64), w, 1e-6) is calls().MISS
    torch.testing.assert_close(bound(torch.ones(5, 64), w), w.expand(5, 64), rtol=1e-5, atol=1e-5)


def test_a_gradient_never_goes_through_it(fresh_store):
    x = torch.randn(4, 64, requires_grad=True)
    dispatch = Dispatcher(load("rms_norm"), "eager")
    dispatch.direct(x.detach(), None, 1e-6)
    out = dispatch.direct(x, None, 1e-6)
    assert out.requires_grad
    dual = Dispatcher(load("rms_norm"), "eager")
    dual.direct(x.detach(), None, 1e-6)
    with forward_ad.dual_level():
        tangent = forward_ad.make_dual(x.detach(), torch.ones(4, 64))
        assert forward_ad.unpack_dual(dual.direct(tangent, None, 1e-6)).tangent is not None


def test_python_s_own_way_is_as_right(fresh_store):
    script = (
        "import torch, gristmill as gm\n"
        "from gristmill.native.calls import calls, why_not\n"
        "x, w = torch.randn(4, 64), torch.randn(64)\n"
        "bound = gm.get_op('rms_norm', (x, w), tune='never')\n"
        "for f in (gm.rms_norm, bound, torch.ops.gristmill.rms_norm):\n"
        "    for _ in range(2):\n"
        "        torch.testing.assert_close(f(x, w, 1e-6), torch.rms_norm(x, (64,), w, 1e-6))\n"
        "assert calls() is None\n"
        "print(why_not())"
    )
    environment = settings.child_environment(GRISTMILL_NATIVE="0")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout.strip() == "GRISTMILL_NATIVE is 0", done.stderr


@pytest.mark.parametrize("fault", ["compiler", "header"])
def test_without_a_compiler_there_is_none_and_a_reason(fault, monkeypatch, fresh_store, tmp_path):
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler") if fault == "compiler" else "cc")
    if fault == "header":
        monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": "/nowhere"})
    assert calls.__wrapped__() is None  # the cached one stays
    assert "no-such-compiler" in why_not() if fault == "compiler" else "Python.h" in why_not()
    assert not list((settings.current().cache_dir / "native").glob("*"))


def test_a_torch_that_keeps_its_modes_elsewhere_is_found_out(monkeypatch, fresh_store):
    module = calls()
    blind = SimpleNamespace(
        set_up=lambda *a: None, set_modes=lambda *a: None, modes=lambda: (True, True)
    )
    monkeypatch.setattr(native_calls, "_load", lambda path: blind)
    assert calls.__wrapped__() is None
    assert "modes" in why_not()
    assert calls() is module


# --------------------------------------------------------------------------------------- layouts


@triton.jit
def _scalars(x_ptr, n, big, flag, eps, none_ptr, BLOCK: tl.constexpr):
    value = eps + n + big
    if flag:
        value += 1
    if none_ptr is None:
        tl.store(x_ptr + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), value)


def scalars():
    args = (torch.empty(64, device="meta"), 5, 1 << 40, True, 1e-6, None)
    given = Launch(_scalars, (1,), args, {"BLOCK": 64}, {"num_warps": 1})
    return given, EXECUTOR.compile(given, named_target("sm_90")).kernel


def test_scalars_are_laid_out_as_the_binary_reads_them():
    given, kernel = scalars()
    image, offsets, patches = programs._packed(given, kernel, [given.args[0]])[7:10]
    assert patches == ((0, 0),)
    assert declared_sizes(kernel.asm["ptx"]) == [8, 4, 8, 1, 4, 8, 8]
    assert struct.unpack_from("<i", image, offsets[1]) == (5,)
    assert struct.unpack_from("<q", image, offsets[2]) == (1 << 40,)
    assert image[offsets[3]] == 1
    assert struct.unpack_from("<f", image, offsets[4])[0] == pytest.approx(1e-6)
    assert not any(image[offsets[5] :])


@pytest.mark.parametrize("value", [0.1, -3.0, 1e-40, float("inf")])
def test_half_precision_scalars(value):
    half, single = torch.tensor(value).half(), torch.tensor(value)
    assert programs._scalar("fp16", value) == half.view(torch.int16).numpy().tobytes()
    cut = single.view(torch.int32).item() >> 16 & 0xFFFF  # Triton's JIT does not round
    assert programs._scalar("bf16", value) == struct.pack("<H", cut)
    with pytest.raises(programs.Unfit, match="fp8"):
        programs._scalar("fp8e4nv", value)


def test_a_layout_that_the_binary_does_not_have_is_unfit(monkeypatch):
    given, kernel = scalars()
    monkeypatch.setitem(programs.FORMATS, "i32", "q")
    with pytest.raises(programs.Unfit, match="other parameters"):
        programs._packed(given, kernel, [given.args[0]])


WORKLOADS = [
    pytest.param(i, w.problem, id=f"{i.id}-{w.name}")
    for op in registry.op_names()
    for i in registry.implementations(op)
    if i.kind == "triton"
    for w in i.op.workloads
    if i.why_not(w.problem, named_target("sm_90")) is None
]


@pytest.mark.parametrize(("implementation", "problem"), WORKLOADS[::3])
def test_our_kernels_take_what_a_program_passes(implementation, problem):
    target = named_target("sm_90")
    config = implementation.config(None, problem, target)
    values = problem.empty(torch.device("meta"))
    outputs, workspace = implementation.allocate(values, config)
    slots = [v if isinstance(v, torch.Tensor) else None for v in (*values, *outputs, *workspace)]
    for given in implementation.launches(values, outputs, workspace, config):
        kernel = EXECUTOR.compile(given, target).kernel
        packed = programs._packed(given, kernel, slots)
        described = sum(isinstance(a, TensorMap) for a in given.args)
        assert len(packed[10]) == described
        assert len(packed[9]) == len(given.tensors()) - described
        # The bytes of a descriptor and those of the others cover the binary's parameters.
        assert packed[8][-1] + 8 == len(packed[7])
