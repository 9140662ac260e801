"""Torch's own tensors, which an artifact's Python module reads past the exchange table: the same as
through it, and only where every word of torch agrees."""

from __future__ import annotations

import contextlib
import shutil
import struct
from pathlib import Path

import aot_module_process as process
import pytest
from aot_module_process import Module

import aot_c_cases as cases

pytestmark = process.NEEDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory, flags):
    """An artifact and its module, of which each test takes a copy: a class is looked at once."""
    made = process.build(
        tmp_path_factory.mktemp("view") / "pair", "pair", [cases.add_entry("pair_add")]
    )
    process.compiled(made, "pair", *flags)
    return made


@pytest.fixture
def run(child, folder, tensors, tmp_path):
    """Runs a function in the process, with a copy of the artifact."""
    copy = Path(shutil.copytree(folder, tmp_path / "pair"))
    return lambda function, *args: child.run(function, copy, tensors, *args)


@contextlib.contextmanager
def on_gpu(module, device=0):
    """Torch's own tensors look as if on a GPU, to their exchange table alone."""
    import torch

    before = torch.Tensor.__dlpack_c_exchange_api__
    torch.Tensor.__dlpack_c_exchange_api__ = module.tensors.wrap(before, device)
    try:
        yield
    finally:
        torch.Tensor.__dlpack_c_exchange_api__ = before


def outcome(module, tensor):
    """What a call makes of a tensor: the address that is launched with, or what it raises."""
    before = module.fake.fake_launches()
    try:
        module.artifact.pair_add(tensor, tensor, tensor, 1024, 1.5, 64, stream=7)
    except Exception as error:
        return type(error).__name__, str(error)
    return module.fake.fake_launch(before).contents.parameters[:3]


def views(module, tensor):
    """What a call makes of it, and how often it asked the exchange table."""
    before = module.tensors.seen()
    return outcome(module, tensor), module.tensors.seen() - before


def address_of(tensor):
    return [struct.pack("<Q", tensor.data_ptr())] * 3


# Each function below runs in the child.


def same_both_ways(folder, tensors):
    import torch

    class Other(torch.Tensor):
        """A subclass: the exchange table speaks for it."""

    names = (
        "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 bfloat16 float32 float64 "
        "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz complex64 float8_e8m0fnu"
    )
    m = Module(folder, tensors)
    with on_gpu(m):
        x = torch.zeros(64, dtype=torch.float16)
        assert views(m, x) == (address_of(x), 1)  # looked at
        assert views(m, x) == (address_of(x), 0)
        for name in names.split():
            y = torch.zeros(64, dtype=getattr(torch, name))
            known = 0 if name[:7] != "complex" and name[-3:] != "fnu" else 1
            told, count = views(m, y)
            assert count == known, name
            exchanged, count = views(m, y.as_subclass(Other))
            assert (told, count > 0) == (exchanged, True), name
        assert views(m, x[3:]) == (address_of(x[3:]), 0)
        assert views(m, x[5:5]) == ([bytes(8)] * 3, 0)  # nothing in it: a null address
        assert views(m, torch._neg_view(x)) == (address_of(x), 0)
        w = torch.nn.Parameter(torch.zeros(8, dtype=torch.float16))
        assert [views(m, w) for _ in range(2)] == [(address_of(w), 1), (address_of(w), 0)]
        z = torch.zeros(32, dtype=torch.float16)
        there = address_of(z), address_of(x)
        torch.utils.swap_tensors(x, z)
        assert (views(m, x), views(m, z)) == ((there[0], 0), (there[1], 0))


def test_what_torch_says_is_what_the_table_says(run):
    run(same_both_ways)


def refused_as_before(folder, tensors):
    import torch

    m = Module(folder, tensors)
    x = torch.zeros(64, dtype=torch.float16)
    host = outcome(m, x)
    assert host[0] == "ValueError"
    assert "`x` is in the host's memory" in host[1]
    with on_gpu(m):
        assert outcome(m, x) == host  # the table that was found first holds


def told_by_the_table(folder, tensors):
    import torch

    m = Module(folder, tensors)
    with on_gpu(m):
        x = torch.zeros(64, dtype=torch.float16)
        assert views(m, x[:0])[1] == 3  # says nothing of where addresses are
        assert views(m, x[:0])[1] == 3
        assert [views(m, x)[1] for _ in range(2)] == [1, 0]
        meta = outcome(m, torch.zeros(64, dtype=torch.float16, device="meta"))
        sparse = outcome(m, torch.zeros(8, 8, dtype=torch.float16).to_sparse())
        for kind, message in (meta, sparse):
            assert (kind, "`x` has no memory that a kernel could use" in message) == (
                "TypeError",
                True,
            ), message
        assert views(m, x) == (address_of(x), 0)


def test_what_has_no_memory_is_refused(run):
    run(told_by_the_table)


def test_tensors_of_the_host_are_refused(run):
    run(refused_as_before)


def words_that_disagree(folder, tensors, which):
    import torch

    m = Module(folder, tensors)
    x = torch.zeros(64, dtype=torch.float16)
    with on_gpu(m, device=int(which == "device")):
        m.fake.fake_use(int(which == "device"))
        if which == "address":
            torch.Tensor._cdata = property(lambda self: 0x1000)
        elif which == "nothing":
            torch.Tensor._cdata = property(lambda self: 1 / 0)
        try:
            for _ in range(3):
                assert views(m, x) == (address_of(x), 3)
        finally:
            if which != "device":
                del torch.Tensor._cdata


@pytest.mark.parametrize("which", ["address", "nothing", "device"])
def test_a_word_that_disagrees_leaves_the_table(run, which):
    run(words_that_disagree, which)
