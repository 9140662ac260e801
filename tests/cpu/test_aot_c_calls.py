"""Artifacts in C: which variant serves a call, the exact bytes of its arguments, and what a call
that cannot be served says. In a process over the fake driver."""

from __future__ import annotations

import ctypes
import itertools
import math
import struct

import pytest

import aot_c_cases as cases
from aot_c_process import Library, Pointer, Tensor, at
from gristmill.native.runtime import ELEMENTS

pytestmark = pytest.mark.skipif(not cases.HAS["gcc"], reason="needs gcc")

INVALID, NO_SPECIALISATION, NO_ARCHITECTURE = 1, 2, 3
SCRATCH = [b"\0" * 8] * 2


def pointers(*addresses):
    return [struct.pack("<Q", address) for address in addresses]


# Each function below runs in the child: `child.run(function, library, ...)`.


def arguments_in_order(path):
    lib = Library(path, "many")
    launch = lib.add(n=32, alpha=0.1)
    assert launch.symbol == b"many_add"
    assert list(launch.grid) == [2, 3, 4]
    assert list(launch.block) == [128, 1, 1]
    assert (launch.shared, launch.stream, launch.device) == (0, 0x5151, 0)
    assert launch.attributes == {}
    n, alpha = struct.pack("<i", 32), struct.pack("<f", 0.1)
    assert launch.parameters == [*pointers(0x1000, 0x2000, 0x3000), n, alpha, *SCRATCH]


def test_arguments_are_passed_in_order(child, library):
    child.run(arguments_in_order, library)


def integers_by_class(path):
    lib = Library(path, "many")
    unaligned = {"x": 0x1001, "n": 1}
    for aligned, n in itertools.product(
        (True, False), (1, 16, 17, 0, -16, -17, 2**31 - 1, 2**31, 2**40, -(2**31), -(2**31) - 1)
    ):
        launch = lib.add(x=0x1000 if aligned else 0x1008, n=n)
        sizes = [len(p) for p in launch.parameters[3:-3]]
        if n == 1:
            assert sizes == []  # compiled in
        elif -(2**31) <= n < 2**31:
            assert launch.parameters[3] == struct.pack("<i", n)
        else:
            assert launch.parameters[3] == struct.pack("<q", n)
    launch = lib.add(**unaligned)
    assert launch.parameters[0] == struct.pack("<Q", 0x1001)
    assert len(launch.parameters) == 6


def test_integers_are_passed_by_their_class(child, library):
    child.run(integers_by_class, library)


def selected(path, calls):
    """Which binary serves each call: the calls that load one, counted from an empty artifact."""
    lib = Library(path, "many")
    before, found = 0, []
    for call in calls:
        lib.add(**call)
        now = lib.calls("cuLibraryLoadData")
        found.append(now - before)
        before = now
    return found


def test_each_class_is_a_binary_of_its_own_and_is_loaded_once(child, library):
    aligned = [{"n": 32}, {"n": 48}, {"n": 1}, {"n": 1}]
    # Aligned pointers, but `n` of no aligned variant: the unaligned ones serve.
    rest = [{"n": 17}, {"n": 18}, {"n": 2**31}, {"n": 2**33}]
    unaligned = [{"x": 0x1004, "n": n} for n in (32, 1, 17, 2**31)]
    found = child.run(selected, library, [*aligned, *rest, *unaligned])
    assert found == [1, 0, 1, 0, 1, 0, 1, 0, 1, 1, 0, 0]


def test_types_constexprs_and_warps_select(child, library):
    calls = [
        {"type_": type_, "block": block, "warps": warps}
        for type_, block, warps in itertools.product(("fp16", "fp32"), (64, 128), (4, 8))
    ]
    assert child.run(selected, library, calls * 2) == [1] * 8 + [0] * 8


MODE = b'a "quoted" ??/ mode'
CHOSEN = (3, 1, 0.5, ctypes.c_char_p(MODE), ctypes.c_int32(ELEMENTS["bf16"]))
NONE = (-(2**63), 0, math.nan, ctypes.c_char_p(None), ctypes.c_int32(0))


def constexprs(path):
    lib = Library(path, "many")
    null = ctypes.c_void_p(None)
    for values in (CHOSEN, NONE):
        assert len(lib.ok("options", ctypes.c_void_p(0x10), *values, 7).parameters) == 4
        launch = lib.ok("options", ctypes.c_void_p(0x11), *values, 7)
        assert launch.parameters[0] == struct.pack("<Q", 0x11)
        launch = lib.ok("options", null, *values, 7)  # compiled without the pointer
        assert launch.parameters == [struct.pack("<i", 7), *SCRATCH]
    assert lib.calls("cuLibraryLoadData") == 6
    assert lib.call("options", null, 4, *CHOSEN[1:], 7) == NO_SPECIALISATION
    assert "`count` to be 3; it is 4" in lib.error
    assert lib.call("options", null, 3, 1, 0.25, *CHOSEN[3:], 7) == NO_SPECIALISATION
    assert "`rate` to be 0.5; it is 0.25" in lib.error
    other = ctypes.c_char_p(b"other")
    assert lib.call("options", null, *CHOSEN[:3], other, CHOSEN[4], 7) == NO_SPECIALISATION
    assert "`mode` to be a \"quoted\" ??/ mode; it is 'other'" in lib.error
    kind = ctypes.c_int32(77)
    assert lib.call("options", null, *CHOSEN[:4], kind, 7) == NO_SPECIALISATION
    assert "`kind` to be bf16; it is no type (code 77)" in lib.error
    assert lib.call("options", null, *CHOSEN, 2**31) == NO_SPECIALISATION
    assert f"`double` to fit i32; it is {2**31}" in lib.error


def test_constexprs_of_every_type_and_null_pointers(child, library):
    child.run(constexprs, library)


def missing(path):
    lib = Library(path, "many")

    def message(expected=NO_SPECIALISATION, warps=4, stages=3, **arguments):
        args = lib.add_arguments(**arguments)
        assert lib.call("many_add", *args, warps=warps, stages=stages) == expected
        return lib.error

    start = "many_add: no specialisation for this call. The nearest (sm_90, T="
    text = message(type_="bf16")
    assert text.startswith(start)
    assert text.endswith("needs `T`, the type of `x`, `y` and `out`, to be fp16; it is bf16")
    assert message(type_="none").endswith("to be fp16; it is none")
    assert message(block=96).endswith("needs `BLOCK` to be 64; it is 96")
    text = message(warps=16)
    assert text.endswith(
        "T=fp16, BLOCK=64, num_warps=4, num_stages=3) needs `num_warps` to be 4; it is 16"
    )
    assert message(stages=2).endswith("needs `num_stages` to be 3; it is 2")
    args = (at(0, "fp16"), at(16, "fp32"), at(16, "fp16"), 16, 1.0, 64)
    assert lib.call("many_add", *args) == INVALID
    assert lib.error.startswith("many_add: `y` has type fp32 (code 12)")
    assert lib.error.endswith("must be fp16")
    wide = [3] * 39
    assert lib.call("wide", *wide, 2**31) == NO_SPECIALISATION
    assert "`n39` to fit i32" in lib.error
    assert lib.calls("cuLaunchKernelEx") == 0


def mixed(path):
    lib = Library(path, "many")
    for types, said in (
        (("fp16", "fp32", "fp16"), "`y` has type fp32 (code 12); as `x`, it must be fp16"),
        (("fp32", "fp16", "fp16"), "`x` has type fp32 (code 12); as `y`, it must be fp16"),
        (("fp16", "fp16", "bf16"), "`out` has type bf16 (code 11); as `x`, it must be fp16"),
        # The compiled type is the one that a call can have, however few have it.
        (("fp64", "fp64", "fp32"), "`x` has type fp64 (code 13); as `out`, it must be fp32"),
        (("bf16", "fp64", "fp16"), "`x` has type bf16 (code 11); as `out`, it must be fp16"),
        (("bf16", "bf16", "i8"), "`out` has type i8 (code 2); as `x`, it must be bf16"),
        (("i8", "bf16", "fp64"), "`x` has type i8 (code 2) and `y` has type bf16 (code 11); "),
        (("fp16", "none", "fp16"), "`y` has type none (code 0); as `x`, it must be fp16"),
    ):
        args = [at(16, type_) for type_ in types]
        assert lib.call("many_add", *args, 16, 1.0, 64) == INVALID
        assert lib.error.startswith(f"many_add: {said}"), lib.error
    absent = (at(0, "none"), at(16, "fp32"), at(16, "fp16"), 16, 1.0, 64)
    assert lib.call("many_add", *absent) == INVALID
    assert lib.error == (
        "many_add: `y` has type fp32 (code 12) and `out` has type fp16 (code 10); they must be of "
        "one type"
    )
    unknown = (at(16, "fp16"), Pointer(16, 99), at(16, "fp16"), 16, 1.0, 64)
    assert lib.call("many_add", *unknown) == INVALID
    assert lib.error == "many_add: `y` has type unknown (code 99); as `x`, it must be fp16"
    assert lib.calls("cuLaunchKernelEx") == 0


def test_of_several_types_the_one_that_is_wrong_is_named(child, library):
    child.run(mixed, library)


def test_a_missing_specialisation_names_the_nearest_and_the_first_failing_condition(child, library):
    child.run(missing, library)


def masks_of_two_words(path):
    lib = Library(path, "many")
    lib.ok("wide", *[16] * 40)
    assert lib.calls("cuLibraryLoadData") == 1
    lib.ok("wide", *[3] * 39, 32)
    assert lib.calls("cuLibraryLoadData") == 2
    lib.ok("wide", *[16] * 39, 3)
    assert lib.calls("cuLibraryLoadData") == 3


def test_more_than_64_conditions(child, library):
    child.run(masks_of_two_words, library)


def null_pointers(path):
    lib = Library(path, "many")
    args = (at(0, "none"), at(0x2000), at(0x3000), 32, 1.0, 64)  # the others say the type
    assert lib.ok("many_add", *args).parameters[0] == b"\0" * 8
    assert lib.add(x=0, y=0, out=0).parameters[:3] == [b"\0" * 8] * 3  # an empty tensor


def test_null_is_an_address_where_it_is_no_option(child, library):
    child.run(null_pointers, library)


def tuned(path):
    lib = Library(path, "many")
    for n, block in ((1000, 64), (1001, 128), (5000, 128)):
        status = lib.c.many_add_tuned(
            *(at(0x1000), at(0x1000), at(0x1000)), ctypes.c_int64(n), ctypes.c_double(1.0), None
        )
        assert status == 0, lib.error
        launch = lib.fake.fake_launch(lib.fake.fake_launches() - 1).contents
        assert list(launch.grid) == [-(-n // block), 1, 1]
        assert launch.block[0] == 256  # eight warps, as chosen
    assert lib.add(n=999, warps=0, stages=0).block[0] == 256
    assert lib.add(n=999, warps=4, stages=0).block[0] == 128  # what is asked for comes first
    assert lib.add(n=999, block=128, type_="fp32", warps=0, stages=0).block[0] == 256
    assert lib.add(n=999, type_="fp32", warps=0, stages=0).block[0] == 128  # no choice: the first
    lib.fake.fake_use(1)  # choices were measured elsewhere
    assert lib.add(n=999, warps=0, stages=0).block[0] == 128
    args = (at(16), at(16), at(16), ctypes.c_int64(9), ctypes.c_double(1.0), None)
    assert lib.c.many_add_tuned(*args) == NO_SPECIALISATION
    assert "no tuned choice is for this call on sm_80" in lib.error


def test_tuned_choices(child, library):
    child.run(tuned, library)


def grids(path):
    lib = Library(path, "many")
    grid = (ctypes.c_int64 * 3)()

    def of(m, n, warps=4):
        args = (ctypes.c_int64(m), ctypes.c_int64(n), ctypes.c_int64(16))
        status = lib.c.grids_grid(*args, ctypes.c_int32(warps), ctypes.c_int32(1), grid)
        return list(grid) if status == 0 else status

    for m, n in itertools.product((0, 1, 15, 16, 17, 1000, 2**40), (1, 7, 16, 2**33)):
        assert of(m, n) == [-(-m // 16) * 4, max(m // n, 2) + m % n, min(m - n, 7)]
    assert of(-5, 3) == [0, 2 + 1, -8]  # rounded down, as Python does
    for m, n in ((1, 0), (2**63 - 1, -1), (-(2**63), -1), (-(2**63), 5)):
        assert of(m, n) == INVALID
        assert "divide by zero or overflow" in lib.error
    assert of(1, 1, warps=0) == INVALID
    assert "`num_warps` is 0" in lib.error
    args = (ctypes.c_int64(1), ctypes.c_int64(1), ctypes.c_int64(16))
    assert lib.c.grids_grid(*args, ctypes.c_int32(4), ctypes.c_int32(1), None) == INVALID


def test_grids_divide_by_zero_without_a_signal(child, library):
    child.run(grids, library)


def empty_and_bad_grids(path):
    lib = Library(path, "many")
    args = lib.add_arguments()
    for grid in ((0, 1, 1), (1, 0, 1), (1, 1, 0), (0, 0, 0)):
        assert lib.call("many_add", *args, grid=grid) == 0
    assert lib.calls("cuLaunchKernelEx") == 0
    for grid in ((-1, 1, 1), (1, -1, 1), (0, 0, -1), (2**31, 1, 1), (1, 65536, 1), (1, 1, 65536)):
        assert lib.call("many_add", *args, grid=grid) == INVALID
        assert f"the grid is {grid}" in lib.error
    largest = (2**31 - 1, 65535, 65535)
    assert list(lib.ok("many_add", *args, grid=largest).grid) == list(largest)
    assert lib.call("clustered", ctypes.c_void_p(16), grid=(2**28, 1, 1)) == INVALID
    assert "16-block clusters" in lib.error


def test_an_empty_grid_is_success_and_a_bad_one_an_error(child, library):
    child.run(empty_and_bad_grids, library)


def tensors(path):
    lib = Library(path, "many")
    shape, strides = (ctypes.c_int64 * 2)(100, 80), (ctypes.c_int64 * 2)(88, 1)

    def tensor(data=0x10000, type_="fp16", shape=shape, strides=strides):
        at = [ctypes.addressof(a) if a is not None else None for a in (shape, strides)]
        return Tensor(data, ELEMENTS[type_], *at)

    class Map(ctypes.Structure):
        _fields_ = [
            ("numbers", ctypes.c_int * 6),
            *(("shape", ctypes.c_uint64 * 5), ("strides", ctypes.c_uint64 * 5)),
            *(("box", ctypes.c_uint32 * 5), ("steps", ctypes.c_uint32 * 5)),
        ]

    launch = lib.ok("tensors", tensor(), 9)
    made = Map.from_address(lib.fake.fake_last_map())
    assert list(made.numbers) == [6, 2, 0, 3, 2, 0]  # type, rank, interleave, swizzle, L2, fill
    assert list(made.shape)[:2] == [80, 100]
    assert list(made.strides)[:1] == [176]
    assert (list(made.box)[:2], list(made.steps)[:2]) == ([32, 64], [1, 1])
    assert lib.fake.fake_last_map_address() == 0x10000
    extents = [
        struct.pack("<i", 100),
        struct.pack("<i", 80),
        struct.pack("<q", 88),
        struct.pack("<q", 1),
    ]
    rest = [struct.pack("<i", 9), *SCRATCH]
    encoded = struct.pack("<Q", 0x10000) + b"\xa5" * 120
    assert launch.parameters == [encoded, *extents, *rest]
    launch = lib.ok("nibbles", tensor(), 9)  # two 4-bit values a byte
    assert launch.parameters[1:6] == [extents[0], struct.pack("<i", 160), *extents[2:], rest[0]]
    assert list(Map.from_address(lib.fake.fake_last_map()).shape)[:2] == [160, 100]
    far = (ctypes.c_int64 * 2)(2**31, 80)
    flat, odd = (ctypes.c_int64 * 2)(88, 2), (ctypes.c_int64 * 2)(81, 1)
    for wrong, said in (
        (tensor(0x10008), "address must be a multiple of 16"),
        (tensor(shape=far), "2147483648 values along dimension 0"),
        (tensor(strides=flat), "stride 2 along dimension 1"),
        (tensor(strides=odd), "stride 81 along dimension 0"),
        (tensor(shape=None), "pass 2 of each"),
        (tensor(strides=None), "pass 2 of each"),
    ):
        assert lib.call("tensors", wrong, 9) == INVALID
        assert said in lib.error
    assert lib.call("tensors", tensor(type_="fp32"), 9) == NO_SPECIALISATION
    lib.fake.fake_use(1)
    launch = lib.ok("tensors", tensor(0x10008), 9)
    wide = [struct.pack("<q", v) for v in (100, 80, 88, 1)]
    assert launch.parameters == [struct.pack("<Q", 0x10008), *wide, b"\0", *extents, *rest]
    assert lib.call("tensors", tensor(shape=far), 9) == INVALID


def test_tensors_are_encoded_or_taken_apart(child, library):
    child.run(tensors, library)
