"""The rotary kernels where the conformance suite does not look: whole tables of neighbours, one
table for several sequences, positions of other shapes and outside the tables, results in place."""

from __future__ import annotations

import math

import pytest
import torch

import gristmill as gm
from gristmill.compile.executor import EXECUTOR
from gristmill.core import registry
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.target import named_target
from gristmill.specs import apply_rotary_pos_emb as spec
from gristmill.specs import partial_rotary_emb as packed
from gristmill.specs import partial_rotary_emb_backward as packed_backward
from gristmill.testing import Case, judge, mutated

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
TARGET = named_target("sm_90")
HEADS = registry.implementation("apply_rotary_pos_emb", "heads")
PACK = registry.implementation("partial_rotary_emb", "tiles")
BACK = registry.implementation("apply_rotary_pos_emb_backward", "heads")


def with_args(problem, **changed):
    return Problem(problem.op, tuple({**dict(problem.args), **changed}.items()))


BASE = spec.problem_of(3, 5, (4, 2), 12, "float32")
IDS = TensorSpec.contiguous((3, 5), "int64")
TABLE = TensorSpec.contiguous((9, 12), "float32")
PICKED = with_args(BASE, cos=TABLE, sin=TABLE, position_ids=IDS)
FORMS = {
    "one table for three sequences": BASE,
    "a table of one sequence for three": with_args(
        BASE, **dict.fromkeys(("cos", "sin"), TensorSpec.contiguous((1, 5, 12), "float32"))
    ),
    "whole tables of neighbours": spec.problem_of(
        3, 5, (4, 2), 12, "float16", interleaved=True, each=True
    ),
    "part of a head, neighbours": spec.problem_of(
        1, 5, (3, 3), 12, "float16", rotary_dim=4, interleaved=True
    ),
    "positions of every sequence": PICKED,
    "positions for all sequences": with_args(
        PICKED, position_ids=TensorSpec.contiguous((5,), "int32")
    ),
    "positions of one sequence for three": with_args(
        PICKED, position_ids=TensorSpec.contiguous((1, 5), "int32")
    ),
    "positions by column": with_args(PICKED, position_ids=TensorSpec((3, 5), (1, 3), "int64")),
    "heads first": spec.heads_first(spec.problem_of(2, 5, (4, 2), 16, "float32")),
    "more heads of keys": spec.problem_of(2, 3, (1, 9), 8, "float32"),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form):
    problem = FORMS[form]
    assert HEADS.why_not(problem, TARGET) is None
    verdict = judge(Case(HEADS, problem, "normal"), "cpu", TARGET)
    assert verdict.ok, verdict.reason
    names = dict(zip(("q", "k"), ("grad_q_out", "grad_k_out"), strict=True))
    back = Problem(BACK.op.name, tuple((names.get(n, n), v) for n, v in problem.args))
    verdict = judge(Case(BACK, back, "normal"), "cpu", TARGET)
    assert verdict.ok, verdict.reason


PACKED = {
    "a table for each sequence": packed.problem_of(3, 4, 3, (6, 4, 5), "float32"),
    "values as wide as a query": packed.problem_of(2, 3, 2, (4, 4, 8), "float16"),
    "no columns without a position": packed.problem_of(2, 3, 2, (0, 8, 3), "float16"),
    "no values": packed.problem_of(2, 3, 2, (4, 4, 0), "float32"),
}


@pytest.mark.parametrize("form", PACKED)
def test_forms_of_latent_attention(form):
    problem = PACKED[form]
    back = packed_backward.of_forward(problem)
    for one in (problem, back):
        (kernel,) = (i for i in registry.implementations(one.op) if i.kind == "triton")
        assert kernel.why_not(one, TARGET) is None
        verdict = judge(Case(kernel, one, "normal"), "cpu", TARGET)
        assert verdict.ok, verdict.reason


@pytest.mark.parametrize(
    ("kernel", "problem", "old"),
    [
        (HEADS, FORMS["positions of every sequence"], "batch * stride_ib + "),
        (HEADS, spec.problem_of(3, 5, (4, 2), 12, "float32", each=True), "batch * stride_tb + "),
        (HEADS, BASE, "batch * stride_qb + "),
        (HEADS, BASE, "batch * stride_kb + "),
        (PACK, PACKED["a table for each sequence"], "batch * stride_tb + "),
        (PACK, PACKED["a table for each sequence"], "batch * stride_pb + "),
        (PACK, PACKED["a table for each sequence"], "batch * stride_vb + "),
    ],
)
def test_sequences_that_are_one_are_rejected(kernel, problem, old, tmp_path):
    assert judge(Case(kernel, problem, "normal"), "cpu", TARGET).ok
    broken = mutated(kernel, old, "", tmp_path)
    assert not judge(Case(broken, problem, "normal"), "cpu", TARGET).ok


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_positions_outside_the_tables_are_nan_and_not_read(dtype):
    """The tables are rows of larger ones, whose other rows would show."""
    q, k = torch.ones(1, 5, 2, 8), torch.ones(1, 5, 1, 8)
    cos, sin = (t[2:5] for t in gm.rope_tables(torch.arange(8), 8))
    ids = torch.tensor([[0, -1, 3, 2, torch.iinfo(dtype).max]], dtype=dtype)
    outputs = HEADS(q, k, cos, sin, ids)
    want = HEADS.op.reference(q, k, cos, sin, ids)
    for out, reference in zip(outputs, want, strict=True):
        assert out[0, [1, 2, 4]].isnan().all()
        torch.testing.assert_close(out, reference, equal_nan=True)


@pytest.mark.parametrize("interleaved", [False, True])
def test_results_may_lie_where_the_operands_did(interleaved):
    """For an op that turns in place: every program reads its heads before it writes them."""
    problem = spec.problem_of(2, 7, (4, 2), 20, "float32", rotary_dim=12, interleaved=interleaved)
    values = HEADS.op.inputs(problem, torch.Generator().manual_seed(0), "normal")
    want = HEADS.op.reference(*values)
    config = HEADS.config(None, problem, TARGET)
    EXECUTOR.run(HEADS.launches(values, values[:2], (), config))
    torch.testing.assert_close(values[:2], want)


def test_there_and_back():
    """The backward op undoes the forward one, as a rotation's transpose is its inverse."""
    problem = spec.problem_of(2, 3, (4, 2), 16, "float32")
    values = HEADS.op.inputs(problem, torch.Generator().manual_seed(0), "normal")
    there = HEADS(*values)
    torch.testing.assert_close(BACK(*there, *values[2:]), values[:2])
    size = [math.sqrt(x.square().sum()) for x in (*there, *values[:2])]
    assert size[:2] == pytest.approx(size[2:])
