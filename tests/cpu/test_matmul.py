"""matmul beyond two dimensions: what merges into one product, gradients of batches and of a shared
weight, and TF32 as a permission."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import gristmill as gm
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.registry import implementation, load
from gristmill.core.target import named_target
from gristmill.kernels.device.tiles import vector
from gristmill.kernels.matmul import aten, inductor
from gristmill.ops._dispatch import registered
from gristmill.specs.matmul import problem_of, product, sizes
from gristmill.testing import Case, judge

pytestmark = [
    pytest.mark.usefixtures("fresh_store"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]
OP = load("matmul")
HOPPER = named_target("sm_90")


def made(a, b, tf32=False):
    return Problem.of("matmul", OP.names, OP.bind((a, b, tf32)))


def rand(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype)


OPERANDS = {
    "shared": (rand(2, 3, 5, 8), rand(6, 8).t()),
    "shared-of-one-row": (rand(4, 1, 8), rand(8, 6)),
    "shared-by-expansion": (rand(3, 5, 8), rand(6, 8).t().expand(3, 8, 6)),
    "shared-of-apart-rows": (rand(3, 7, 8)[:, :5], rand(8, 6)),
    "shared-of-transposed": (rand(3, 8, 5).mT, rand(8, 6)),
    "batched": (rand(3, 5, 8), rand(3, 6, 8).mT),
    "batched-twice": (rand(2, 3, 5, 8), rand(2, 3, 8, 6)),
    "heads": (rand(2, 5, 3, 8)[0].transpose(0, 1), rand(2, 7, 3, 8)[0].permute(1, 2, 0)),
    "expanded-a": (rand(5, 8).expand(3, 5, 8), rand(3, 8, 6)),
    "unmergeable": (rand(2, 5, 3, 8).transpose(1, 2), rand(2, 3, 8, 6)),
    "one-batch": (rand(1, 1, 5, 8), rand(1, 1, 8, 6)),
    "empty-batch": (rand(0, 5, 8), rand(0, 8, 6)),
    "no-sum": (rand(3, 5, 0), rand(3, 0, 6)),
    "shared-empty-batch": (rand(0, 5, 8), rand(8, 6)),
    "shared-no-sum": (rand(3, 5, 0), rand(0, 6)),
    "shared-no-columns": (rand(3, 5, 8), rand(8, 0)),
}
MERGED = {
    "shared": (30, 6, 8, 1),
    "shared-of-one-row": (4, 6, 8, 1),
    "shared-by-expansion": (15, 6, 8, 1),
    "shared-of-apart-rows": (5, 6, 8, 3),
    "shared-of-transposed": (5, 6, 8, 3),
    "batched": (5, 6, 8, 3),
    "batched-twice": (5, 6, 8, 6),
    "heads": (5, 7, 8, 3),
    "expanded-a": (5, 6, 8, 3),
    "unmergeable": (5, 6, 8, 6),
    "one-batch": (5, 6, 8, 1),
    "empty-batch": (5, 6, 8, 0),
    "no-sum": (5, 6, 0, 3),
    "shared-empty-batch": (0, 6, 8, 1),
    "shared-no-sum": (15, 6, 0, 1),
    "shared-no-columns": (15, 0, 8, 1),
}
STRIDES = {"shared-of-apart-rows": (56, 0), "heads": (8, 8), "expanded-a": (0, 48)}


@pytest.mark.parametrize("name", OPERANDS)
def test_what_one_stride_reaches_is_one_dimension(name):
    a, b = OPERANDS[name]
    problem = made(a, b)
    assert sizes(problem) == MERGED[name]
    one = product(problem)
    assert (one is None) == (name == "unmergeable")
    if name in STRIDES:
        assert one is not None
        assert (one.stride_ab, one.stride_bb) == STRIDES[name]
    (spec,) = OP.outputs(problem)
    assert (spec.shape, spec.is_contiguous) == ((*a.shape[:-1], b.shape[-1]), True)


@pytest.mark.parametrize("name", OPERANDS)
def test_vendors_conform(name):
    problem = made(*OPERANDS[name])
    for variant in OP.variants:
        verdict = judge(Case(implementation("matmul", "aten"), problem, variant), "cpu")
        assert verdict.ok, (variant, verdict.reason)


def test_rows_of_a_batch_use_the_plans_of_as_many_rows():
    w = rand(4096, 1024, dtype=torch.bfloat16).t()
    flat, batch = (made(rand(*s, dtype=torch.bfloat16), w) for s in ((96, 1024), (3, 32, 1024)))
    assert OP.bucket(flat) == OP.bucket(batch)
    assert OP.cost(flat) == OP.cost(batch)
    apart = made(rand(3, 40, 1024, dtype=torch.bfloat16)[:, :32], w)
    assert dict(OP.bucket(apart).axes) == {"M": 32, "N": 4096, "K": 1024, "B": 4}


def test_a_batch_costs_what_is_in_memory():
    shared, own = made(rand(3, 5, 8), rand(8, 6)), made(rand(3, 5, 8), rand(3, 8, 6))
    assert OP.cost(shared).flops == OP.cost(own).flops == 2 * 3 * 5 * 8 * 6
    assert OP.cost(shared).size_bytes == 4 * (3 * 5 * 8 + 8 * 6 + 3 * 5 * 6)
    assert OP.cost(own).size_bytes == 4 * (3 * 5 * 8 + 3 * 8 * 6 + 3 * 5 * 6)


def test_kernels_say_why_they_leave_a_batch_to_others():
    unmergeable = made(*OPERANDS["unmergeable"], True)
    for name in ("tiled", "gemv", "persistent_tma"):
        assert "do not merge" in implementation("matmul", name).supports(unmergeable, HOPPER)
    batch = problem_of(64, 64, 64, batch=3)
    for name in ("padded", "split_k"):
        assert "a batch" in implementation("matmul", name).supports(batch, HOPPER)
    apart = made(rand(3, 16 * 64 + 4)[:, : 16 * 64].unflatten(1, (16, 64)), rand(3, 64, 64), True)
    assert "a matrix" not in str(implementation("matmul", "persistent_tma").supports(apart, HOPPER))
    apart = made(rand(3, 16 * 64 + 1)[:, : 16 * 64].unflatten(1, (16, 64)), rand(3, 64, 64), True)
    assert "a matrix" in implementation("matmul", "persistent_tma").supports(apart, HOPPER)
    even, odd = problem_of(64, 64, 64), problem_of(64, 65, 67)
    assert "`persistent_tma`" in implementation("matmul", "padded").supports(even, HOPPER)
    assert implementation("matmul", "padded").supports(odd, HOPPER) is None
    full = problem_of(4096, 4096, 4096)
    assert "fill the device" in implementation("matmul", "split_k").supports(full, HOPPER)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((rand(3, 4, 5), rand(2, 5, 6)), ["`b`", "(2, 5, 6)", "batch sizes of `a`", "expand"]),
        ((rand(4, 5), rand(1, 5, 6)), ["`b`", "(1, 5, 6)", "2-D `b`"]),
        ((rand(3, 4, 5), rand(3, 6, 5)), ["`b`", "(3, 6, 5)", "`b.mT`"]),
        ((rand(3, 8, 8)[:, ::2, ::2], rand(4, 6)), ["`a`", "last two", "contiguous()"]),
        ((rand(4, 5), rand(5, 6), 1), ["`tf32`", "int", "bool"]),
    ],
)
def test_refusals(args, words):
    with pytest.raises(gm.InvalidInputError) as caught:
        OP.bind(args)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", OPERANDS)
@pytest.mark.parametrize("upstream", ["random", "ones"])
def test_gradients_are_those_of_float64_autograd(name, upstream):
    a, b = (t.detach().requires_grad_() for t in OPERANDS[name])
    wide = [t.detach().double().requires_grad_() for t in (a, b)]
    out, truth = gm.matmul(a, b), wide[0] @ wide[1]
    grad = torch.randn(out.shape) if upstream == "random" else torch.ones(()).expand(out.shape)
    got = torch.autograd.grad(out, (a, b), grad)
    want = torch.autograd.grad(truth, wide, grad.double())
    for g, w, t in zip(got, want, (a, b), strict=True):
        assert g.shape == t.shape
        torch.testing.assert_close(g.double(), w, rtol=1e-5, atol=1e-5)


def test_a_shared_weight_gets_one_product():
    """Not one for each of the batch, summed: the rows of the batch are summed over as rows."""
    x, w = rand(2, 3, 8).requires_grad_(), rand(6, 8).requires_grad_()
    y = gm.matmul(x, w.t())
    with Seen() as seen:
        y.sum().backward()
    assert sorted(tuple(t.shape) for t in seen.first) == [(2, 3, 6), (6, 6)]
    assert w.grad is not None


@pytest.mark.parametrize("shape", [(6, 8), (3, 6, 8)])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_gradient_of_a_weight_lies_as_the_weight(shape, compiled):
    """As another layout torch would copy it into `w.grad`."""
    x, w = rand(*shape[:-2], 5, 8).requires_grad_(), rand(*shape).requires_grad_()
    call = torch.compile(gm.matmul, backend="aot_eager") if compiled else gm.matmul
    (grad,) = torch.autograd.grad(call(x, w.mT).square().sum(), w)
    assert grad.stride() == w.stride()
    torch.testing.assert_close(grad, torch.autograd.grad((x @ w.mT).square().sum(), w)[0])
    b = rand(*shape[:-2], 8, 6).requires_grad_()
    (grad,) = torch.autograd.grad(call(x, b).sum(), b)
    assert grad.stride() == b.stride()


def test_a_weight_s_gradient_alone_does_not_keep_the_weight():
    x, w = rand(5, 8), rand(6, 8).requires_grad_()
    kept = gm.matmul(x, w.t()).grad_fn.saved_tensors
    assert [t.shape for t in kept] == [x.shape]


class Seen(TorchDispatchMode):
    """The first operands and the flags of every `gristmill::matmul` that runs."""

    def __init__(self):
        super().__init__()
        self.first, self.flags = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.gristmill.matmul.default:
            self.first.append(args[0])
            self.flags.append(len(args) > 2 and args[2])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("tf32", [False, True])
def test_gradients_pass_tf32_on(tf32):
    a, b = rand(5, 8).requires_grad_(), rand(8, 6).requires_grad_()
    with Seen() as seen:
        gm.matmul(a, b, tf32=tf32).square().sum().backward()
    assert seen.flags == [tf32] * 3


@pytest.mark.parametrize("name", ["shared", "shared-of-apart-rows", "heads", "unmergeable"])
@pytest.mark.parametrize("tf32", [False, True])
def test_opcheck(name, tf32):
    a, b = (t.detach().requires_grad_() for t in OPERANDS[name])
    results = torch.library.opcheck(registered(OP), (a, b, tf32))
    assert set(results.values()) == {"SUCCESS"}


def test_compiled_once_for_every_batch_and_length():
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    w = rand(6, 8)
    compiled = torch.compile(
        lambda x: gm.matmul(x, w.t()), fullgraph=True, dynamic=True, backend=backend
    )
    for batch, length in ((2, 5), (3, 7), (4, 40)):
        x = rand(batch, length, 8)
        torch.testing.assert_close(compiled(x), x @ w.t())
    assert len(graphs) == 1


@pytest.mark.parametrize(
    "multiply",
    [
        lambda x, w, i: gm.matmul(x[:, i], w[i]),
        lambda x, w, i: gm.matmul(x, w[:, i]),
        lambda x, w, i: gm.matmul(w.t(), x.t()[:, i]),
    ],
)
def test_compiled_for_sizes_that_depend_on_data(multiply):
    """Such a size is a stride too, which is no number to compare."""
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(
            lambda x, w, mask: multiply(x, w, mask.nonzero().flatten()),
            fullgraph=True,
            dynamic=True,
            backend="aot_eager",
        )
        x, w, mask = rand(8, 8), rand(8, 8), torch.arange(8) % 3 == 0
        want = multiply(x, w, mask.nonzero().flatten())
        torch.testing.assert_close(compiled(x, w, mask), want)


def test_an_empty_operand_has_no_wrong_strides():
    """`contiguous()`, which the refusal would advise, leaves them as they are."""
    a = torch.zeros(()).expand(0, 5, 8)
    assert a.contiguous().stride() == (0, 0, 0)
    assert gm.matmul(a, rand(8, 6)).shape == (0, 5, 6)
    assert all(
        implementation("matmul", name).why_not(made(a, rand(8, 6)), HOPPER) is None
        for name in ("tiled", "split_k")
    )


def test_tf32_widens_the_bounds_of_float32_alone():
    plain, allowed = (problem_of(8, 8, 64, "float32", tf32=flag) for flag in (False, True))
    assert OP.bounds(allowed).gamma > OP.bounds(plain).gamma + 2.0**-9
    assert "ten bits" in OP.bounds(allowed).reason
    for dtype in ("float16", "bfloat16"):
        pair = (problem_of(8, 8, 64, dtype, tf32=flag) for flag in (False, True))
        assert len({OP.bounds(p) for p in pair}) == 1
    assert OP.bucket(plain) != OP.bucket(allowed)
    persistent = implementation("matmul", "persistent_tma")
    assert "IEEE" in persistent.supports(plain, HOPPER)
    assert persistent.supports(allowed, HOPPER) is None


def test_the_bound_of_tf32_takes_cut_factors_and_no_coarser_ones():
    problem = problem_of(64, 64, 64, "float32", tf32=True)
    a, b, _ = OP.inputs(problem, torch.Generator().manual_seed(0), "positive")

    def cut(values, bits):
        mask = -1 << (23 - bits)
        return (values.contiguous().view(torch.int32) & mask).view(torch.float32).double()

    bounds, truth = OP.bounds(problem), a.double() @ b.double()
    allowed = bounds.rtol * truth.abs() + bounds.gamma * (a.double().abs() @ b.double().abs())
    assert bool(((cut(a, 10) @ cut(b, 10) - truth).abs() <= allowed).all())
    assert bool(((cut(a, 8) @ cut(b, 8) - truth).abs() > allowed).any())


def test_vendors_withdraw_no_permission_where_tf32_is_allowed(monkeypatch):
    held = []
    for module in (aten, inductor):
        monkeypatch.setattr(
            module, "precise", lambda f, a, b: held.append(a.dtype) or torch.matmul(a, b)
        )
    a, b = rand(4, 8), rand(8, 4)
    vendor = implementation("matmul", "aten")
    vendor(a, b, True)
    assert held == []
    vendor(a, b)
    vendor(a.bfloat16(), b.bfloat16(), True)
    assert held == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize(
    ("problem", "values"),
    [
        (problem_of(5, 7, 1000), 8),  # 8 x 125: more than Triton knows by itself
        (problem_of(5, 7, 1004), 1),
        (problem_of(5, 7, 1004, "float32"), 4),
        (problem_of(5, 1000, 7, weight=False), 1),
        (problem_of(1000, 1000, 7, weight=False, along_m=True), 8),
        (problem_of(1, 7, 1000, batch=3), 8),
    ],
)
def test_16_aligned_bytes_are_found(problem, values):
    assert vector(product(problem)) == values


def test_an_operand_off_16_bytes_is_not_wide():
    a = TensorSpec((4, 64), (64, 1), "float16", aligned=False)
    b = TensorSpec.contiguous((64, 64), "float16")
    assert vector(product(Problem("matmul", (("a", a), ("b", b), ("tf32", False))))) == 1
