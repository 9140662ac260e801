"""A trace of launches that run, in Triton's interpreter."""

from __future__ import annotations

import torch

from aot_cases import example
from gristmill import aot

ADD = example("vector_add").add_kernel


def test_launches_in_the_interpreter_are_traced():
    x, y = torch.arange(40.0), torch.ones(40)
    out = torch.empty(40)
    with aot.trace(ADD) as t:
        ADD[(1,)](x, y, out, 40, BLOCK_SIZE=64)
        ADD[(2,)](x[1:], y[1:], out[1:], 32, BLOCK_SIZE=32)
    assert torch.equal(out[:33], torch.cat([x[:1], x[1:33]]) + 1)
    ADD[(1,)](x, y, out, 1, BLOCK_SIZE=64)
    assert t.launches == 2
    (kernel,) = t.kernels()
    assert kernel.variables == {}
    assert kernel.given["x_ptr"] == aot.Ptr("fp32")
    assert kernel.given["n_elements"] == aot.Int([16, None])
    assert kernel.given["BLOCK_SIZE"] == [64, 32]
    assert not ADD.pre_run_hooks
