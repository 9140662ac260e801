"""Rotary embeddings on the GPU: what the conformance suite cannot know."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import gristmill as gm
from gristmill.core import registry
from gristmill.core.target import device_target
from gristmill.specs import apply_rotary_pos_emb as spec

HAS_GPU = torch.cuda.is_available()
pytestmark = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
DEVICE = torch.device("cuda", 0) if HAS_GPU else torch.device("cpu")
HEADS = registry.implementation("apply_rotary_pos_emb", "heads")
NAMES = ("apply_rotary_pos_emb", "partial_rotary_emb")


def arguments(name, dtype="bfloat16"):
    op = registry.load(name)
    sizes = {"tokens": 40, "pairs": 32, "rest": 64, "heads": 6, "kv_heads": 2, "value": 64}
    problem = op.sized(sizes, dtype)
    return op, op.inputs(problem, torch.Generator(DEVICE).manual_seed(0), "normal")


def test_positions_outside_the_tables_are_nan():
    """Far outside, too: an address made of such a position would be unmapped."""
    q, k = (torch.ones(1, 4, n, 128, device=DEVICE, dtype=torch.bfloat16) for n in (8, 2))
    cos, sin = gm.rope_tables(torch.arange(3, device=DEVICE), 128)
    ids = torch.tensor([[0, 2**62, -(2**62), 2]], device=DEVICE)
    for out in HEADS(q, k, cos, sin, ids):
        assert out[0, 1:3].isnan().all()
        assert out[0, ::3].isfinite().all()
    torch.cuda.synchronize()


@pytest.mark.parametrize("interleaved", [False, True])
def test_results_may_lie_where_the_operands_did(interleaved):
    problem = spec.problem_of(2, 999, (32, 8), 128, rotary_dim=64, interleaved=interleaved)
    values = HEADS.op.inputs(problem, torch.Generator(DEVICE).manual_seed(0), "normal")
    want = HEADS(*values)
    config = HEADS.config(None, problem, device_target(DEVICE))
    registry.executor().run(HEADS.launches(values, values[:2], (), config))
    assert all(map(torch.equal, values[:2], want))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_gradients_are_those_of_float64_autograd(name, dtype, fresh_store):
    op, values = arguments(name, dtype)
    count = 2 if name == "apply_rotary_pos_emb" else 3
    leaves = [v.requires_grad_(i < count) for i, v in enumerate(values[: count + 2])]
    exact = [v.detach().double().requires_grad_(v.requires_grad) for v in leaves]
    rest = values[count + 2 :]
    outputs = getattr(gm, name)(*leaves, *rest)
    truth = op.reference(*exact, *rest)
    upstream = [torch.randn_like(o) for o in outputs]
    got = torch.autograd.grad(outputs, leaves[:count], upstream)
    want = torch.autograd.grad(truth, exact[:count], [u.double() for u in upstream])
    tolerance = {"bfloat16": 8e-3, "float32": 4e-6}[dtype]
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.double(), w, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_one_launch_forward_and_one_backward(name):
    for op in (name, f"{name}_backward"):
        for i in registry.implementations(op):
            if i.kind == "triton":
                for workload in i.op.workloads:
                    values = workload.problem.meta()
                    config = i.config(None, workload.problem, device_target(DEVICE))
                    made = i.allocate(values, config)
                    assert len(i.launches(values, *made, config)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_compiled_and_captured(name, fresh_store):
    op, values = arguments(name)
    call = getattr(gm, name)
    want = call(*values)
    compiled = torch.compile(call, fullgraph=True)
    assert all(map(torch.equal, compiled(*values), want))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(*values)
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, captured, want))
    assert op.name == name


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn"])
def test_tables_are_those_of_transformers(kind):
    """Up to what float32 frequencies and angles lose there, at the first positions."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    scaling = {
        "default": None,
        "linear": {"rope_type": "linear", "factor": 4.0},
        "llama3": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "yarn": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
        },
    }[kind]
    config = LlamaConfig(
        hidden_size=4096, num_attention_heads=32, rope_theta=5e5, rope_scaling=scaling,
        max_position_embeddings=131072,
    )  # fmt: skip
    positions = torch.arange(64, device=DEVICE)[None]
    theirs = LlamaRotaryEmbedding(config).to(DEVICE)(torch.zeros(1, device=DEVICE), positions)
    ours = gm.rope_tables(positions, 128, 5e5, scaling)
    torch.testing.assert_close(ours, tuple(theirs), rtol=0, atol=2e-5)
