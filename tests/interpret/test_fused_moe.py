"""The fused MoE kernel of `examples/aot`: its blocks of tokens, and products against float64."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

EXAMPLE = Path(__file__).parents[2] / "examples" / "aot" / "fused_moe"
sys.path.append(str(EXAMPLE))

from moe_blocks import align_blocks  # noqa: E402
from moe_call import FP8, Config, arrange, quantize_blocks, quantize_groups, reference  # noqa: E402
from moe_kernel import fused_moe_kernel  # noqa: E402

# The interpreter hands NumPy arrays of one element to `range`.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)

TRITON = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
CONFIG = Config(BLOCK_SIZE_M=16, BLOCK_SIZE_N=32, BLOCK_SIZE_K=32, GROUP_SIZE_M=2)


@given(
    tokens=st.integers(0, 40),
    top_k=st.integers(1, 3),
    experts=st.integers(1, 9),
    block=st.sampled_from([1, 4, 16]),
    seed=st.integers(0, 99),
)
def test_every_routed_token_is_in_a_block_of_its_expert(tokens, top_k, experts, block, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(experts, (tokens, top_k), generator=generator)
    token_ids, expert_ids, used = align_blocks(ids, block, experts)
    assert token_ids.numel() == expert_ids.numel() * block
    assert used.item() <= token_ids.numel()
    assert used.item() % block == 0
    real = token_ids[token_ids < ids.numel()]
    assert sorted(real.tolist()) == list(range(ids.numel()))
    assert (token_ids[used.item() :] == ids.numel()).all()
    of_block = expert_ids.repeat_interleave(block)[token_ids < ids.numel()]
    assert torch.equal(of_block.long(), ids.flatten()[real.long()])
    for expert in range(experts):  # in their order
        mine = real[of_block == expert]
        assert torch.equal(mine, mine.sort().values)


def inputs(m, n, k, experts, top_k):
    generator = torch.Generator().manual_seed(m + n + k)
    a = torch.randn(m, k, generator=generator)
    b = torch.randn(experts, n, k, generator=generator) / k**0.5
    logits = torch.randn(m, experts, generator=generator)
    weights, ids = logits.softmax(1).topk(top_k)
    return a, b, weights, ids.int()


def run(call):
    *arguments, compute_type, fp8, int8 = call.arguments
    call.output.fill_(float("nan"))
    arguments = (*arguments, TRITON[compute_type], fp8, int8)
    fused_moe_kernel[call.grid](*arguments, num_warps=4, num_stages=3)
    return call.output


def check(out, truth, scale):
    bound = torch.finfo(out.dtype).eps * truth.abs() + 1e-5 * scale
    assert ((out.double() - truth).abs() <= bound).all()


@pytest.mark.parametrize("out_dtype", TRITON)
@pytest.mark.parametrize(
    ("m", "n", "k", "experts", "top_k"), [(1, 48, 64, 8, 2), (7, 40, 96, 4, 1), (33, 64, 80, 3, 3)]
)
def test_block_scaled_fp8(m, n, k, experts, top_k, out_dtype):
    a, b, weights, ids = inputs(m, n, k, experts, top_k)
    (q, a_scale), (w, b_scale) = quantize_groups(a, 32), quantize_blocks(b, 32)
    facts = {"a_scale": a_scale, "b_scale": b_scale, "group": (32, 32)}
    call = arrange(q, w, weights, ids, **facts, out_dtype=out_dtype, config=CONFIG)
    truth = reference(q, w, weights, ids, **facts)
    check(run(call), truth, 4.0)
    assert (truth.abs().amax(1) > 0).all()


def test_one_scale_a_tensor():
    a, b, weights, ids = inputs(9, 48, 64, 4, 2)
    q, w = (a * 50).clamp(-448, 448).to(FP8), (b * 100).clamp(-448, 448).to(FP8)
    facts = {"a_scale": torch.tensor([1 / 50]), "b_scale": torch.tensor([0.01, 0.02, 0.03, 0.04])}
    call = arrange(q, w, weights, ids, **facts, multiply_weights=False, config=CONFIG)
    check(run(call), reference(q, w, weights, ids, **facts, multiply_weights=False), 4.0)


def test_int8_weights():
    a, b, weights, ids = inputs(9, 48, 64, 4, 2)
    scale = b.abs().amax(2) / 127
    w = (b / scale[:, :, None]).round().to(torch.int8)
    facts = {"b_scale": scale}  # fp16: the interpreter multiplies bf16 as integers
    call = arrange(a.half(), w, weights, ids, **facts, out_dtype=torch.float16, config=CONFIG)
    check(run(call), reference(a.half(), w, weights, ids, **facts), 4.0)


def test_a_block_without_an_expert_is_zeros():
    a, b, weights, ids = inputs(20, 32, 64, 2, 1)
    a, b = a.half(), b.half()
    call = arrange(a, b, weights, ids, out_dtype=torch.float16, config=CONFIG)
    expert_ids = call.arguments[7]
    expert_ids[expert_ids == 1] = -1
    out = run(call)
    assert (out[ids.flatten() == 1] == 0).all()
    kept = ids.flatten() == 0
    truth = reference(a, b, weights, ids)
    check(out[kept], truth[kept], 4.0)
