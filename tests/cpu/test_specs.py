"""The contracts: what they refuse and in which words, and whether their bounds tell right from
wrong."""

import pytest
import torch

from gristmill.core import registry
from gristmill.core.op import as_tuple, each_bounds
from gristmill.core.problem import TensorSpec
from gristmill.errors import InvalidInputError
from gristmill.testing import Case, judge
from gristmill.verify import compare, truth

NAMES = ("matmul", "rms_norm", "rms_norm_backward", "silu_and_mul", "silu_and_mul_backward")
CENTRED = ("layer_norm", "layer_norm_backward", "add_layer_norm", "add_layer_norm_backward")
GELU, GELU_BACKWARD, GELU_AND_MUL, GELU_AND_MUL_BACKWARD = (
    registry.load(name + way) for name in ("gelu", "gelu_and_mul") for way in ("", "_backward")
)
RELU2, RELU2_BACKWARD = (registry.load(f"relu2_and_mul{way}") for way in ("", "_backward"))
MATMUL, RMS_NORM, RMS_NORM_BACKWARD, SILU, SILU_BACKWARD = map(registry.load, NAMES)
LAYER_NORM, LAYER_NORM_BACKWARD, ADD_LAYER_NORM, ADD_LAYER_NORM_BACKWARD = map(
    registry.load, CENTRED
)
OPS = [
    *(MATMUL, RMS_NORM, RMS_NORM_BACKWARD, SILU, SILU_BACKWARD, GELU, GELU_BACKWARD),
    *(GELU_AND_MUL, GELU_AND_MUL_BACKWARD, RELU2, RELU2_BACKWARD),
    *(LAYER_NORM, LAYER_NORM_BACKWARD, ADD_LAYER_NORM, ADD_LAYER_NORM_BACKWARD),
]


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("op", "args", "words"),
    [
        (MATMUL, (ones(2), ones(2, 2)), ["`a`", "(2,)", "2-D", "reshape"]),
        (MATMUL, (ones(2, 2), ones(1, 2, 2)), ["`b`", "(1, 2, 2)", "2-D"]),
        (MATMUL, (ones(2, 3), ones(2, 3)), ["`b`", "(2, 3)", "`b.t()`"]),
        (MATMUL, (ones(2, 3), ones(4, 5)), ["`b`", "(4, 5)", "rows of `b`"]),
        (MATMUL, (ones(2, 2), ones(2, 2, dtype=torch.float16)), ["`b`", "float16", "one dtype"]),
        (MATMUL, (ones(4, 8)[::2, ::2], ones(4, 2)), ["`a`", "strides", "contiguous()"]),
        (MATMUL, (ones(1, 1).expand(4, 4), ones(4, 2)), ["`a`", "(0, 0)", "contiguous()"]),
        (MATMUL, (ones(2, 2), [[1.0]]), ["`b`", "list", "tensor"]),
        (MATMUL, (ones(2, 2, dtype=torch.int8),) * 2, ["`a`", "torch.int8", "torch.bfloat16"]),
        (MATMUL, (ones(2, 2).to("meta"), ones(2, 2)), ["`b`", "cpu", "meta", "one device"]),
        (RMS_NORM, (ones(),), ["`x`", "()", "reshape(1)"]),
        (RMS_NORM, (ones(4, 4).t(),), ["`x`", "stride 4", "contiguous()"]),
        (RMS_NORM, (ones(4, 4), ones(3)), ["`weight`", "(3,)", "(4,)"]),
        (RMS_NORM, (ones(4, 4), ones(4, dtype=torch.float16)), ["`weight`", "float16"]),
        (RMS_NORM, (ones(4, 4), ones(8)[::2]), ["`weight`", "stride 2", "contiguous()"]),
        (RMS_NORM, (ones(4, 4), None, -1.0), ["`eps`", "-1.0", "0 or more"]),
        (RMS_NORM, (ones(4, 4), None, float("nan")), ["`eps`", "nan", "finite"]),
        (RMS_NORM, (ones(4, 4), None, "small"), ["`eps`", "str", "float"]),
        (RMS_NORM_BACKWARD, (ones(4, 5), ones(4, 4)), ["`grad_out`", "(4, 5)", "(4, 4)", "shape"]),
        (
            RMS_NORM_BACKWARD,
            (ones(4, 4).half(), ones(4, 4)),
            ["`grad_out`", "float16", "one dtype"],
        ),
        (
            RMS_NORM_BACKWARD,
            (ones(1).expand(4, 4), ones(4, 4)),
            ["`grad_out`", "stride 0", "contig"],
        ),
        (RMS_NORM_BACKWARD, (ones(4, 4), ones(4, 4).t()), ["`x`", "stride 4", "contiguous()"]),
        (RMS_NORM_BACKWARD, (ones(4, 4), ones(4, 4), ones(3)), ["`weight`", "(3,)", "(4,)"]),
        (RMS_NORM_BACKWARD, (ones(4, 4), ones(4, 4), None, -1.0), ["`eps`", "-1.0", "0 or more"]),
        (RMS_NORM_BACKWARD, (ones(4), ones(4), None, 0.0, 1), ["`weight_grad`", "int", "bool"]),
        (LAYER_NORM, (ones(),), ["`x`", "()", "reshape(1)"]),
        (LAYER_NORM, (ones(4, 4), None, ones(3)), ["`bias`", "(3,)", "(4,)", "Pass a bias"]),
        (LAYER_NORM, (ones(4, 4), None, ones(8)[::2]), ["`bias`", "stride 2", "contiguous()"]),
        (LAYER_NORM, (ones(4, 4), ones(4).half()), ["`weight`", "float16", "one dtype"]),
        (LAYER_NORM, (ones(4, 4), None, None, -1.0), ["`eps`", "-1.0", "0 or more"]),
        (LAYER_NORM_BACKWARD, (ones(4, 5), ones(4, 4)), ["`grad_out`", "(4, 5)", "(4, 4)"]),
        (LAYER_NORM_BACKWARD, (ones(4, 4), ones(4, 4), ones(3)), ["`weight`", "(3,)", "(4,)"]),
        (ADD_LAYER_NORM, (ones(4, 4), ones(4, 5)), ["`residual`", "(4, 5)", "(4, 4)"]),
        (ADD_LAYER_NORM, (ones(4, 4), ones(4, 4).half()), ["`residual`", "float16", "one dtype"]),
        (ADD_LAYER_NORM, (ones(4, 4), ones(4, 4), None, ones(3)), ["`bias`", "(3,)", "(4,)"]),
        (
            ADD_LAYER_NORM_BACKWARD,
            (ones(4, 4), ones(4, 3), ones(4, 4)),
            ["`grad_new_residual`", "(4, 3)", "(4, 4)"],
        ),
        (SILU, (ones(),), ["`x`", "()", "reshape(1)"]),
        (SILU, (ones(4, 5),), ["`x`", "5 columns", "even", "`up`"]),
        (SILU, (ones(4, 6).t(),), ["`x`", "stride 6", "contiguous()"]),
        (SILU, (ones(4, 4), ones(4, 2)), ["`up`", "(4, 2)", "(4, 4)", "Pass"]),
        (SILU, (ones(4, 4), ones(4, 4).half()), ["`up`", "float16", "one dtype"]),
        (GELU, (ones(4), "erf"), ["`approximate`", "'erf'", "'none'", "'tanh'", "Pass"]),
        (GELU, (ones(4), None), ["`approximate`", "NoneType", "str"]),
        (GELU, (ones(4).int(),), ["`x`", "torch.int32", "torch.bfloat16"]),
        (GELU_BACKWARD, (ones(4), ones(1, 4)), ["`grad_out`", "(4,)", "(1, 4)", "shape"]),
        (GELU_BACKWARD, (ones(4).half(), ones(4)), ["`grad_out`", "float16", "one dtype"]),
        (GELU_AND_MUL, (ones(4, 5),), ["`x`", "5 columns", "`gelu_and_mul`"]),
        (GELU_AND_MUL, (ones(4), None, "Tanh"), ["`approximate`", "mean", "'tanh'"]),
        (GELU_AND_MUL_BACKWARD, (ones(2), ones(4), None, ""), ["`approximate`", "''"]),
        (RELU2, (ones(4, 4), ones(4, 2)), ["`up`", "(4, 2)", "(4, 4)", "`relu2_and_mul`"]),
        (RELU2_BACKWARD, (ones(4, 4), ones(4, 4)), ["`grad_out`", "`relu2_and_mul` returns"]),
        (SILU_BACKWARD, (ones(4, 4), ones(4, 4)), ["`grad_out`", "(4, 4)", "(4, 2)", "returns"]),
        (SILU_BACKWARD, (ones(4, 2), ones(4, 4), ones(4, 4)), ["`grad_out`", "(4, 2)", "(4, 4)"]),
    ],
)
def test_refusals_say_what_was_given_what_is_allowed_and_what_to_do(op, args, words):
    with pytest.raises(InvalidInputError) as caught:
        op.bind(args)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (MATMUL, (ones(2, 3), ones(4, 3).t())),
        (MATMUL, (ones(3, 2).t(), ones(3, 4))),
        (MATMUL, (ones(4, 8)[:, :3], ones(3, 1))),
        (
            MATMUL,
            (ones(4, 8)[:, ::8], ones(1, 5)),
        ),  # the stride of a dimension of size 1 is no stride
        (MATMUL, (ones(1, 8).expand(4, 8), ones(8, 2))),
        (MATMUL, (ones(0, 8), ones(8, 2))),
        (MATMUL, (ones(4, 0), ones(0, 2))),
        (RMS_NORM, (ones(4, 8)[:, :5],)),
        (RMS_NORM, (ones(4, 8)[:, ::8], ones(1))),
        (RMS_NORM, (ones(2, 3, 4).transpose(0, 1), ones(4))),
        (RMS_NORM, (ones(1, 4).expand(3, 4),)),
        (RMS_NORM, (ones(5),)),
        (RMS_NORM, (ones(0, 4),)),
        (RMS_NORM, (ones(4, 0), ones(0))),
        (RMS_NORM, (ones(4, 4), None, 0)),
        (RMS_NORM_BACKWARD, (ones(4).expand(3, 4), ones(3, 8)[:, :4], ones(4))),
        (RMS_NORM_BACKWARD, (ones(2, 3, 4), ones(3, 2, 4).transpose(0, 1), ones(4), 1e-6, False)),
        (RMS_NORM_BACKWARD, (ones(5), ones(5))),
        (RMS_NORM_BACKWARD, (ones(0, 4), ones(0, 4), ones(4))),
        (RMS_NORM_BACKWARD, (ones(4, 0), ones(4, 0), ones(0))),
        (LAYER_NORM, (ones(2, 3, 4).transpose(0, 1), None, ones(4))),
        (LAYER_NORM, (ones(0, 4), ones(4), ones(4))),
        (LAYER_NORM, (ones(4, 0), ones(0), ones(0))),
        (LAYER_NORM_BACKWARD, (ones(4).expand(3, 4), ones(3, 8)[:, :4], ones(4))),
        (LAYER_NORM_BACKWARD, (ones(5), ones(5), None, 1e-5, True, False)),
        (LAYER_NORM_BACKWARD, (ones(0, 4), ones(0, 4), ones(4))),
        (LAYER_NORM_BACKWARD, (ones(4, 0), ones(4, 0), ones(0))),
        (ADD_LAYER_NORM, (ones(2, 3, 4).transpose(0, 1), ones(4).expand(3, 2, 4), ones(4))),
        (ADD_LAYER_NORM, (ones(0, 4), ones(0, 4))),
        (ADD_LAYER_NORM_BACKWARD, (ones(4).expand(3, 4), ones(3, 8)[:, :4], ones(3, 4), ones(4))),
        (SILU, (ones(4, 9)[:, :6],)),
        (SILU, (ones(2, 3, 4).transpose(0, 1), ones(4).expand(3, 2, 4))),
        (SILU, (ones(6),)),
        (SILU, (ones(4, 0),)),
        (SILU, (ones(0, 4), ones(0, 4))),
        (GELU, (ones(),)),
        (GELU, (ones(4, 6).t(), "tanh")),
        (GELU, (ones(2, 3, 4)[..., ::2],)),
        (GELU_BACKWARD, (ones(1).expand(4, 6), ones(6, 4).t())),
        (GELU_AND_MUL, (ones(4, 9)[:, :6], None, "tanh")),
        (RELU2, (ones(0, 4), ones(0, 4))),
        (SILU_BACKWARD, (ones(2).expand(3, 2), ones(3, 4))),
        (SILU_BACKWARD, (ones(2, 3, 4),) + (ones(3, 2, 4).transpose(0, 1),) * 2),
    ],
)
def test_allowed_layouts_are_right_by_every_cpu_implementation(op, args):
    values = op.bind(args)
    references, magnitudes = truth(op, values)
    problem = op.problem(values)
    specs = op.outputs(problem)
    for implementation in registry.implementations(op.name):
        if implementation.kind == "vendor":
            outputs = as_tuple(implementation(*args))
            assert [TensorSpec.of(out).shape for out in outputs] == [spec.shape for spec in specs]
            assert all(out.is_contiguous() for out in outputs)
            assert compare(outputs, references, magnitudes, op.bounds(problem)).ok


def test_an_empty_sum_is_zero():
    assert torch.equal(
        registry.implementation("matmul", "aten")(ones(3, 0), ones(0, 2)), torch.zeros(3, 2)
    )


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_workloads_are_well_formed(op):
    names = [w.name for w in op.workloads]
    assert len(names) == len(set(names))
    for workload in op.workloads:
        problem = workload.problem
        op.validate(problem.meta())
        assert op.cost(problem).flops > 0
        specs = op.outputs(problem)
        assert all(bounds.reason for bounds in each_bounds(op.bounds(problem), len(specs)))
        assert all(spec.is_contiguous for spec in specs)
        assert [a.name for a in op.axes(problem)] == [a.name for a in op.axes(names_first(op))]


def names_first(op):
    return op.workloads[0].problem


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_vendor_conforms_on_every_variant(op, dtype):
    problem = op.sized({"rows": 9, "N": 250, "M": 33, "K": 100}, dtype)
    for variant in op.variants:
        verdict = judge(Case(registry.implementation(op.name, "aten"), problem, variant), "cpu")
        assert verdict.ok, (variant, verdict.reason)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("k", [100, 1031, 4096])
def test_matmul_bounds_see_one_lost_product(dtype, k):
    problem = MATMUL.sized({"M": 64, "N": 64, "K": k}, dtype)
    a, b, _ = MATMUL.inputs(problem, torch.Generator().manual_seed(0), "normal")
    references, magnitudes = truth(MATMUL, (a, b))
    lost = (references[0] - a[:, -1:].double() * b[-1:].double()).to(a.dtype)
    bounds = MATMUL.bounds(problem)
    assert compare((references[0].to(a.dtype),), references, magnitudes, bounds).ok
    assert not compare((lost,), references, magnitudes, bounds).ok


def wrong_norms(x, weight, eps):
    n, w = x.shape[-1], weight.double()
    x = x.double()
    mean = x.square().mean(-1, keepdim=True)
    block = 1 << (n - 1).bit_length()
    yield "the block for N", "normal", x / (mean * n / block + eps).sqrt() * w
    yield "eps outside the root", "small", x / (mean.sqrt() + eps) * w
    yield "no eps", "small", x / mean.sqrt() * w
    yield "two roundings", "normal", (x / (mean + eps).sqrt()).bfloat16().double() * w
    yield "weight + 1", "normal", x / (mean + eps).sqrt() * (1 + w)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rms_norm_bounds_see_the_usual_mistakes(dtype):
    problem = RMS_NORM.sized({"rows": 16, "N": 1000}, dtype)
    bounds = RMS_NORM.bounds(problem)
    for variant in ("normal", "small"):
        x, weight, eps = RMS_NORM.inputs(problem, torch.Generator().manual_seed(0), variant)
        references, magnitudes = truth(RMS_NORM, (x, weight, eps))
        assert compare((references[0].to(x.dtype),), references, magnitudes, bounds).ok
        for mistake, where, wrong in wrong_norms(x, weight, eps):
            if where == variant:
                verdict = compare((wrong.to(x.dtype),), references, magnitudes, bounds)
                assert not verdict.ok, mistake


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_inputs_follow_the_problem_and_the_seed(op):
    for workload in op.workloads:
        if sum(t.numel for t in workload.problem.tensors.values()) < 1e6:
            first, second = (
                op.inputs(workload.problem, torch.Generator().manual_seed(7), "normal")
                for _ in "12"
            )
            assert op.problem(first) == workload.problem
            for one, other in zip(first, second, strict=True):
                assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_references_are_differentiable_in_float64(op):
    problem = op.sized({"rows": 3, "N": 5, "M": 3, "K": 4}, "float32")
    values = op.inputs(problem, torch.Generator().manual_seed(0), "normal")
    wide = [v.double().requires_grad_() if isinstance(v, torch.Tensor) else v for v in values]
    assert torch.autograd.gradcheck(op.reference, wide)
