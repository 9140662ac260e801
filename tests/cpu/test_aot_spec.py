"""Specifications of what is compiled ahead of time: their words, their product, their faults."""

from __future__ import annotations

import itertools

import aot_kernels
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st
from triton._utils import BITWIDTH_DICT, type_canonicalisation_dict

from aot_cases import add_kernel, entry, example, matmul_kernel
from gristmill import aot
from gristmill.aot.elements import ALIASES, ELEMENT_BYTES, element_type, limits
from gristmill.aot.expand import Expansion
from gristmill.errors import InvalidInputError

ADD = example("vector_add").add_kernel


def expanded(kernel, *archs):
    return Expansion(kernel, archs or ("sm_90",)).combinations


def classes(combinations, *names):
    """What the combinations rely on at the first arguments, in order."""
    found = [[f"{a.type}{':16' * a.divisible}" for a in c.arguments] for c in combinations]
    return found if not names else [[row[i] for i in names] for row in found]


# ------------------------------------------------------------------------------------- elements


def test_element_types_are_tritons():
    assert {name: 8 * size for name, size in ELEMENT_BYTES.items()} | {"u1": 1} == {
        name: BITWIDTH_DICT[name] for name in ELEMENT_BYTES
    }
    for name, canonical in ALIASES.items():
        assert type_canonicalisation_dict.get(name, canonical) == canonical


@pytest.mark.parametrize(
    ("given_as", "name"),
    [
        (torch.bfloat16, "bf16"),
        (tl.float16, "fp16"),
        (torch.float8_e4m3fn, "fp8e4nv"),
        ("bool", "u1"),
        (tl.int1, "u1"),
        (torch.uint8, "u8"),
    ],
)
def test_an_element_type_has_several_names(given_as, name):
    assert element_type(given_as, "it") == name


@given(st.sampled_from(["i8", "i16", "i32", "i64", "u1", "u8", "u16", "u32", "u64"]))
def test_integers_have_the_limits_of_their_types(name):
    low, high = limits(name)
    assert high - low + 1 == 2 ** int(name[1:])
    assert (low < 0) == name.startswith("i")


# ---------------------------------------------------------------------------------- the product


def test_the_product_is_canonical_and_the_most_specialised_comes_first():
    kernel = add_kernel().types(T=["fp16"])
    found = expanded(kernel)
    assert classes(found, 0, 3) == [
        ["*fp16:16", "i32:16"],
        ["*fp16:16", "i32"],
        ["*fp16", "i32:16"],
        ["*fp16", "i32"],
        ["*fp16", "i64"],
    ]
    assert [c.unspecialised for c in found] == [False, False, False, True, True]


def test_types_constexprs_warps_stages_and_architectures_multiply():
    kernel = add_kernel(BLOCK_SIZE=[64, 128], num_warps=[4, 8], num_stages=[2, 3])
    kernel = kernel.types(T=["fp16", "bf16", "fp32"])
    found = expanded(kernel, "sm_80", "gfx942")
    assert len(found) == 2 * 3 * 2 * 2 * 2 * 5
    assert len({c.selector for c in found}) == len(found)
    groups = [(c.arch, c.types, c.arguments[4].value, c.num_warps, c.num_stages) for c in found]
    product = itertools.product(
        ("sm_80", "gfx942"), (("fp16",), ("bf16",), ("fp32",)), (64, 128), (4, 8), (2, 3)
    )
    assert list(dict.fromkeys(groups)) == list(product)


def test_warps_and_stages_are_the_compilers_own_where_nothing_is_said():
    found = expanded(add_kernel().types(T=["fp16"]), "sm_90", "gfx942")
    assert {(c.arch, c.num_warps, c.num_stages) for c in found} == {
        ("sm_90", 4, 3),
        ("gfx942", 4, 2),
    }


def test_an_option_of_one_vendor_is_not_the_others():
    kernel = add_kernel(waves_per_eu=[2], maxnreg=[64]).types(T=["fp16"])
    found = expanded(kernel, "sm_90", "gfx942")
    assert {(c.arch, *c.options.items()) for c in found} == {
        ("sm_90", ("maxnreg", 64)),
        ("gfx942", ("waves_per_eu", 2)),
    }


def test_a_fallback_is_there_although_nobody_asked():
    kernel = aot.Kernel(ADD).spec(
        x_ptr=aot.Ptr("fp16", align=[16]),
        y_ptr=aot.Ptr("fp16", align=[16], optional=True),
        out_ptr=aot.Ptr("fp16", align=16),
        n_elements=aot.Int([16]),
        BLOCK_SIZE=64,
    )
    always = [c for c in expanded(kernel) if c.unspecialised]
    assert classes(always, 0, 1, 2, 3) == [
        ["*fp16", "constexpr", "*fp16", "i32"],
        ["*fp16", "constexpr", "*fp16", "i64"],
        ["*fp16", "*fp16", "*fp16", "i32"],
        ["*fp16", "*fp16", "*fp16", "i64"],
    ]
    assert len(expanded(kernel)) == 6


def test_widths_are_those_that_are_declared():
    def widths(*args, **more):
        kernel = add_kernel(n_elements=aot.Int(*args, **more)).types(T=["fp16"])
        return sorted({row[0] for row in classes(expanded(kernel), 3)})

    assert widths([None], widths=[32]) == ["i32"]
    assert widths([16], widths=[64]) == ["i64", "i64:16"]
    assert widths([16, 1, None], widths=[32, 64]) == ["constexpr", "i32", "i32:16", "i64", "i64:16"]


integers = st.builds(
    aot.Int,
    st.lists(st.sampled_from([16, 1, None]), min_size=1, unique=True),
    st.none() | st.lists(st.sampled_from([32, 64]), min_size=1, unique=True),
)
pointers = st.builds(
    aot.Ptr,
    st.sampled_from(["T", "fp32"]),
    st.lists(st.sampled_from([16, 1]), min_size=1, unique=True),
    st.booleans(),
)


@given(pointers, pointers, pointers, integers, st.booleans())
def test_every_call_that_fits_a_width_has_a_variant(x, y, out, n, tie):
    """And none is there twice, and none comes before one that it implies."""
    given_ = {"x_ptr": x, "y_ptr": y, "out_ptr": out, "n_elements": n}
    kernel = aot.Kernel(ADD).spec(**given_, BLOCK_SIZE=[64]).types(T=["fp16"])
    if "T" not in (x.type, y.type, out.type):
        kernel = aot.Kernel(ADD).spec(**given_, BLOCK_SIZE=[64])
    if tie and x == y:
        kernel = kernel.tie("x_ptr", "y_ptr")
    made = entry(kernel, "sm_90")
    assert len({v.arguments for v in made.variants}) == len(made.variants)
    largest = 2**31 - 1 if n.widths == (32,) else 2**63 - 1
    for value, odd in itertools.product((0, 1, 16, 17, largest), (0, 1)):
        nulls = {name: None for name, spec in given_.items() if getattr(spec, "optional", False)}
        for null in ({}, nulls):
            values = {"x_ptr": 16 + odd, "y_ptr": 16 + odd, "out_ptr": 16 + odd, **null}
            values.update(n_elements=value, BLOCK_SIZE=64)
            assert aot.select(made, "sm_90", {"T": "fp16"}, values)


# ---------------------------------------------------------------------------------------- where


def test_where_sees_every_name_of_a_combination():
    seen = []

    def keep(v):
        seen.append((v.arch, v.T, v.x_ptr, v["n_elements"], v.widths, v.BLOCK_SIZE, v.num_warps))
        return v.unspecialised or (v.x_ptr == 16 and v.n_elements == 16)

    found = expanded(add_kernel().types(T=["fp16"]).where(keep))
    assert classes(found, 0, 3) == [["*fp16:16", "i32:16"], ["*fp16", "i32"], ["*fp16", "i64"]]
    assert seen[0] == ("sm_90", "fp16", 16, 16, {"n_elements": 32}, 64, 4)


def test_a_fallback_that_where_removes_is_named_loudly():
    kernel = add_kernel().types(T=["fp16"]).where(lambda v: v.x_ptr == 16)
    with pytest.warns(aot.MissingFallbackWarning, match=r"x_ptr:\*fp16 .* n_elements:i64"):
        found = expanded(kernel)
    assert classes(found, 0, 3) == [["*fp16:16", "i32:16"], ["*fp16:16", "i32"]]


def test_a_group_that_where_removes_whole_needs_no_fallback():
    kernel = add_kernel(BLOCK_SIZE=[64, 128], num_warps=[4, 8]).types(T=["fp16"])
    found = expanded(kernel.where(lambda v: 16 * v.num_warps == v.BLOCK_SIZE))
    assert {(c.arguments[4].value, c.num_warps) for c in found} == {(64, 4), (128, 8)}


@pytest.mark.parametrize(
    ("predicate", "message"),
    [
        (lambda v: v.BLOCK_SIZ == 64, "Did you mean 'BLOCK_SIZE'"),
        (lambda v: 1 / 0, "`where` raised ZeroDivisionError for sm_90 "),
        (lambda v: False, "`where` leaves no variant of add_kernel"),
    ],
)
def test_a_predicate_that_does_not_work_is_refused(predicate, message):
    with pytest.raises(InvalidInputError, match=message):
        expanded(add_kernel().types(T=["fp16"]).where(predicate))


# ------------------------------------------------------------------------------------ bad input


def spec(**changes):
    return lambda: expanded(add_kernel(**changes).types(T=["fp16"]))


BAD = {
    "an argument that is not there": (spec(x_pt=aot.Ptr("T")), "Did you mean 'x_ptr'"),
    "an option that is not there": (spec(num_warp=[4]), "Did you mean 'num_warps'"),
    "an option that names another target": (spec(arch=["sm_80"]), "`arch` is no parameter"),
    "a list for an argument": (spec(n_elements=[16]), "no constexpr of add_kernel, so it needs"),
    "a class for a constexpr": (spec(BLOCK_SIZE=aot.Int()), "needs a list of values"),
    "a class for an option": (spec(num_warps=aot.Int()), "needs a list of values"),
    "no values": (spec(BLOCK_SIZE=[]), "`BLOCK_SIZE` has no values"),
    "values of two types": (spec(BLOCK_SIZE=[64, "64"]), "need one type"),
    "a value twice": (spec(BLOCK_SIZE=[64, 64]), "twice"),
    "no number": (spec(BLOCK_SIZE=[float("nan")]), "a finite float"),
    "a wide number": (spec(BLOCK_SIZE=[2**64]), "64 bits at most"),
    "a list of lists": (spec(BLOCK_SIZE=[[64]]), "a constexpr can be an int"),
    "no warps": (spec(num_warps=[0]), "positive whole numbers"),
    "an unknown type": (spec(x_ptr=aot.Ptr("fp61")), "Did you mean 'fp64' or 'fp16'"),
    "an unknown variable": (spec(x_ptr=aot.Ptr("TT")), "or a type variable .T."),
    "an unknown compiled-in type": (spec(BLOCK_SIZE=aot.Type("bf61")), "Did you mean 'bf16'"),
    "no type": (lambda: aot.Ptr(16), "the type of a Ptr is 16"),
    "an alignment": (lambda: aot.Ptr("T", align=[8]), "`align` of `aot.Ptr` is .8.; .* 16, 1"),
    "a class": (lambda: aot.Int([2]), "`classes` of `aot.Int`"),
    "a bool as a class": (lambda: aot.Int([True]), "`classes` of `aot.Int`"),
    "a width": (lambda: aot.Int(widths=[16]), "`widths` of `aot.Int`"),
    "a float of integers": (
        lambda: expanded(DECLARED.spec(seed=aot.Float("i32"))),
        "a scalar can be fp16, bf16, fp32",
    ),
    "what the kernel annotates otherwise": (
        lambda: expanded(DECLARED.spec(scale=aot.Float("fp16"))),
        "annotates it as 'fp32'",
    ),
    "a block without sizes": (lambda: aot.Descriptor("T", block="64"), "Pass a list"),
    "a block of six": (lambda: aot.Descriptor("T", block=[1] * 6), "one to five"),
    "two options that no call tells apart": (
        spec(maxnreg=[64, 128]),
        "differ in .*'maxnreg': 64.* alone",
    ),
    "a variable of nothing": (
        lambda: expanded(add_kernel().types(T=["fp16"], U=["fp16"])),
        "the type variable `U`",
    ),
    "a variable without types": (lambda: add_kernel().types(T=[]), "has no types"),
    "a variable's name": (lambda: add_kernel().types(**{"T-": ["fp16"]}), "ASCII letters"),
    "a type that is not there": (lambda: add_kernel().types(T=["fp15"]), "a type of `T`"),
    "a tie of one": (lambda: add_kernel().tie("x_ptr"), "two or more pointers"),
    "a tie of a constexpr": (lambda: add_kernel().tie("x_ptr", "BLOCK_SIZE"), "cannot be tied"),
    "a tie of two kinds": (lambda: add_kernel().tie("x_ptr", "n_elements"), "two or more"),
    "a tie of two classes": (
        spec(y_ptr=aot.Ptr("T", align=[16])),
        "`x_ptr` and `y_ptr` are tied, and have different classes",
    ),
    "a predicate": (lambda: add_kernel().where(True), "needs a function"),
    "a Python function": (lambda: aot.Kernel(print), "needs a `@triton.jit` function"),
    "a name": (lambda: aot.Kernel(ADD, name="a b"), "the kernel's name"),
}
DECLARED = aot.Kernel(aot_kernels.declared).spec(
    x=aot.Ptr("fp16"), bias=aot.Ptr("fp16"), out=aot.Ptr("fp16"), n=aot.Int(), seed=aot.Int(),
    scale=aot.Float(), BLOCK=[32],
)  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_specification_that_says_nonsense_is_refused(case):
    make, message = BAD[case]
    with pytest.raises(InvalidInputError, match=message):
        make()


def test_what_is_left_free_is_named():
    kernel = aot.Kernel(ADD).spec(x_ptr=aot.Ptr("fp16"), y_ptr=aot.Ptr("fp16"))
    with pytest.raises(InvalidInputError, match="the argument `out_ptr` of add_kernel is not in"):
        expanded(kernel)
    kernel = kernel.spec(out_ptr=aot.Ptr("fp16"), n_elements=aot.Int())
    with pytest.raises(InvalidInputError, match="the constexpr `BLOCK_SIZE` of add_kernel"):
        expanded(kernel)


def test_too_many_combinations_are_refused_before_they_are_made():
    every = aot.Int([16, 1, None], widths=[32, 64])
    names = ("M", "N", "K", "stride_am", "stride_bk", "stride_cm", "stride_ak", "stride_bn")
    with pytest.raises(InvalidInputError, match=r"5 \(M\) x .* combinations of classes"):
        expanded(matmul_kernel().spec(**dict.fromkeys(names, every)))


def test_a_specification_is_frozen_and_its_words_return_new_ones():
    first = aot.Kernel(ADD)
    second = first.spec(x_ptr=aot.Ptr("T"))
    assert first.given == {}
    assert set(second.given) == {"x_ptr"}
    assert isinstance(second.types(T="fp16").grid("1"), aot.Kernel)
    with pytest.raises(AttributeError):
        first.name = "other"  # type: ignore[misc]


def test_a_kernel_is_found_under_its_decorators():
    kernel = triton.autotune([triton.Config({}, num_warps=4)], key=["n_elements"])(
        triton.heuristics({"BLOCK_SIZE": lambda args: 64})(ADD)
    )
    assert aot.Kernel(kernel).fn is ADD


def test_a_default_of_a_constexpr_is_its_value():
    kernel = aot.Kernel(aot_kernels.scalars).spec(
        out=aot.Ptr("fp32"), h=aot.Float("fp16"), g=aot.Float("bf16"), f=aot.Float(),
        d=aot.Float("fp64"), b=aot.Bool(), n=aot.Int(), m=aot.Int(), BLOCK=[32],
    )  # fmt: skip
    assert {c.arguments[-1].value for c in expanded(kernel)} == {None}
