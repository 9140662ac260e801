"""Rows held in two blocks: widths that are no power of two, rows that start off 16 bytes."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest

from gristmill.core import registry
from gristmill.core.problem import Problem
from gristmill.core.target import named_target
from gristmill.kernels.device.row_blocks import have_edges, held_columns, main_block
from gristmill.specs.rms_norm_backward import problem_of
from gristmill.testing import Case, judge, mutated
from gristmill.testing.cases import layouts

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

FEW = replace(named_target("sm_90"), num_sms=2)  # programs meet several rows
PERSISTENT = registry.implementation("rms_norm_backward", "persistent")
EDGED = ((37, 4097), (21, 1000), (33, 1037), (19, 2055), (26, 1028))
TAILED = ((9, 5120), (11, 1072), (5, 1296))
ONE = ((19, 17), (5, 1), (70, 129), (9, 1792))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("shape", [*EDGED, *TAILED, *ONE], ids=str)
def test_rows_of_any_width(shape, dtype):
    problem = problem_of(shape, dtype)
    config = PERSISTENT.config(None, problem, FEW)
    assert config.get("EDGES", False) == (shape in EDGED)
    assert config.get("TAIL", False) == (shape in TAILED)
    for form in (problem, *PERSISTENT.op.forms(problem).values()):
        verdict = judge(Case(PERSISTENT, form, "normal"), "cpu", FEW)
        assert verdict.ok, verdict.reason


@pytest.mark.parametrize(
    "shape", [(17, 1037), (11, 1072)], ids=str
)  # eight programs: one has three
def test_rows_in_every_layout(shape):
    """With edges only where all rows of a program have the same ones, in all tensors."""
    seen = set()
    for label, problem in layouts(PERSISTENT.op, problem_of(shape, "float16")):
        if PERSISTENT.why_not(problem, FEW) is None:
            seen.add((label, have_edges(problem["x"], problem["grad_out"])))
            verdict = judge(Case(PERSISTENT, problem, "normal"), "cpu", FEW)
            assert verdict.ok, (label, verdict.reason)
    edged = shape == (17, 1037)
    assert {("x-sliced", edged), ("x-misaligned", False), ("grad_out-broadcast", False)} <= seen
    assert ("x-ragged", False) in seen


def test_edges_of_rows_in_several_dimensions():
    base = problem_of((4, 3, 2, 1037), "float16")
    swapped = replace(base["x"], strides=(1037 * 2, 1037 * 8, 1037, 1))
    args = {**dict(base.args), "x": swapped}
    problem = Problem(base.op, tuple(args.items()))
    assert not have_edges(problem["x"], problem["grad_out"])  # 8 rows on is not 8 rows on in `x`
    assert judge(Case(PERSISTENT, problem, "normal"), "cpu", FEW).ok
    far = replace(base["x"], strides=(1037 * 6 + 8, 1037 * 2 + 16, 1037, 1))
    problem = Problem(base.op, tuple({**args, "x": far}.items()))
    assert have_edges(problem["x"], problem["grad_out"])
    assert judge(Case(PERSISTENT, problem, "normal"), "cpu", FEW).ok


def test_programs_of_rows_with_edges_come_in_eights():
    for rows in (1, 7, 8, 9, 37, 1023):
        problem = problem_of((rows, 1037))
        config = PERSISTENT.config(None, problem, named_target("sm_90"))
        (shares,) = PERSISTENT.workspace(problem, config)
        assert shares.shape[0] % 8 == 0
        assert shares.shape[0] <= max(8, config["NUM_PROGRAMS"])


def test_two_blocks_hold_no_more_than_one():
    for width in range(64, 3000):
        spec = problem_of((1, width))["x"]
        one, tail = held_columns({}, spec), held_columns({"TAIL": True}, spec)
        assert width <= tail <= one
        assert main_block(one) == one
        edges = held_columns({"EDGES": True}, spec)
        assert width - width % 8 <= main_block(edges) == edges - 16


MUTATIONS = [
    ((33, 1037), "middle = (N - head)", "middle = N"),
    ((33, 1037), "behind < N", "behind < N - 1"),
    ((33, 1037), "at < head,", "at < head - 1,"),
    ((33, 1037), "w_ptr + head + cols", "w_ptr + cols"),
    ((33, 1037), "next_access(row * N, ACCESS)", "row * N"),
    ((33, 1037), "dw_rest += terms", "dw_rest = terms"),
    ((11, 1072), "squares + more[0]", "squares"),
    ((11, 1072), "products + more[1]", "products"),
    ((11, 1072), "rest_mask = rest < N", "rest_mask = rest < N - 1"),
]


@functools.cache  # all mutations are held against the same whole kernel
def conforms(case):
    return judge(case, "cpu", FEW).ok


@pytest.mark.parametrize(("shape", "old", "new"), MUTATIONS, ids=str)
def test_a_broken_block_is_rejected(shape, old, new, tmp_path):
    problem = problem_of(shape, "float16")
    broken = mutated(PERSISTENT, old, new, tmp_path)
    assert conforms(Case(PERSISTENT, problem, "normal"))
    assert not judge(Case(broken, problem, "normal"), "cpu", FEW).ok
