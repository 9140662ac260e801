"""Which variant a call takes: the one that Triton's JIT would compile, where there is one."""

from __future__ import annotations

import dataclasses

import aot_kernels
import pytest
import torch
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st
from triton._C.libtriton import native_specialize_impl
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from aot_cases import add_kernel, entry
from gristmill import aot
from gristmill.aot.expand import Expansion
from gristmill.aot.manifest import Choice
from gristmill.aot.request import compile_arguments, request
from gristmill.aot.signature import declared
from gristmill.compile.executor import STATED_OPTIONS, triton_target
from gristmill.core.target import compile_target
from gristmill.errors import ArtifactError

ARCHS = ("sm_80", "sm_90", "gfx942")
NUMBER = aot.Int([16, 1, None], widths=[32, 64])
SCALARS = aot.Kernel(aot_kernels.scalars).spec(
    out=aot.Ptr("fp32"),
    h=aot.Float("fp16"),
    g=aot.Float("bf16"),
    f=aot.Float(),
    d=aot.Float("fp64"),
    b=aot.Bool(),
    n=NUMBER,
    m=NUMBER,
    BLOCK=[32],
)
DECLARED = (
    aot.Kernel(aot_kernels.declared)
    .spec(
        x=aot.Ptr("T"),
        bias=aot.Ptr("T", optional=True),
        out=aot.Ptr("T"),
        n=aot.Int([16, 1, None]),
        seed=aot.Int([16, 1, None], widths=[32, 64]),
        scale=aot.Float(),
        BLOCK=[32, 64],
    )
    .types(T=["fp16", "fp32"])
)


class Memory:
    """What Triton's JIT takes for a tensor."""

    def __init__(self, address, dtype):
        self.address, self.dtype = address, dtype

    def data_ptr(self):
        return self.address


edges = [0, 1, 15, 16, 17, 2**31 - 1, 2**31, 2**31 + 1, -(2**31), -(2**31) - 1, 2**63 - 1, -(2**63)]
integers = st.sampled_from(edges) | st.integers(-(2**63), 2**63 - 1) | st.integers(-64, 64)
addresses = st.integers(0, 2**48) | st.integers(0, 2**44).map(lambda n: 16 * n)


def key_of(argument):
    """A variant's argument as the JIT's key of it."""
    return argument.type, argument.value if argument.type == "constexpr" else argument.divisible


def jit_key(backend, value):
    """The JIT's key; AMD's `S` is a promise of the specification and decides nothing."""
    type_, said = native_specialize_impl(backend, value, False, True, True)
    return type_, said if type_ == "constexpr" else "D" in (said or "")


@pytest.mark.parametrize("arch", ARCHS)
def test_the_class_of_a_call_is_the_jits(arch):
    kernel, backend = entry(SCALARS, arch), make_backend(triton_target(compile_target(arch)))

    @given(addresses, st.booleans(), integers, integers)
    def check(out, b, n, m):
        values = {"out": out, "h": 1.0, "g": 1.0, "f": 0.5, "d": 2.0, "b": b, "n": n, "m": m}
        constexprs = {"BLOCK": 32, "KIND": None}
        found = aot.select(kernel, arch, {}, {**values, **constexprs})
        chosen = dict(zip((p.name for p in kernel.parameters), found.arguments, strict=True))
        expected = {name: jit_key(backend, values[name]) for name in ("b", "n", "m", "f")}
        expected["out"] = jit_key(backend, Memory(out, torch.float32))
        assert {name: key_of(chosen[name]) for name in expected} == expected
        assert [chosen[name].type for name in ("h", "g", "d")] == ["fp16", "bf16", "fp64"]

    check()


@pytest.mark.parametrize("arch", ARCHS)
def test_what_is_compiled_for_a_call_is_what_the_jit_compiles(arch):
    """Signature, constexprs and attributes, with annotations, nulls and `do_not_specialize`."""
    expansion, kernel = Expansion(DECLARED, (arch,)), entry(DECLARED, arch)
    fn, backend = DECLARED.fn, make_backend(triton_target(compile_target(arch)))
    binder = create_function_from_signature(fn.signature, fn.params, backend)
    types = st.sampled_from([("fp16", torch.float16), ("fp32", torch.float32)])

    @given(types, addresses, addresses | st.none(), integers, integers, st.sampled_from([32, 64]))
    def check(type_, x, bias, n, seed, block):
        bias = bias or None
        values = {"x": x, "bias": bias, "out": 16, "n": n, "seed": seed, "scale": 0.5}
        found = aot.select(kernel, arch, {"T": type_[0]}, {**values, "BLOCK": block})
        ours = expansion.combinations[kernel.variants.index(found)]
        asked = request(declared(fn), expansion.parameters, ours)

        pointers = ("x", "bias", "out")
        memory = {k: Memory(values[k], type_[1]) for k in pointers if values[k] is not None}
        bound = {**values, **memory, "BLOCK": block}
        _, specialization, _ = binder(**bound)
        options = dict(STATED_OPTIONS)
        _, *theirs, attributes = fn._pack_args(backend, options, bound, specialization, {})
        said = {index: found for index, found in attributes.items() if found}
        assert compile_arguments(asked) == (*theirs, said)

    check()


def test_a_type_that_is_compiled_in_reaches_triton_as_its_dtype():
    kernel = SCALARS.spec(KIND=aot.Type("T"), out=aot.Ptr("T")).types(T=["bf16", "i32", "u8"])
    expansion = Expansion(kernel, ("sm_90",))
    first = {c.types: c for c in reversed(expansion.combinations)}
    for name, dtype in (("bf16", tl.bfloat16), ("i32", tl.int32), ("u8", tl.uint8)):
        asked = request(declared(kernel.fn), expansion.parameters, first[(name,)])
        assert compile_arguments(asked)[1][(9,)] == dtype


def test_a_promise_of_small_tensors_reaches_amds_compiler_alone():
    kernel = SCALARS.spec(out=aot.Ptr("fp32", small=True))
    for arch, expected in (
        ("gfx942", [["tt.divisibility", 16], ["tt.pointer_range", 32]]),
        ("sm_90", [["tt.divisibility", 16]]),
    ):
        expansion = Expansion(kernel, (arch,))
        asked = request(declared(kernel.fn), expansion.parameters, expansion.combinations[0])
        assert compile_arguments(asked)[2][(0,)] == expected


def call(**changes):
    values = {"x_ptr": 16, "y_ptr": 16, "out_ptr": 16, "n_elements": 64, "BLOCK_SIZE": 64}
    return {**values, **changes}


def chosen(kernel, arch="sm_90", warps=0, stages=0, t="fp16", **changes):
    return aot.select(kernel, arch, {"T": t}, call(**changes), warps, stages)


def arguments(variant):
    return [a.type + ":16" * a.divisible for a in variant.arguments[:4]]


def test_tied_arguments_fall_back_together():
    kernel = entry(add_kernel().types(T=["fp16"]), "sm_90")
    assert arguments(chosen(kernel)) == ["*fp16:16"] * 3 + ["i32:16"]
    assert arguments(chosen(kernel, y_ptr=8)) == ["*fp16"] * 3 + ["i32:16"]
    assert arguments(chosen(kernel, y_ptr=8, n_elements=7)) == ["*fp16"] * 3 + ["i32"]
    assert arguments(chosen(kernel, n_elements=2**31)) == ["*fp16"] * 3 + ["i64"]
    assert arguments(chosen(kernel, x_ptr=None)) == ["*fp16:16"] * 3 + ["i32:16"]  # an empty tensor


@pytest.mark.parametrize(
    ("device", "built"),
    [("sm_86", "sm_80"), ("sm_89", "sm_86"), ("sm_90", "sm_90"), ("gfx942", "gfx942")],
)
def test_code_runs_on_what_it_was_built_for(device, built):
    archs = ("sm_80", "sm_90", "gfx942", *(["sm_86"] if built == "sm_86" else []))
    kernel = entry(add_kernel().types(T=["fp16"]), *archs)
    assert chosen(kernel, device).arch == built


@pytest.mark.parametrize("device", ["sm_75", "sm_100", "sm_103", "gfx90a", "sm_9x", "gfx1100"])
def test_code_for_another_architecture_is_not_taken(device):
    kernel = entry(add_kernel().types(T=["fp16"]), "sm_80", "sm_90", "gfx942")
    with pytest.raises(ArtifactError, match=rf"no code for {device}; .* sm_80, sm_90, gfx942"):
        chosen(kernel, device)


def test_a_missing_specialisation_names_the_nearest_and_what_it_needs():
    kernel = add_kernel(num_warps=[4, 8]).types(T=["fp16", "bf16"])
    kernel = entry(kernel, "sm_90")
    for changes, message in (
        ({"BLOCK_SIZE": 128}, "`BLOCK_SIZE` to be 64, not 128"),
        ({"warps": 2}, "`num_warps` to be 4, not 2"),
        ({"stages": 9}, "`num_stages` to be 3, not 9"),
        ({"t": "fp32"}, "`T`, the type of `x_ptr`, `y_ptr` and `out_ptr`, to be fp16, not fp32"),
        ({"BLOCK_SIZE": True}, "`BLOCK_SIZE` to be 64, not True"),
        ({"n_elements": 2**63}, "`n_elements` to be from "),
    ):
        with pytest.raises(ArtifactError, match=message):
            chosen(kernel, **changes)


def test_a_missing_argument_is_named():
    kernel = entry(add_kernel().types(T=["fp16"]), "sm_90")
    values = {name: value for name, value in call().items() if name != "n_elements"}
    with pytest.raises(ArtifactError, match="`n_elements`, which is missing"):
        aot.select(kernel, "sm_90", {"T": "fp16"}, values)


def test_a_tuned_choice_fills_in_what_a_call_leaves_open():
    kernel = add_kernel(BLOCK_SIZE=[64, 128], num_warps=[4, 8]).types(T=["fp16", "bf16"])
    rows = (
        Choice("sm_80", (), (), {"BLOCK_SIZE": 64}, 4, 3),
        Choice("sm_90", ("fp16",), (("n_elements", 0, 1000),), {"BLOCK_SIZE": 128}, 8, 3),
        Choice("sm_90", (), (), {"BLOCK_SIZE": 64}, 8, 3),
    )
    kernel = dataclasses.replace(entry(kernel, "sm_90"), choices=rows)

    def picked(warps=0, **changes):
        values = {name: v for name, v in call(**changes).items() if name != "BLOCK_SIZE"}
        values.update({"BLOCK_SIZE": changes["BLOCK_SIZE"]} if "BLOCK_SIZE" in changes else {})
        found = aot.select(kernel, "sm_90", {"T": changes.get("t", "fp16")}, values, warps)
        return found.arguments[4].value, found.num_warps

    assert picked() == (128, 8)
    assert picked(n_elements=1000) == (128, 8)
    assert picked(n_elements=1001) == (64, 8)
    assert picked(t="bf16") == (64, 8)
    assert picked(BLOCK_SIZE=64) == (64, 8)  # the first row is of another block
    assert picked(BLOCK_SIZE=64, warps=4) == (64, 4)


def test_a_tuned_choice_is_taken_as_in_c():
    """Stages alone leave the warps to the choice; one that has no variant leaves the call to the
    first that fits."""
    plain = entry(add_kernel(BLOCK_SIZE=[64, 128], num_warps=[4, 8]).types(T=["fp16"]), "sm_90")
    values = call(BLOCK_SIZE=64)
    for warps, stages, expected in ((8, 0, 8), (8, 3, 8), (2, 0, 4)):
        rows = (Choice("sm_90", (), (), {"BLOCK_SIZE": 64}, warps, 3),)
        kernel = dataclasses.replace(plain, choices=rows)
        found = aot.select(kernel, "sm_90", {"T": "fp16"}, values, 0, stages)
        assert found.num_warps == expected
    left_open = {name: value for name, value in values.items() if name != "BLOCK_SIZE"}
    with pytest.raises(ArtifactError, match="`num_warps` to be 4, not 2"):
        aot.select(kernel, "sm_90", {"T": "fp16"}, left_open)
