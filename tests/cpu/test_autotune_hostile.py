"""What identifies a user's kernel, and arguments that are no plain tensors: what misled `travel`
and `arguments` once."""

from __future__ import annotations

import contextvars
import functools
import json
import sys

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
import users_helpers as helpers
import users_kernels as users
from triton.tools.tensor_descriptor import TensorDescriptor

import gristmill as gm
from gristmill.core.problem import TensorSpec
from gristmill.errors import GristmillError, InvalidInputError, TuningError
from gristmill.tuners import launching
from gristmill.tuners.arguments import Arguments, Copies
from gristmill.tuners.choices import as_space
from gristmill.tuners.run import WorkerMeasurer
from gristmill.tuners.task import KernelTask
from gristmill.tuners.travel import module_source, pack, source_hash, text_hash, unpack
from gristmill.tuners.trial import Call, Terms
from gristmill.tuners.truth import judge, truth_of
from gristmill.tuners.worker import KernelSession

HALF = tl.constexpr(tl.float16)
SIZES = tl.constexpr((16, (float("inf"), None)))


@triton.jit
def kernel(x_ptr, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    tl.store(x_ptr + tl.arange(0, BLOCK), helpers.scaled(x) * helpers.SCALE)


@triton.jit
def with_constants(x_ptr, BLOCK: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, BLOCK), tl.zeros((BLOCK,), HALF) + SIZES[0])


def test_what_a_kernel_takes_out_of_a_module_identifies_it(monkeypatch, tmp_path):
    before = source_hash(kernel)
    packed = {k: v for k, v in pack(kernel).items() if k != "name"}
    assert source_hash(unpack(packed, tmp_path)) == before
    with monkeypatch.context() as patch:
        patch.setattr(helpers, "SCALE", tl.constexpr(5.0))
        assert source_hash(kernel) != before
        with pytest.raises(GristmillError, match=r"kernel has another source .* `isolate=False`"):
            unpack(packed, tmp_path)  # as in a worker, where the module is as in its file
    with monkeypatch.context() as patch:
        patch.setattr(helpers, "scaled", users.times)
        assert source_hash(kernel) != before
    with monkeypatch.context() as patch:
        patch.setattr(helpers.inner, "OFFSET", tl.constexpr(2.0))  # of what it calls
        assert source_hash(kernel) != before
    assert source_hash(kernel) == before


def test_constants_of_any_literal_kind_travel(tmp_path):
    source = module_source(with_constants)
    assert "HALF = triton.language.constexpr(triton.language.dtype('fp16'))" in source
    packed = {k: v for k, v in pack(with_constants).items() if k != "name"}
    found = unpack(packed, tmp_path)
    there = sys.modules[found.fn.__module__]
    assert there.HALF.value == tl.float16
    assert there.SIZES.value == SIZES.value


def test_heuristics_are_part_of_what_a_plan_is_kept_for():
    first = triton.heuristics({"BLOCK": lambda named: 16})(kernel)
    other = triton.heuristics({"BLOCK": lambda named: 32})(kernel)
    assert launching.rules_hash(first) != launching.rules_hash(other)
    assert launching.rules_hash(kernel) == ""


def test_a_functions_constants_are_part_of_it():
    def made(scale, shift=1):
        return lambda x_ptr, shift=shift: scale * x_ptr + shift

    assert text_hash(made(2.0)) == text_hash(made(2.0))
    assert len({text_hash(made(2.0)), text_hash(made(3.0)), text_hash(made(2.0, 2))}) == 3
    assert text_hash(functools.partial(made)) == ""


@pytest.mark.parametrize("fill", [-1e9, torch.finfo(torch.float32).min, float("-inf")])
def test_a_fill_value_hides_nothing(fill):
    truth = torch.randn(64, 64, dtype=torch.float64)
    masked = torch.ones(64, 64, dtype=torch.bool).triu(1)
    wrong, right = (torch.where(masked, fill, truth * scale).float() for scale in (1.001, 1.0))
    truth = torch.where(masked, fill, truth)
    assert judge({"y": right}, {"y": truth}, None, 0.0).ok
    assert not judge({"y": wrong}, {"y": truth}, None, 0.0).ok
    spikes = torch.zeros(64, dtype=torch.float64).index_fill(0, torch.tensor([3, 5]), 1e6)
    assert judge({"y": spikes.float() + 1e-3}, {"y": spikes}, None, 0.0).ok  # the rest is zero


@pytest.mark.usefixtures("fresh_store")
def test_results_of_partial_functions_are_kept_apart():
    tuners = [
        gm.TritonAutoTuner(
            functools.partial(users.plain, scale=scale),
            {"fault": ["none"]},
            warmup_runs=0,
            benchmark_runs=1,
        )
        for scale in (1.0, 2.0)
    ]
    tuners[0].tune(torch.zeros(8), problem_size=8)
    assert [t.get_cached_config(8, "cpu") for t in tuners] == [{"fault": "none"}, None]


def test_a_limit_that_there_is_not_is_named_at_once():
    with pytest.raises(InvalidInputError, match=r"is given `budget`; .* Did you mean 'budget_s'"):
        gm.TritonAutoTuner(users.plain, {"fault": ["none"]}, budget=3)


# --------------------------------------------------------------------------------- arguments


def test_one_memory_behind_two_storages_is_copied_whole():
    memory = np.arange(4000, dtype=np.float32)
    x, y = torch.from_numpy(memory), torch.from_numpy(memory[:10])
    for args in ((x, y), (y, x)):
        copies = Copies(Arguments.of(args, {}))
        assert all(torch.equal(new, old) for new, old in zip(copies.args, args, strict=True))
        assert copies.args[0].data_ptr() == copies.args[1].data_ptr()
        copies.args[0 if args[0] is x else 1][3999] = 1.0
        assert copies.intact()


def test_memory_seen_as_another_type_is_copied_and_crosses(tmp_path):
    x = torch.arange(16, dtype=torch.int8)
    wrapped = triton.reinterpret(x, tl.float8e5)
    arguments = Arguments.of((wrapped,), {})
    assert not arguments.opaque()
    data = json.loads(json.dumps(arguments.save(tmp_path, "a")))
    for copies in (Copies(arguments), Copies(Arguments.load(tmp_path, data), owned=True)):
        (copy,) = copies.args
        assert copy.dtype == tl.float8e5
        assert torch.equal(copy.base, x)
        assert copy.data_ptr() != x.data_ptr()


def test_rules_and_messages_have_descriptors_and_tuples_without_their_values():
    x = torch.randn(8, 16)
    named = {"x_desc": TensorDescriptor.from_tensor(x, [8, 16]), "pair": (x[0], 3), "n": 8}
    problem = launching.problem_of("kernel:k", named)
    assert problem["x_desc"] == TensorSpec.of(x)
    assert problem["pair"] == (TensorSpec.of(x[0]), 3)
    assert "tensor(" not in str(problem)


def test_a_call_is_on_the_device_of_its_first_tensor_that_is_on_one():
    there = torch.empty(3, device="meta")
    assert launching.device_of([1, torch.empty(3), (2, there)]) == there.device
    assert launching.device_of([1, torch.empty(3)]) == torch.device("cpu")


def test_the_truth_is_a_plain_tensor():
    x = torch.randn(4, dtype=torch.complex64)
    y = torch.empty(4)
    truth = truth_of(lambda x: {"y": x.conj().imag}, {"x": x, "y": y}, None)
    assert not truth["y"].is_neg()
    assert torch.equal(truth["y"], -x.imag)


# ------------------------------------------------------------------------------------ the worker


def task_of(x):
    return KernelTask(
        name="kernel:double",
        key="",
        function=users.double,
        arguments=Arguments.of((x, x, 8), {}),
        problem=launching.problem_of("kernel:double", {"x_ptr": x}),
        space=as_space([{"BLOCK": 16}]),
        resolve=lambda config: Call((1,), dict(config)),
        source_hash="0",
        terms=Terms(("x_ptr", "y_ptr", "n")),
    )


def test_a_worker_has_workspace_for_descriptors_made_on_the_device(tmp_path, monkeypatch):
    allocators = []
    monkeypatch.setattr("triton.set_allocator", allocators.append)
    task_of(torch.ones(8)).save(tmp_path)
    context = contextvars.copy_context()
    context.run(KernelSession().make, {"folder": str(tmp_path)}, torch.device("cpu"))
    monkeypatch.setattr("torch.empty", lambda *args, **kwargs: (args, kwargs))
    assert allocators[0](64, 128, None) == ((64,), {"dtype": torch.int8, "device": "cuda"})


def test_a_full_disk_is_named(monkeypatch):
    def full(self, folder, name):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Arguments, "save", full)
    measurer = WorkerMeasurer(task_of(torch.ones(8)), torch.device("cpu"), 0)
    with pytest.raises(TuningError, match=r"No space left.* Let TMPDIR name a folder"), measurer:
        pass
