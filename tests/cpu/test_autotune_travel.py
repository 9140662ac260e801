"""What of a user's kernel and call travels to a worker and to the compile server, and how."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
import users_kernels as users
from triton.language import cdiv as up
from triton.tools.tensor_descriptor import TensorDescriptor

from gristmill.compile.executor import EXECUTOR
from gristmill.core.config import Config
from gristmill.core.launch import Launch
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.target import named_target
from gristmill.errors import GristmillError
from gristmill.tuners.arguments import Arguments, CannotTravelError, Copies, on_meta
from gristmill.tuners.compiler import KernelCompilePool
from gristmill.tuners.travel import module_source, pack, source_hash, unpack
from gristmill.tuners.trial import Call
from gristmill.tuners.worker import TASK

TARGET = named_target("sm_90")


# --------------------------------------------------------------------------------- arguments


def through_json(arguments, folder):
    return Arguments.load(folder, json.loads(json.dumps(arguments.save(folder, "a"))))


@pytest.mark.parametrize("crossed", [False, True])
def test_copies_keep_layout_overlap_alignment_and_everything_else(tmp_path, crossed):
    memory = torch.arange(64, dtype=torch.float32)
    args = (
        memory[1:33:2],
        memory[:16].view(4, 4).t(),
        torch.ones(3, 4, dtype=torch.bfloat16)[:, ::2],
        torch.empty(0, 5, dtype=torch.int64),
        torch.tensor(3),
        torch.zeros(4, 1).expand(4, 8),
        None, 7, 1.5, True, "text", tl.float16, tl.constexpr(3), (1, memory[2:4], (None,)),
    )  # fmt: skip
    kwargs = {"descriptor": TensorDescriptor.from_tensor(memory.view(8, 8), [4, 8])}
    arguments = Arguments.of(args, kwargs)
    copies = Copies(through_json(arguments, tmp_path) if crossed else arguments, owned=crossed)
    for old, new in zip(args, copies.args, strict=True):
        if isinstance(old, torch.Tensor):
            assert (new.shape, new.stride(), new.dtype) == (old.shape, old.stride(), old.dtype)
            assert torch.equal(new, old)
            if old.numel():
                assert new.data_ptr() % 512 == old.data_ptr() % 512
                assert new.data_ptr() != old.data_ptr()
        elif not isinstance(old, (tuple, tl.constexpr)):
            assert new == old
            assert type(new) is type(old)
    assert copies.args[0].data_ptr() - copies.args[1].data_ptr() == 4
    assert copies.args[-2].value == 3
    assert torch.equal(copies.args[-1][1], memory[2:4])
    assert copies.kwargs["descriptor"].block_shape == [4, 8]
    assert copies.kwargs["descriptor"].base.data_ptr() == copies.args[1].data_ptr()


def test_copies_are_put_back_and_a_write_around_them_shows():
    x = torch.arange(10.0)
    copies = Copies(Arguments.of((x[2:8],), {}))
    (copy,) = copies.args
    copy.zero_()
    assert torch.equal(x, torch.arange(10.0))
    assert torch.equal(copies.named(["x"], fresh=True)["x"], x[2:8])
    copies.restore()
    assert torch.equal(copy, x[2:8])
    assert copies.intact()
    copy.as_strided((8,), (1,), copy.storage_offset())[7] = 3.0  # the storage's own: no canary
    assert copies.intact()
    copy.as_strided((9,), (1,), copy.storage_offset())[8] = 3.0
    assert not copies.intact()
    copies.restore()
    assert copies.intact()


def test_of_a_huge_storage_only_the_spanned_part_is_copied(monkeypatch):
    monkeypatch.setattr("gristmill.tuners.arguments.WHOLE_STORAGE_BYTES", 64)
    memory = torch.arange(100.0)
    arguments = Arguments.of((memory[10:20], memory[30:40:3]), {})
    assert arguments.size_bytes == 4 * 30
    copies = Copies(arguments)
    assert torch.equal(copies.args[1], memory[30:40:3])
    assert copies.args[1].data_ptr() - copies.args[0].data_ptr() == 4 * 20


def test_what_has_no_description_does_not_cross(tmp_path):
    arguments = Arguments.of((object(), torch.ones(3)), {})
    with pytest.raises(CannotTravelError, match="an argument is a object"):
        arguments.save(tmp_path, "a")
    with pytest.raises(CannotTravelError, match="a keyword is a function"):
        Call((1,), {"BLOCK": lambda: 3}).to_json()
    with pytest.raises(CannotTravelError, match="a tensor"):
        Call((1,), {"BLOCK": torch.ones(1)}).to_json()
    call = Call((4, 2), {"DTYPE": tl.float16, "BLOCK": 16, "SHAPE": (1, 2), "F": float("inf")})
    assert Call.from_json(json.loads(json.dumps(call.to_json()))) == call


# ------------------------------------------------------------------------------------- kernels

SCALE = tl.constexpr(0.5)
SHIFT = tl.constexpr(3)
KIND = tl.float32
N = torch.ones(3)  # a global that is no constant, named like an argument


def made(limit):
    """A kernel of a notebook or a factory: it cannot be imported by its name."""
    limit = tl.constexpr(limit) if isinstance(limit, int) else limit

    @triton.jit
    def inner(x):
        return x * SCALE

    renamed = inner

    @triton.constexpr_function
    def halved(block):
        return block // 2

    @triton.jit(do_not_specialize=["N"])
    def kernel(x_ptr, N, DTYPE: tl.constexpr, BLOCK: tl.constexpr = 16):
        offsets = tl.arange(0, halved(BLOCK))
        x = tl.load(x_ptr + offsets, mask=offsets < N).to(KIND)
        tl.store(x_ptr + offsets, renamed(x) + SHIFT + limit + up(N, 2), mask=offsets < N)

    return kernel


def test_an_importable_kernel_travels_by_name():
    packed = pack(users.double)
    assert packed["name"] == "users_kernels:double"
    assert unpack(packed, Path()) is users.double


def test_a_kernel_that_is_another_one_there_travels_by_source(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(users, "FACTOR", tl.constexpr(3.0))
        packed = pack(users.double)
    found = unpack(packed, tmp_path)
    assert found is not users.double
    assert source_hash(found) == packed["hash"] != source_hash(users.double)
    del packed["source"]
    monkeypatch.setattr("importlib.reload", lambda module: module)
    with pytest.raises(GristmillError, match="another source in the worker"):
        unpack(packed, tmp_path)


def test_any_other_kernel_travels_by_source_with_what_it_uses(tmp_path):
    kernel = made(limit=7)
    packed = json.loads(json.dumps(pack(kernel)))
    assert "torch" not in packed["source"]  # `N` is its argument
    for line in (
        "limit = triton.language.constexpr(7)",
        "@triton.constexpr_function",
        "SHIFT = triton.language.constexpr(3)",
        "renamed = inner",
    ):
        assert line in packed["source"]
    found = unpack(packed, tmp_path)
    assert found is not kernel
    assert source_hash(found) == source_hash(kernel) == packed["hash"]
    assert found.do_not_specialize == ["N"]
    assert found.arg_names == kernel.arg_names
    values = (torch.empty(64, device="meta"), 5, tl.float32)
    EXECUTOR.compile(Launch(found, (1,), values, {"BLOCK": 16}), TARGET)


def test_the_hash_of_a_kernel_is_of_everything_that_it_uses(monkeypatch):
    before = source_hash(made(limit=7))
    assert source_hash(made(limit=7)) == before
    assert source_hash(made(limit=8)) != before
    monkeypatch.setitem(globals(), "SCALE", tl.constexpr(0.25))  # of a function that it calls
    assert source_hash(made(limit=7)) != before


def test_what_cannot_travel_says_what_it_is():
    with pytest.raises(CannotTravelError, match="`limit`, which it uses, is a dict"):
        module_source(made(limit={}))
    with pytest.raises(CannotTravelError, match="cannot be imported by its name"):
        pack(lambda x: x)
    assert pack(users.plain)["name"] == "users_kernels:plain"


SCRIPT = """
import json, sys, triton, triton.language as tl
from pathlib import Path
from gristmill.tuners.travel import pack, unpack, source_hash
WIDTH = tl.constexpr(4)
@triton.jit
def kernel(x_ptr, BLOCK: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, BLOCK), WIDTH)
packed = pack(kernel)
assert "name" not in packed
print(source_hash(unpack(packed, Path(sys.argv[1]))) == packed["hash"])
"""


def test_a_scripts_kernel_travels_by_source(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


# -------------------------------------------------------------------------- the compile server


def test_configs_are_compiled_ahead_for_a_gpu_that_is_not_here(tmp_path):
    x = torch.empty(1000)
    arguments = Arguments.of((x, x[1:], 999), {})
    task = {"function": pack(users.double), "arguments": arguments.save(tmp_path, "arguments")}
    (tmp_path / TASK).write_text(json.dumps(task))
    configs = [
        Config({"FAULT": "none", "BLOCK": 256, "num_warps": 4}),
        Config({"FAULT": "raise", "BLOCK": 256, "num_warps": 4}),
        Config({"FAULT": "none", "BLOCK": 100, "num_warps": 4}),
    ]
    candidates = [Candidate("double", config) for config in configs]

    def resolve(config):
        return Call((4,), dict(config))

    with KernelCompilePool(str(tmp_path), TARGET, resolve, jobs=2) as pool:
        for candidate in candidates:
            pool.submit(candidate)
        done = dict(pool.collect() for _ in candidates)
    assert [done[c].status for c in candidates] == ["ok", "compile_error", "compile_error"]
    assert "it does not compile" in done[candidates[1]].reason
    assert "power of 2" in done[candidates[2]].reason


def test_the_compiler_sees_the_calls_alignment_and_divisibility(tmp_path):
    memory = torch.empty(4096)
    for x, n, divisible in ((memory, 4096, True), (memory[1:], 4095, False)):
        data = Arguments.of((x, x, n), {}).save(tmp_path, "arguments")
        args, kwargs = on_meta(data)
        keywords = {**kwargs, "FAULT": "none", "BLOCK": 512}
        binary = EXECUTOR.compile(Launch(users.double, (1,), args, keywords), TARGET)
        assert ("ld.global.v4" in binary.kernel.asm["ptx"]) == divisible


def test_a_grid_that_raises_is_left_to_the_trial(tmp_path):
    def resolve(config):
        raise ValueError("no grid for this one")

    candidate = Candidate("double", Config({"BLOCK": 256}))
    with KernelCompilePool(str(tmp_path), TARGET, resolve, jobs=1) as pool:
        pool.submit(candidate)
        assert pool.pending == 1
        assert pool.collect() == (candidate, Outcome("ok"))


def test_descriptors_and_kernels_that_cannot_be_had_are_left_to_the_compiler_and_the_trial(
    tmp_path,
):
    x = torch.empty(128, 128, dtype=torch.float16)
    descriptor = TensorDescriptor.from_tensor(x, [64, 64])
    task = {
        "function": pack(users.double_tiles),
        "arguments": Arguments.of((descriptor, descriptor), {}).save(tmp_path, "arguments"),
    }
    candidate = Candidate("double_tiles", Config({"BLOCK_M": 64, "BLOCK_N": 64}))
    outcomes = []
    for hidden in (False, True):
        folder = tmp_path / str(hidden)
        folder.mkdir()
        if hidden:
            task["function"] = {"name": "no_such_module:kernel", "hash": "0"}
        (folder / TASK).write_text(json.dumps(task))
        with KernelCompilePool(
            str(folder), TARGET, lambda config: Call((2, 2), dict(config)), jobs=1
        ) as pool:
            pool.submit(candidate)
            outcomes.append(pool.collect()[1])
    assert [o.status for o in outcomes] == ["ok", "ok"]
    assert outcomes[0].shared_bytes
    assert outcomes[1].shared_bytes is None
