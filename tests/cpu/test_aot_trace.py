"""Traces: what a program launches becomes a specification that has just that, and what any call of
the same types falls back to.

Without a GPU, Triton's hooks are called as its launches call them; tests/interpret and tests/gpu
trace launches.
"""

from __future__ import annotations

import threading

import aot_kernels
import pytest
import torch
import triton
import triton.language as tl
from triton import knobs
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature
from triton.tools.tensor_descriptor import TensorDescriptor

from aot_cases import entry, example
from gristmill import aot
from gristmill.aot.expand import Expansion
from gristmill.compile.executor import triton_target
from gristmill.core.target import compile_target
from gristmill.errors import ArtifactError, InvalidInputError

ADD = example("vector_add").add_kernel


def launch(kernel, *args, **kwargs):
    """What Triton does first with a launch."""
    for hook in kernel.pre_run_hooks:
        hook(*args, **kwargs)


def vectors(n=64, dtype=torch.float32, offset=0):
    return [torch.empty(n + 8, dtype=dtype)[offset:] for _ in range(3)]


def select(kernel, x, n, block, **more):
    """The variant that a call takes."""
    types = dict.fromkeys(kernel.variables, x.dtype)
    values = {"n_elements": n, "BLOCK_SIZE": block}
    values |= dict.fromkeys(("x_ptr", "y_ptr", "out_ptr"), x.data_ptr())
    return aot.select(entry(kernel, "sm_90"), "sm_90", types, values, **more)


def test_a_trace_has_the_calls_that_were_made_and_their_fall_backs():
    with aot.trace(ADD) as t:
        for dtype, n, block in ((torch.float32, 64, 64), (torch.float16, 63, 128)):
            launch(ADD, *vectors(dtype=dtype), n, BLOCK_SIZE=block, num_warps=8)
        launch(ADD, *vectors(offset=1), 1, BLOCK_SIZE=64)
        assert t.launches == 3
    launch(ADD, *vectors(), 7, BLOCK_SIZE=999)  # the trace has ended
    (kernel,) = t.kernels()
    assert t.launches == 3
    assert kernel.name == "add_kernel"
    assert kernel.variables == {"T": ("fp32", "fp16")}
    assert kernel.given["BLOCK_SIZE"] == [64, 128]
    assert kernel.given["num_warps"] == [8, 4]
    combinations = Expansion(kernel, ["sm_90"]).combinations
    met = [c for c in combinations if not c.unspecialised]
    assert len(met) == 3
    assert {(c.types, c.num_warps) for c in combinations} == {
        (("fp32",), 8),
        (("fp32",), 4),
        (("fp16",), 8),
    }
    aligned, *_ = vectors()
    assert [a.divisible for a in select(kernel, aligned, 64, 64).arguments] == [True] * 4 + [False]
    fallback = select(kernel, vectors(offset=1)[0], 64, 64)
    assert not any(a.divisible for a in fallback.arguments)
    with pytest.raises(ArtifactError, match="no variant of add_kernel"):
        select(kernel, aligned.half(), 63, 64)  # fp16 was only met with 128


def test_keywords_none_bools_floats_and_wide_numbers():
    @triton.jit
    def kernel(
        x, maybe, n: tl.int64, wide, flag, scale, KIND: tl.constexpr, D: tl.constexpr = None
    ):
        pass

    x = torch.empty(4, dtype=torch.bfloat16)
    with aot.trace(kernel) as t:
        launch(kernel, x, None, 5, 1 << 40, True, 0.5, KIND=tl.float16)
        launch(kernel, x=x, maybe=x, n=1, wide=16, flag=False, scale=2.0, KIND=torch.float32)
    (made,) = t.kernels()
    given = made.given
    assert given["maybe"] == aot.Ptr("bf16", align=[16], optional=True)
    assert given["n"] == aot.Int([None])
    assert given["wide"] == aot.Int([16], widths=[32, 64])
    assert given["flag"] == aot.Bool()
    assert given["scale"] == aot.Float()
    assert given["KIND"] == aot.Type("fp16", "fp32")
    combinations = Expansion(made, ["sm_90"]).combinations
    nulls = {tuple(a.value for a in c.arguments if a.type == "constexpr") for c in combinations}
    assert nulls == {(None, "fp16", None), ("fp32", None)}


def test_a_descriptor_has_its_block():
    tensor = torch.empty(128, 64, dtype=torch.float16)
    descriptor = TensorDescriptor(tensor, [128, 64], [64, 1], [64, 32])
    with aot.trace(aot_kernels.copy_tile) as t:
        launch(aot_kernels.copy_tile, descriptor, tensor, ROWS=64, COLUMNS=32)
    (made,) = t.kernels()
    assert made.given["source"] == aot.Descriptor("fp16", block=[64, 32])
    assert Expansion(made, ["sm_90"]).combinations


def test_arguments_of_other_kinds_make_another_kernel():
    x, *_ = vectors()
    with aot.trace(ADD) as t:
        launch(ADD, x, x, x, 4, BLOCK_SIZE=64)
        launch(ADD, x, x, x, 4, BLOCK_SIZE=64.0)
        launch(ADD, x, 3, x, 4, BLOCK_SIZE=64)
    assert [k.name for k in t.kernels()] == ["add_kernel", "add_kernel_1", "add_kernel_2"]


def test_what_no_artifact_takes_is_left_out_with_a_warning():
    with aot.trace(ADD) as t, pytest.warns(RuntimeWarning, match="is not in the trace.*object"):
        launch(ADD, object(), None, None, 4, BLOCK_SIZE=64)
    assert t.kernels() == ()


def test_every_kernel_is_heard_without_naming_any():
    @triton.jit
    def late(x, n, B: tl.constexpr):
        pass

    heard = []
    before = knobs.runtime.jit_post_compile_hook
    knobs.runtime.jit_post_compile_hook = lambda **told: heard.append(told)
    try:
        with aot.trace() as t:
            launch(ADD, *vectors(), 64, BLOCK_SIZE=64)

            @triton.jit
            def new(x, n, scale, maybe, B: tl.constexpr):
                pass

            compiled(new, torch.empty(4)[1:], 32, 0.5, None, B=4, num_warps=2)
            launch(new, torch.empty(4), 33, 0.5, None, B=4, num_warps=2)
        assert len(heard) == 1
        assert not ADD.pre_run_hooks
        assert not new.pre_run_hooks
    finally:
        knobs.runtime.jit_post_compile_hook = before
    add, made = t.kernels()
    assert add.name == "add_kernel"
    assert made.given["x"] == aot.Ptr("fp32", align=[16, 1])
    assert made.given["n"] == aot.Int([16, None])
    assert made.given["maybe"].optional
    assert made.given["num_warps"] == [2]
    assert len([c for c in Expansion(made, ["sm_90"]).combinations if not c.unspecialised]) == 2
    del late


def compiled(kernel, *args, **kwargs):
    """What Triton tells when a compile has ended."""
    backend = make_backend(triton_target(compile_target("sm_90")))
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    kwargs = {"debug": False, **kwargs}
    arguments, specialization, options = binder(*args, **kwargs)
    options, signature, constexprs, attrs = kernel._pack_args(
        backend, kwargs, arguments, specialization, options
    )
    hook = knobs.runtime.jit_post_compile_hook
    key = (specialization, str(options))
    kernel._call_hook(hook, str(key) * 2, signature, 0, constexprs, options, [attrs], False)


def test_the_user_s_hooks_stay_and_a_trace_runs_once():
    mine = []

    @triton.jit
    def kernel(n):
        pass

    kernel.add_pre_run_hook(lambda *a, **k: mine.append(a))
    with aot.trace(kernel) as t:
        launch(kernel, 3)
        with pytest.raises(InvalidInputError, match="runs already"), t:
            pass
    launch(kernel, 4)
    assert mine == [(3,), (4,)]
    assert t.launches == 1
    with pytest.raises(InvalidInputError, match=r"needs a `@triton\.jit` function"):
        aot.trace(len)


def test_every_thread_s_launches_count():
    x = vectors()
    with aot.trace(ADD) as t:

        def work():
            for n in range(50):
                launch(ADD, *x, n, BLOCK_SIZE=64)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert t.launches == 400
    assert t.kernels()[0].given["n_elements"] == aot.Int([16, 1, None])


def test_a_traced_kernel_is_built(tmp_path):
    with aot.trace(ADD) as t:
        launch(ADD, *vectors(), 64, BLOCK_SIZE=64)
    report = t.kernels()[0].build(tmp_path / "add", "sm_90")
    assert report.variants == 3  # what was met, and a fall-back for 32 and for 64 bits
