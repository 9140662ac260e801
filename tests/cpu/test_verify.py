"""Comparison within bounds, poison and canaries."""

import math
from dataclasses import replace

import pytest
import torch

from gristmill.core import registry
from gristmill.core.config import Config
from gristmill.core.op import Bounds
from gristmill.core.problem import TensorSpec
from gristmill.errors import RegistrationError
from gristmill.verify import compare, guarded_empty, poison, run_guarded, same_bits, truth

HALF = Bounds(rtol=2.0**-11, gamma=0.0, atol=2.0**-24, reason="one rounding")


def judge(out, ref, bounds=HALF, dtype=torch.float16):
    out = torch.tensor(out, dtype=dtype)
    ref = torch.tensor(ref, dtype=torch.float64)
    return compare((out,), (ref,), (ref.abs(),), bounds)


def test_rounding_passes_and_reports_its_share_of_the_bound():
    ref = torch.rand(1000, dtype=torch.float64)
    verdict = compare((ref.half(),), (ref,), (ref,), HALF)
    assert verdict.ok
    assert 0.5 < verdict.error <= 1
    assert verdict


def test_two_ulps_fail_with_a_reason():
    verdict = judge([1.0, 2.0, 3.01], [1.0, 2.0, 3.0])
    assert not verdict.ok
    assert "output 0 is wrong in 1 of 3" in verdict.reason
    assert "[2]" in verdict.reason
    assert verdict.error > 1


@pytest.mark.parametrize(
    ("out", "ref", "ok"),
    [
        (math.nan, math.nan, True),
        (math.inf, math.inf, True),
        (-math.inf, math.inf, False),
        (math.nan, math.inf, False),
        (math.inf, math.nan, False),
        (math.nan, 1.0, False),
        (math.inf, 1.0, False),
        (1.0, math.nan, False),
        (65504.0, math.inf, False),
        (math.inf, 1e6, True),  # overflows float16
        (65504.0, 65525.0, True),  # rounds to infinity, by less than the bound
        (math.inf, 65515.0, True),
        (math.inf, 65000.0, False),
        (60000.0, 1e6, False),
        (0.0, 0.0, True),
        (-0.0, 0.0, True),
        (0.0, 2.0**-25, True),  # underflow
        (0.0, 1.0, False),
    ],
)
def test_non_finite_values_are_exact_and_overflow_is_the_reference_rounded(out, ref, ok):
    assert judge([out], [ref]).ok is ok


def test_gamma_scales_with_the_magnitude():
    out, ref = torch.tensor([0.5]), torch.tensor([0.0], dtype=torch.float64)
    magnitude = torch.tensor([1000.0], dtype=torch.float64)
    assert compare((out,), (ref,), (magnitude,), Bounds(0, 1e-3, 0, "")).ok
    assert not compare((out,), (ref,), (magnitude,), Bounds(0, 1e-4, 0, "")).ok


def test_each_output_has_the_bounds_that_are_its_own():
    ref = torch.ones(3, dtype=torch.float64)
    outputs, references = (ref.half(), (ref * 1.01).half()), (ref, ref)
    loose = replace(HALF, rtol=0.02)
    assert compare(outputs, references, references, (HALF, loose)).ok
    verdict = compare(outputs, references, references, (loose, HALF))
    assert not verdict.ok
    assert "output 1" in verdict.reason
    assert compare(outputs, references, references, loose).ok  # one for both
    with pytest.raises(RegistrationError, match="`bounds` are 3 and its reference has 2"):
        compare(outputs, references, references, (HALF,) * 3)


@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 0), (4, 7), (2, 3, 40), (2, 1, 1, 33)])
def test_chunks_give_the_same_verdict(shape, monkeypatch):
    monkeypatch.setattr("gristmill.verify.comparison.CHUNK_ELEMENTS", 16)
    ref = torch.rand(shape, dtype=torch.float64) + 1
    assert compare((ref.half(),), (ref,), (ref,), HALF).ok
    if ref.numel():
        out = ref.half()
        position = tuple(n - 1 for n in shape)
        out[position] = -5
        verdict = compare((out,), (ref,), (ref,), HALF)
        assert not verdict.ok
        assert f"wrong in 1 of {ref.numel()}" in verdict.reason
        assert str(list(position)) in verdict.reason


def test_transposed_outputs_are_compared_where_they_are():
    ref = torch.rand(5, 9, dtype=torch.float64)
    assert compare((ref.half().t().contiguous().t(),), (ref,), (ref,), HALF).ok


def test_shapes_and_counts_are_part_of_the_verdict():
    one = torch.ones(2, dtype=torch.float64)
    assert "shape" in compare((torch.ones(3),), (one,), (one,), HALF).reason
    assert "2 outputs" in compare((one, one), (one,), (one,), HALF).reason


def test_what_is_no_tensor_is_named():
    one = torch.ones(2, dtype=torch.float64)
    verdict = compare((None,), (one,), (one,), Bounds(0.1, 0.0, 0.0, "any"))
    assert (verdict.ok, "NoneType" in verdict.reason) == (False, True)


def test_poison_is_never_a_right_answer():
    assert poison(torch.ones(4)).isnan().all()
    assert (poison(torch.ones(4, dtype=torch.int32)) == torch.iinfo(torch.int32).min).all()


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8"])
def test_canaries_see_a_write_on_either_side(dtype, aligned):
    spec = TensorSpec((3, 5), (8, 1), dtype, aligned)
    tensor, guard = guarded_empty(spec, "cpu")
    assert TensorSpec.of(tensor) == spec
    tensor.fill_(1)
    assert guard.intact()
    for offset in (-1, spec.extent):
        tensor, guard = guarded_empty(spec, "cpu")
        torch.as_strided(tensor, (1,), (1,), tensor.storage_offset() + offset).fill_(1)
        assert not guard.intact()


def test_truth_is_float64_and_leaves_the_arguments():
    op = registry.load("rms_norm")
    x = torch.rand(2, 3, dtype=torch.float16)
    before = x.clone()
    (ref,), (magnitude,) = truth(op, (x, None, 1e-6))
    assert ref.dtype == magnitude.dtype == torch.float64
    assert torch.equal(x, before)


class FakeExecutor:
    """Runs what stands where a kernel would."""

    def run(self, launches):
        for launch in launches:
            launch()


def guarded(values, launcher, workspace=None):
    """A guarded run of `rms_norm` by a Python function of (values, outputs, workspace)."""
    real = registry.implementation("rms_norm", "row")
    fields = {"launcher": lambda *a: (lambda: launcher(*a[:3]),), "executor": FakeExecutor}
    if workspace is not None:
        fields["workspace"] = lambda problem, config: (workspace,)
    return run_guarded(replace(real, **fields), values, Config({}))


def test_a_guarded_run_sees_writes_around_outputs_and_workspace():
    scratch = TensorSpec.contiguous((4,), "float32")

    def beside(which):
        def launcher(values, outputs, workspace):
            outputs[0].fill_(1)
            tensor = {"output": outputs[0], "workspace": workspace[0]}.get(which)
            if tensor is not None:
                offset = tensor.storage_offset() + tensor.numel()
                torch.as_strided(tensor, (1,), (1,), offset).fill_(7)

        return launcher

    values = (torch.ones(3, 5), None, 1e-6)
    assert guarded(values, beside("nothing"), scratch)[1] is None
    for which in ("output", "workspace"):
        assert "wrote outside" in guarded(values, beside(which), scratch)[1]


def test_outputs_and_workspace_are_poisoned_before_a_run():
    seen = []
    guarded(
        (torch.ones(3, 5), None, 1e-6),
        lambda values, outputs, workspace: seen.extend((*outputs, *workspace)),
        TensorSpec.contiguous((4,), "float32"),
    )
    assert len(seen) == 2
    assert all(t.isnan().all() for t in seen)


@pytest.mark.parametrize("fails", [False, True])
def test_a_changed_argument_is_a_fault_and_is_put_back(fails):
    x = torch.randn(1, 6).expand(4, 6)  # a broadcast one too
    x[0, 2] = math.nan
    weight = torch.randn(6)
    before = x.clone(), weight.clone()

    def launcher(values, outputs, workspace):
        weight[1] += 1
        x[:1].fill_(3)
        if fails:
            raise ValueError("after the fact")

    if fails:
        with pytest.raises(ValueError, match="after the fact"):
            guarded((x, weight, 1e-6), launcher)
    else:
        assert "changed its argument `x`" in guarded((x, weight, 1e-6), launcher)[1]
    assert same_bits(x, before[0])
    assert same_bits(weight, before[1])


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda x: torch.ones(3, 5), None),
        (lambda x: torch.ones(5, 3), "shape (5, 3) where (3, 5)"),
        (lambda x: torch.ones(3, 5).double(), "dtype float64 where float32"),
        (lambda x: torch.ones(3, 5, device="meta"), "device meta where cpu"),
        (lambda x: torch.ones(5, 3).t(), "strides (1, 3) where (5, 1)"),
        (lambda x: x, "in the memory of an argument"),
        (lambda x: (torch.ones(3, 5),) * 2, "2 outputs where 1"),
        (lambda x: None, "NoneType, not a tensor"),
    ],
)
def test_what_a_call_returns_is_held_against_what_is_declared(result, words):
    impl = registry.implementation("rms_norm", "aten")
    values = (torch.ones(3, 5), None, 1e-6)
    _, fault = run_guarded(impl, values, Config({}), lambda x, w, eps: result(x))
    assert fault is None if words is None else words in fault


def test_the_stride_of_one_entry_is_no_stride():
    impl = registry.implementation("rms_norm", "aten")
    out = torch.ones(1, 8)[:, ::8]
    values = (torch.ones(1, 1), None, 1e-6)
    assert run_guarded(impl, values, Config({}), lambda *_: out)[1] is None


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.bfloat16, torch.complex128])
def test_bits_are_compared_as_bits(dtype):
    x = torch.ones(3, 4).to(dtype)
    assert same_bits(x, x.clone())
    assert same_bits(x.t(), x.clone().t())
    other = x.clone()
    other[2, 3] = 0
    assert not same_bits(x, other)


def test_zeros_of_two_signs_are_different_bits_and_a_nan_is_itself():
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert same_bits(torch.tensor([math.nan]), torch.tensor([math.nan]))
