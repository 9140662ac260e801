"""What the conformance suite does not make of matmul by itself: one weight for a batch, views whose
batch merges or does not, few rows by either side, copies of some operands; in the interpreter."""

import dataclasses

import pytest
import torch

from gristmill.core import registry
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.target import named_target
from gristmill.specs.matmul import OP, problem_of
from gristmill.testing import Case, judge

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
TARGET = named_target("sm_90")


def views():
    half = torch.float16
    w = torch.empty(72, 64, dtype=half).t()
    x = torch.empty(3, 20, 64, dtype=half)
    heads, keys = (torch.empty(20, 3, 64, dtype=half).transpose(0, 1) for _ in "ab")
    return {
        "shared": (x, w),
        "shared-of-apart-rows": (x[:, :17], w),
        "shared-of-one-row": (x[:, 0].unsqueeze(1), w),
        "expanded": (x, w.expand(3, 64, 72)),
        "expanded-a": (x[:1].expand(3, 20, 64), torch.empty(3, 64, 72, dtype=half)),
        "heads": (heads, keys.mT),
        "odd-results": (x, torch.empty(3, 71, 64, dtype=half).mT),
        "backwards-on-16-bytes": (
            torch.empty(3, 64, 24, dtype=half).mT,
            torch.empty(3, 64, 72, dtype=half),
        ),
        "backwards": (torch.empty(3, 64, 20, dtype=half).mT, torch.empty(3, 72, 64, dtype=half).mT),
    }


@pytest.mark.parametrize("view", views())
@pytest.mark.parametrize(
    "name", [i.name for i in registry.implementations("matmul") if i.kind == "triton"]
)
def test_views_of_a_batch(name, view):
    a, b = views()[view]
    args = zip(OP.names, (TensorSpec.of(a), TensorSpec.of(b), False), strict=True)
    problem = Problem("matmul", tuple(args))
    implementation = registry.implementation("matmul", name)
    runs = implementation.why_not(problem, TARGET) is None
    assert runs == (name in RUN[view])
    if runs:
        verdict = judge(Case(implementation, problem, "normal"), "cpu", TARGET)
        assert verdict.ok, verdict.reason


ONE = ("persistent_tma", "split_k", "tiled")
BATCHED = ("persistent_tma", "tiled")
RUN = {
    "shared": ONE,
    "shared-of-apart-rows": BATCHED,
    "shared-of-one-row": ONE,
    "expanded": ONE,
    "expanded-a": BATCHED,
    "heads": BATCHED,
    "backwards": ("tiled",),  # rows of 20 values are off 16 bytes
    "backwards-on-16-bytes": BATCHED,
    "odd-results": BATCHED,
}


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize("m", [1, 5, 16, 33])
def test_few_rows_by_either_side(m, weight, parts, swap):
    problem = problem_of(m, 104, 264, "float16", weight=weight)
    implementation = registry.implementation("matmul", "split_k")
    prior = implementation.config(None, problem, TARGET).knobs
    config = {**prior, "BLOCK_K": 64, "SPLIT_K": parts, "SWAP": swap, "PDL": False}
    config = implementation.config(config, problem, TARGET)
    outputs = [
        judge(Case(implementation, problem, variant, config), "cpu", TARGET)
        for variant in ("normal", "nonfinite")
    ]
    assert all(v.ok for v in outputs), outputs


def test_parts_are_added_the_same_way_every_time():
    problem = problem_of(7, 80, 1000, "float16")
    values = OP.inputs(problem, torch.Generator().manual_seed(0), "range")
    implementation = registry.implementation("matmul", "split_k")
    config = {**implementation.config(None, problem, TARGET).knobs, "SPLIT_K": 4, "BLOCK_K": 64}
    first, second = (run(implementation, problem, values, config) for _ in "ab")
    assert torch.equal(first, second)


def run(implementation, problem, values, knobs):
    config = implementation.config({**knobs, "PDL": False}, problem, TARGET)
    outputs, workspace = implementation.allocate(values, config)
    assert len(workspace) == 1
    implementation.executor().run(implementation.launches(values, outputs, workspace, config))
    return outputs[0]


@pytest.mark.parametrize("along_m", [False, True])
@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize("sizes", [(70, 72, 33), (65, 33, 64), (33, 65, 64)])
def test_only_operands_off_16_bytes_are_copied(sizes, weight, along_m):
    problem = problem_of(*sizes, "float16", weight=weight, along_m=along_m)
    implementation = registry.implementation("matmul", "padded")
    off = [s for s in problem.tensors.values() if s.tma_dim is None]
    if not off:
        assert "persistent_tma" in str(implementation.why_not(problem, TARGET))
        return
    config = implementation.config(None, problem, TARGET)
    copies = implementation.workspace(problem, config)
    assert all(c.numel >= s.numel for c, s in zip(copies, off, strict=True))
    assert all(c.strides[0] * c.itemsize % 128 == 0 for c in copies)
    verdict = judge(Case(implementation, problem, "nonfinite"), "cpu", TARGET)
    assert verdict.ok, verdict.reason


def test_a_misaligned_operand_is_copied():
    even = problem_of(40, 48, 64, "float16")
    a = dataclasses.replace(even["a"], aligned=False)
    problem = Problem("matmul", (("a", a), *even.args[1:]))
    implementation = registry.implementation("matmul", "padded")
    verdict = judge(Case(implementation, problem, "normal"), "cpu", TARGET)
    assert verdict.ok, verdict.reason
