"""Rotary embeddings on the CPU: the rotation by the formulas of the models that use it, refusals,
gradients, the module."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch

import gristmill as gm
from gristmill import nn
from gristmill.core import registry
from gristmill.errors import InvalidInputError
from gristmill.testing import Case, judge
from gristmill.verify import compare, truth

pytestmark = pytest.mark.usefixtures("fresh_store")
NAMES = ("apply_rotary_pos_emb", "partial_rotary_emb")
FORWARD = {name: registry.load(name) for name in NAMES}
BACKWARD = {name: registry.load(f"{name}_backward") for name in NAMES}
EVERY = (*FORWARD.values(), *BACKWARD.values())
DTYPES = ("float16", "bfloat16", "float32")


def randn(*shape, dtype=torch.float64, seed=1):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def as_llama(x, cos, sin):
    """transformers' formula, of `(B, H, S, D)`, for tables `(B, S, D)`."""
    half = x.shape[-1] // 2
    other = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos.unsqueeze(1) + other * sin.unsqueeze(1)


def as_gptj(x, cos, sin):
    """The formula of GPT-J, of `(B, S, H, D)`, for tables `(S, D)` with each angle twice in a
    row."""
    other = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return x * cos[:, None] + other * sin[:, None]


def test_it_is_what_models_compute():
    q, k = randn(2, 7, 6, 16, dtype=torch.float32), randn(2, 7, 2, 16, dtype=torch.float32)
    positions = torch.stack((torch.arange(7), torch.arange(7) + 40))
    cos, sin = gm.rope_tables(positions, 16)
    want = [as_llama(x.transpose(1, 2), cos, sin).transpose(1, 2) for x in (q, k)]
    table = gm.rope_tables(torch.arange(64), 16)
    halves = tuple(t[..., :8] for t in table)
    before = [t.clone() for t in (q, k, cos, sin)]
    for got in (
        gm.apply_rotary_pos_emb(q, k, cos, sin),
        gm.apply_rotary_pos_emb(q, k, cos[..., :8], sin[..., :8]),
        gm.apply_rotary_pos_emb(q, k, *table, position_ids=positions),
        gm.apply_rotary_pos_emb(q, k, *halves, position_ids=positions.int()),
        gm.apply_rotary_pos_emb(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k)),
                                cos, sin),
    ):  # fmt: skip
        torch.testing.assert_close(got, tuple(want))
        assert all(t.is_contiguous() for t in got)
    assert all(map(torch.equal, before, (q, k, cos, sin)))
    cos, sin = gm.rope_tables(torch.arange(7), 16, interleaved=True)
    want = tuple(as_gptj(x, cos, sin) for x in (q, k))
    torch.testing.assert_close(gm.apply_rotary_pos_emb(q, k, cos, sin, interleaved=True), want)
    got = gm.apply_rotary_pos_emb(q, k, cos[:, ::2].contiguous(), sin[:, ::2].contiguous(),
                                  interleaved=True)  # fmt: skip
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("interleaved", [False, True])
def test_partial_rotary(interleaved):
    q, k = randn(1, 5, 3, 32, dtype=torch.float32), randn(1, 5, 1, 32, dtype=torch.float32)
    for width in (8, 24):
        cos, sin = gm.rope_tables(torch.arange(5), width, interleaved=interleaved)
        heads = gm.apply_rotary_pos_emb(q[..., :width], k[..., :width], cos, sin, None, interleaved)
        got = gm.apply_rotary_pos_emb(q, k, cos, sin, interleaved=interleaved)
        for x, turned, out in zip((q, k), heads, got, strict=True):
            assert torch.equal(out, torch.cat((turned, x[..., width:]), -1))
    # Tables of half a head's width are halves of whole ones; of a partial rotary it has to be said.
    cos, sin = gm.rope_tables(torch.arange(5), 16, interleaved=interleaved)
    got, _ = gm.apply_rotary_pos_emb(q, k, cos, sin, interleaved=interleaved, rotary_dim=16)
    assert torch.equal(got[..., 16:], q[..., 16:])
    whole, _ = gm.apply_rotary_pos_emb(q, k, cos, sin, interleaved=interleaved)
    assert not torch.equal(whole[..., 16:], q[..., 16:])


def test_positions_outside_the_tables_are_nan():
    q, k = torch.ones(1, 4, 2, 8), torch.ones(1, 4, 1, 8)
    cos, sin = gm.rope_tables(torch.arange(3), 8)
    ids = torch.tensor([[0, -1, 3, 2]])
    q_out, k_out = gm.apply_rotary_pos_emb(q, k, cos, sin, ids)
    for out in (q_out, k_out):
        assert out[0, [1, 2]].isnan().all()
        assert out[0, [0, 3]].isfinite().all()


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


Q, K, T = ones(2, 3, 4, 8), ones(2, 3, 1, 8), ones(3, 8)
IDS = torch.zeros(2, 3, dtype=torch.int64)
PE, KV = ones(2, 3, 1, 4), ones(2, 3, 4, 10)
ROTARY, PARTIAL = FORWARD.values()
ROTARY_BACKWARD, PARTIAL_BACKWARD = BACKWARD.values()


@pytest.mark.parametrize(
    ("op", "args", "words"),
    [
        (ROTARY, (Q[0], K, T, T), ["`q`", "(3, 4, 8)", "heads", "reshape"]),
        (ROTARY, (Q, ones(2, 4, 1, 8), T, T), ["`k`", "(2, 4, 1, 8)", "number of heads"]),
        (ROTARY, (Q, K.half(), T, T), ["`k`", "float16", "one dtype"]),
        (ROTARY, (ones(2, 3, 8, 4).mT, K, T, T), ["`q`", "stride 4", "contiguous()"]),
        (ROTARY, (Q[..., :7], K[..., :7], T[:, :7], T[:, :7]), ["7 columns", "even"]),
        (ROTARY, (Q, K, ones(4, 8), ones(4, 8)), ["`cos`", "(4, 8)", "3 rows", "position_ids"]),
        (ROTARY, (Q, K, ones(3, 3, 8), ones(3, 3, 8)), ["`cos`", "(3, 3, 8)", "or of 2"]),
        (ROTARY, (Q, K, ones(3, 10), ones(3, 10)), ["`cos`", "10 columns", "at most"]),
        (ROTARY, (Q, K, T, ones(3, 4)), ["`sin`", "(3, 4)", "alike"]),
        (ROTARY, (Q, K, T, T.half()), ["`sin`", "float16", "alike"]),
        (ROTARY, (Q, K, ones(8), ones(8)), ["`cos`", "(8,)", "(positions, width)"]),
        (ROTARY, (Q, K, T.double(), T.double()), ["`cos`", "float64", "float32"]),
        (ROTARY, (Q, K, T, T, IDS.float()), ["`position_ids`", "float32", "int64"]),
        (ROTARY, (Q, K, T, T, IDS.T), ["`position_ids`", "(3, 2)", "(2, 3)"]),
        (ROTARY, (Q, K, ones(2, 3, 8), ones(2, 3, 8), IDS), ["`cos`", "one table"]),
        (ROTARY, (Q, K, ones(0, 8), ones(0, 8), IDS), ["`cos`", "(0, 8)", "has some"]),
        (ROTARY, (Q, K, T, T, None, False, 6), ["`rotary_dim` is 6", "half"]),
        (ROTARY, (Q, K, T, T, None, False, 16), ["`rotary_dim` is 16", "at most"]),
        (ROTARY, (Q, K, T, T, None, 1), ["`interleaved`", "int", "bool"]),
        (ROTARY_BACKWARD, (Q, K[0], T, T), ["`grad_k_out`", "(3, 1, 8)"]),
        (PARTIAL, (Q, PE[:, :, 0], KV, T[:, :4], T[:, :4]), ["`k_pe`", "reshape"]),
        (PARTIAL, (Q, Q[..., :4], KV, T[:, :4], T[:, :4]), ["`k_pe`", "(2, 3, 4, 4)", "all heads"]),
        (PARTIAL, (Q, PE, KV[..., :3], T[:, :4], T[:, :4]), ["`kv`", "(2, 3, 4, 3)", "4 to 12"]),
        (PARTIAL, (Q, PE, KV[:, :, :1], T[:, :4], T[:, :4]), ["`kv`", "(2, 3, 1, 10)"]),
        (PARTIAL, (Q, PE, KV, T, T), ["`cos`", "8 columns"]),
        (PARTIAL, (Q, PE[..., :3], KV, T[:, :3], T[:, :3]), ["3 columns", "even"]),
        (PARTIAL, (Q, PE, KV.half(), T[:, :4], T[:, :4]), ["`kv`", "float16"]),
        (
            *(PARTIAL_BACKWARD, (Q, ones(2, 3, 4, 2, 8), T[:, :4], T[:, :4], 4, 6)),
            ["`grad_kv_out`", "(2, 3, 2, 4, 8)", "returns"],
        ),
        (
            *(PARTIAL_BACKWARD, (Q, ones(2, 3, 2, 4, 8), T[:, :4], T[:, :4], 4, 9)),
            ["`value_dim` is 9", "0 to 8"],
        ),
    ],
)  # fmt: skip
def test_refusals_say_what_was_given_what_is_allowed_and_what_to_do(op, args, words):
    with pytest.raises(InvalidInputError) as caught:
        op.bind(args)
    for word in words:
        assert word in str(caught.value)


def as_deepseek(q, k_pe, kv, cos, sin):
    """DeepSeek's own: neighbours are put half a width apart, then turned as Llama's."""
    nope = q.shape[-1] - k_pe.shape[-1]

    def turned(x):
        x = x.transpose(1, 2)
        batch, heads, length, width = x.shape
        apart = x.view(batch, heads, length, width // 2, 2).transpose(4, 3).reshape(x.shape)
        return as_llama(apart, cos, sin).transpose(1, 2)

    key = torch.cat((kv[..., :nope], turned(k_pe).expand(*q.shape[:3], -1)), -1)
    value = kv.new_zeros(q.shape)
    value[..., : kv.shape[-1] - nope] = kv[..., nope:]
    query = torch.cat((q[..., :nope], turned(q[..., nope:].contiguous())), -1)
    return query, torch.stack((key, value), 2)


def test_the_form_of_latent_attention_is_deepseeks():
    q, k_pe, kv = (randn(2, 5, *s, dtype=torch.float32) for s in ((3, 20), (1, 8), (3, 22)))
    cos, sin = gm.rope_tables(torch.arange(10).view(2, 5), 8)
    want = as_deepseek(q, k_pe, kv, cos, sin)
    before = [t.clone() for t in (q, k_pe, kv)]
    got = gm.partial_rotary_emb(q, k_pe, kv, cos, sin)
    torch.testing.assert_close(got, want)
    assert got[1].shape == (2, 5, 2, 3, 20)
    assert (got[1][:, :, 1, :, 10:] == 0).all()
    assert all(map(torch.equal, before, (q, k_pe, kv)))
    again = gm.PartialRotaryEmb.apply(q, k_pe, kv, cos[..., :4], sin[..., :4])
    assert all(map(torch.equal, again, got))
    apart, _ = gm.partial_rotary_emb(q, k_pe, kv, cos, sin, interleaved=False)
    llama = as_llama(q[..., 12:].transpose(1, 2), cos, sin).transpose(1, 2)
    torch.testing.assert_close(apart, torch.cat((q[..., :12], llama), -1))


def gradient_problem(name, form):
    op = FORWARD[name]
    sizes = {"tokens": 10, "pairs": 4, "rest": 3, "heads": 3, "kv_heads": 2, "value": 5}
    problem = op.sized(sizes, "float32")
    problem = op.forms(problem)[form] if form else problem
    values = op.inputs(problem, torch.Generator().manual_seed(0), "normal")
    learned = sum(a.name not in op.own_dtypes and a.type.kind() == "TensorType"
                  for a in op.parsed.arguments)  # fmt: skip
    return op, values, learned


def of(values, count, dtype=None):
    """The first tensors as leaves that need a gradient, others as they are."""
    return tuple(
        v.to(dtype or v.dtype).clone().requires_grad_(i < count)
        if isinstance(v, torch.Tensor) and v.is_floating_point()
        else v
        for i, v in enumerate(values)
    )


CASES = [
    ("apply_rotary_pos_emb", None),
    ("apply_rotary_pos_emb", "neighbours"),
    ("partial_rotary_emb", None),
    ("partial_rotary_emb", "halves"),
]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_gradients_are_those_of_float64_autograd(name, form):
    """With random upstream gradients, by the op of their own."""
    op, values, count = gradient_problem(name, form)
    leaves, exact = of(values, count), of(values, count, torch.float64)
    outputs, want = getattr(gm, name)(*leaves), op.reference(*exact)
    upstream = [randn(*o.shape, seed=i).float().double() for i, o in enumerate(outputs)]
    assert type(outputs[0].grad_fn).__name__ == "FormulaBackward"  # not the reference's
    got = torch.autograd.grad(outputs, leaves[:count], [u.float() for u in upstream],
                              create_graph=True)  # fmt: skip
    want = torch.autograd.grad(want, exact[:count], upstream, create_graph=True)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.double(), w, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_a_table_that_needs_a_gradient_gets_it(name, form):
    op, values, count = gradient_problem(name, form)
    at = (*range(count + 2),)
    leaves, exact = of(values, count + 2), of(values, count + 2, torch.float64)
    found = []
    for function, given in ((getattr(gm, name), leaves), (op.reference, exact)):
        outputs = function(*given)
        upstream = [randn(*o.shape, seed=i).to(o.dtype) for i, o in enumerate(outputs)]
        found.append(torch.autograd.grad(outputs, [given[i] for i in at], upstream))
    for g, w in zip(*found, strict=True):
        torch.testing.assert_close(g.double(), w, rtol=1e-5, atol=1e-5)


def test_derivatives_of_any_order_are_rotations():
    op, values, count = gradient_problem("apply_rotary_pos_emb", None)
    found = []
    for function, dtype in ((gm.apply_rotary_pos_emb, None), (op.reference, torch.float64)):
        leaves = of(values, count, dtype)
        q_out, k_out = function(*leaves)
        first = torch.autograd.grad(
            q_out.pow(3).sum() + k_out.pow(4).sum(), leaves[:2], create_graph=True
        )
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves[:2]))
    for g, w in zip(*found, strict=True):
        torch.testing.assert_close(g.double(), w, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bounds_see_the_usual_mistakes(name, dtype):
    op = FORWARD[name]
    problem = op.sized({"tokens": 16, "pairs": 32, "rest": 8, "heads": 4}, dtype)
    values = op.inputs(problem, torch.Generator().manual_seed(0), "normal")
    references, magnitudes = truth(op, values)
    bounds, given = op.bounds(problem), values[0].dtype
    right = tuple(r.to(given) for r in references)
    assert compare(right, references, magnitudes, bounds).ok
    at = len(values) - (3 if name == "partial_rotary_emb" else 5)
    cos, sin = values[at : at + 2]
    for mistake, tables in {
        "another sign": (cos, -sin),
        "tables in bfloat16": (cos.bfloat16().float(), sin.bfloat16().float()),
        "swapped": (sin, cos),
        "another row": (cos.roll(1, -2), sin.roll(1, -2)),
    }.items():
        wrong = op.reference(*values[:at], *tables, *values[at + 2 :])
        assert not compare(wrong, references, magnitudes, bounds).ok, mistake


@pytest.mark.parametrize("op", EVERY, ids=lambda op: op.name)
def test_contracts_are_well_formed(op):
    assert len({w.name for w in op.workloads}) == len(op.workloads)
    for workload in op.workloads:
        problem = workload.problem
        op.validate(problem.meta())
        assert op.cost(problem).flops > 0
        assert all(spec.is_contiguous for spec in op.outputs(problem))
    for dtype in DTYPES:
        base = op.sized({"tokens": 9, "pairs": 5, "rest": 3}, dtype)
        for problem in (base, *op.forms(base).values()):
            op.validate(problem.meta())
            for variant in op.variants:
                case = Case(registry.implementation(op.name, "aten"), problem, variant)
                verdict = judge(case, "cpu")
                assert verdict.ok, (variant, verdict.reason)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_function_has_its_schemas_signature(name):
    function = inspect.signature(getattr(gm, name)).parameters
    schema = FORWARD[name].signature.parameters
    assert [(p.name, p.default) for p in function.values()] == [
        (p.name, p.default) for p in schema.values()
    ]


def test_no_heads_no_tokens_and_nothing_to_turn():
    table = ones(3, 8)
    for shapes in (((0, 3, 4, 8), (0, 3, 1, 8)), ((2, 3, 0, 8), (2, 3, 1, 8))):
        outputs = gm.apply_rotary_pos_emb(*(ones(*s) for s in shapes), table, table)
        assert [tuple(o.shape) for o in outputs] == list(shapes)
    same, _ = gm.apply_rotary_pos_emb(Q, K, table[:, :0], table[:, :0], None, False, 0)
    assert torch.equal(same, Q)


def test_autocast_leaves_tables_as_they_are():
    q, k = Q.bfloat16(), K.bfloat16()
    cos, sin = gm.rope_tables(torch.arange(3), 8)
    want = gm.apply_rotary_pos_emb(q, k, cos, sin)
    with torch.autocast("cpu", torch.bfloat16):
        got = gm.apply_rotary_pos_emb(q, k.float(), cos, sin)
    assert all(map(torch.equal, got, want))
    rounded = gm.apply_rotary_pos_emb(q, k, cos.bfloat16(), sin.bfloat16())
    assert not torch.equal(rounded[0], want[0])


def test_the_module():
    module = nn.RotaryEmbedding(8, 16, theta=100.0, scaling={"rope_type": "linear", "factor": 2.0})
    assert module.state_dict() == {}
    tables = gm.rope_tables(torch.arange(16), 8, 100.0, {"rope_type": "linear", "factor": 2.0})
    want = gm.apply_rotary_pos_emb(Q, K, tables[0][:3], tables[1][:3])
    assert all(map(torch.equal, module(Q, K), want))
    ids = torch.tensor([[5, 0, 15], [1, 2, 3]])
    want = gm.apply_rotary_pos_emb(Q, K, *tables, position_ids=ids)
    assert all(map(torch.equal, module(Q, K, ids), want))
    assert "theta=100.0" in repr(module)
    for other in (copy.deepcopy(module).to(torch.bfloat16), module.half().bfloat16()):
        assert torch.equal(other.cos, tables[0])  # neither cast nor rounded on the way
    with torch.device("meta"):
        empty = nn.RotaryEmbedding(8, 16, theta=100.0)
    assert empty.cos.is_meta
    filled = empty.to_empty(device="cpu")
    assert torch.equal(filled.cos, gm.rope_tables(torch.arange(16), 8, 100.0)[0])
    wide = nn.RotaryEmbedding(4, 3)(Q, K)[0]
    assert torch.equal(wide[..., 4:], Q[..., 4:])
    with pytest.raises(InvalidInputError, match="max_positions"):
        nn.RotaryEmbedding(8, 2)(Q, K)
    with pytest.raises(InvalidInputError, match="max_positions"):
        nn.RotaryEmbedding(8, -1)


def test_the_module_compiles_and_trains():
    module = nn.RotaryEmbedding(8, 16, interleaved=True)
    compiled = torch.compile(module, fullgraph=True)
    found = []
    for call in (module, compiled):
        q, k = randn(2, 3, 4, 8).float().requires_grad_(), randn(2, 3, 1, 8).float()
        q_out, k_out = call(q, k)
        (grad,) = torch.autograd.grad(q_out.pow(2).mean() + k_out.sum() + q_out.sin().sum(), q)
        found.append((q_out, k_out, grad))
    torch.testing.assert_close(found[0], found[1])
