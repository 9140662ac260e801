"""The dispatcher in C takes the variant that Triton's JIT would compile; binaries that Triton
compiled are embedded as they are."""

from __future__ import annotations

import hashlib
import itertools

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from triton._C.libtriton import native_specialize_impl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

import aot_c_cases as cases
from aot_c_process import Child, Library, at
from gristmill.aot.c_artifact import write
from gristmill.aot.manifest import Argument, KernelEntry, Manifest, Parameter

pytestmark = pytest.mark.skipif(not cases.HAS["gcc"], reason="needs gcc")

TARGET = GPUTarget("cuda", 90, 32)
POINTERS = [cases.pointer("T"), cases.pointer("T", divisible=False)]
INTEGERS = [
    Argument("i32", True),
    cases.ONE,
    Argument("i32"),
    Argument("i64", True),
    Argument("i64"),
]


def classes_entry():
    """Two pointers and two integers in all the classes that the JIT tells apart."""
    parameters = (
        *(Parameter(name, "pointer", "T") for name in "xy"),
        *(Parameter(name, "integer", "int") for name in "mn"),
    )
    made = [
        cases.variant("jit_call", parameters, "sm_90", (type_,), arguments)
        for type_ in ("fp16", "fp32")
        for arguments in itertools.product(POINTERS, POINTERS, INTEGERS, INTEGERS)
    ]
    variables = (("T", ("fp16", "fp32")),)
    entry = KernelEntry("jit_call", variables, parameters, tuple(v for v, _ in made), "0" * 64)
    return entry, [binary for _, binary in made]


def label(binary):
    return binary.decode().split("# ")[1].strip("\n\0")


@pytest.fixture(scope="module")
def specialised(tmp_path_factory):
    """A library with every class, and the label of each variant's binary by types and classes."""
    folder = tmp_path_factory.mktemp("jit")
    entry, binaries = classes_entry()
    cases.lay_out(folder, "jit", [(entry, binaries)])
    labels = {
        (v.types, v.arguments): label(binary)
        for v, binary in zip(entry.variants, binaries, strict=True)
    }
    return cases.shared_library(folder, "jit"), labels


@pytest.fixture(scope="module")
def plain_child(drivers):
    """The process of `child`, without sanitizers: the other tests have those."""
    made = Child(drivers)
    yield made
    made.close()


def served(path, calls):
    lib = Library(path, "jit")
    found = []
    for type_, x, y, m, n in calls:
        found.append(lib.ok("jit_call", at(x, type_), at(y, type_), m, n).label.decode())
    return found


class Tensor:
    """What the JIT looks at."""

    def __init__(self, address, dtype):
        self.address, self.dtype = address, dtype

    def data_ptr(self):
        return self.address


def jit_class(value):
    """The JIT's own specialisation of a value, as a variant has it."""
    type_, said = native_specialize_impl(make_backend(TARGET), value, False, True, True)
    if type_ == "constexpr":
        return Argument("constexpr", value=said)
    return Argument("*T" if type_[0] == "*" else type_, said == "D")


addresses = st.integers(0, 2**47) | st.integers(0, 2**43).map(lambda n: 16 * n)
edges = st.sampled_from(
    [0, 1, -1, 16, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63 - 1, -(2**63)]
)
integers = edges | st.integers(-(2**63), 2**63 - 1) | st.integers(-64, 64)
calls = st.tuples(st.sampled_from(["fp16", "fp32"]), addresses, addresses, integers, integers)


@settings(max_examples=20)
@given(st.lists(calls, min_size=20, max_size=40))
def test_a_call_is_served_by_what_the_jit_would_compile(plain_child, specialised, made):
    path, labels = specialised
    dtypes = {"fp16": torch.float16, "fp32": torch.float32}
    expected = []
    for type_, x, y, m, n in made:
        tensors = (jit_class(Tensor(a, dtypes[type_])) for a in (x, y))
        expected.append(labels[(type_,), (*tensors, jit_class(m), jit_class(n))])
    assert plain_child.run(served, path, made) == expected


@triton.jit
def _scale_kernel(x_ptr, n, alpha, BLOCK: tl.constexpr):
    at_ = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + at_, tl.load(x_ptr + at_, mask=at_ < n) * alpha, mask=at_ < n)


@pytest.mark.parametrize(
    ("target", "suffix"),
    [(TARGET, "cubin"), (GPUTarget("hip", "gfx942", 64), "hsaco")],
    ids=["sm_90", "gfx942"],
)
def test_a_binary_of_tritons_is_embedded_byte_for_byte(target, suffix, tmp_path):
    signature = {"x_ptr": "*fp32", "n": "i32", "alpha": "fp32", "BLOCK": "constexpr"}
    source = ASTSource(fn=_scale_kernel, signature=signature, constexprs={(3,): 128})
    options = {"num_warps": 4, "enable_fp_fusion": True}  # stated: Triton 3.9 warns of its default
    binary = triton.compile(source, target=target, options=options).asm[suffix]
    digest = hashlib.sha256(binary).hexdigest()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / f"{digest}.{suffix}").write_bytes(binary)
    parameters = (
        Parameter("x_ptr", "pointer", "fp32"),
        Parameter("n", "integer", "int"),
        Parameter("alpha", "float", "fp32"),
        Parameter("BLOCK", "constexpr", "int"),
    )
    arguments = [Argument("*fp32"), Argument("i32"), Argument("fp32"), cases.constexpr(128)]
    arch = "sm_90" if suffix == "cubin" else "gfx942"
    made, _ = cases.variant("scale", parameters, arch, (), arguments)
    made = type(made)(**{f: getattr(made, f) for f in made.__slots__} | {"binary": digest})
    entry = KernelEntry("scale", (), parameters, (made,), "0" * 64)
    write(Manifest("real", (entry,), {}), tmp_path)
    library = cases.shared_library(tmp_path, "real").read_bytes()
    assert library.count(binary) == 1
    assert library.index(binary) % 16 == 0
