"""What broke libraries like ours in the field (docs/robustness.md), where no other file has it."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import pytest
import torch
from triton.runtime import _allocation

import gristmill as gm
from gristmill.core.registry import implementations, op_names
from gristmill.core.target import named_target

ROOT = Path(__file__).parents[2]
HOPPER = named_target("sm_90")
TRITON = [i for op in op_names() for i in implementations(op) if i.kind == "triton"]


def test_every_test_that_the_page_names_exists():
    page = (ROOT / "docs" / "robustness.md").read_text()
    names = set(re.findall(r"`(test_\w+)`", page))
    written = "\n".join(p.read_text() for p in (ROOT / "tests").rglob("test_*.py"))
    assert len(names) > 10
    assert {n for n in names if f"def {n}(" not in written} == set()


@pytest.mark.parametrize("implementation", TRITON, ids=lambda i: i.id)
def test_every_grid_is_along_x(implementation):
    """y and z end at 65,535."""
    for workload in implementation.op.workloads:
        if implementation.why_not(workload.problem, HOPPER) is None:
            values = workload.problem.meta()
            config = implementation.config(None, workload.problem, HOPPER)
            made = implementation.allocate(values, config)
            for launch in implementation.launches(values, *made, config):
                assert launch.grid[1:] in ((), (1,), (1, 1)), workload.name


def test_calls_in_a_forked_child(fresh_store):
    """As in a DataLoader's worker: bound calls, new problems and gradients."""
    x = torch.randn(6, 32)
    want = gm.rms_norm(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: threads and fork
        child = os.fork()
    if child == 0:
        status = 1
        try:
            leaf = x[:3].clone().requires_grad_()
            gm.rms_norm(leaf).sum().backward()
            same = torch.equal(gm.rms_norm(x), want) and leaf.grad is not None
            status = 0 if same else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_tritons_allocator_is_left_alone(fresh_store):
    """Two libraries that set it would free each other's memory; no kernel of ours needs it. Users'
    kernels may: the worker, a process of its own, sets one."""
    before = _allocation._allocator.get()
    gm.rms_norm(torch.randn(6, 32))
    gm.get_op("matmul", (torch.randn(4, 4), torch.randn(4, 4)), tune="never")
    assert _allocation._allocator.get() is before
    sources = (ROOT / "src" / "gristmill").rglob("*.py")
    named = [p for p in sources if "set_allocator(" in p.read_text()]
    assert [str(p.relative_to(ROOT / "src")) for p in named] == ["gristmill/tuners/worker.py"]
