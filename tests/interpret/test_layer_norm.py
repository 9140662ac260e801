"""layer_norm's kernels on rows whose mean is far from 0: right to float32's last bits, which the
op's bounds (they hold for torch's too) do not ask for."""

import pytest
import torch

from gristmill.core.registry import implementation
from gristmill.core.target import named_target
from gristmill.testing import mutated
from gristmill.verify import truth

# The interpreter's own: numpy deprecations.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TARGET = named_target("sm_90")
DIGITS = 1e-5  # the interpreter adds a row's values one after the other
ROWS = implementation("layer_norm", "rows")
ADDING = implementation("add_layer_norm", "rows")
PERSISTENT = implementation("layer_norm_backward", "persistent")


def values_of(op, rows, width):
    problem = op.sized({"rows": rows, "N": width}, "float32")
    return problem, op.inputs(problem, torch.Generator().manual_seed(0), "offset")


def furthest(outputs, references):
    return max(
        float((out.double() - ref).abs().max() / ref.abs().max())
        for out, ref in zip(outputs, references, strict=True)
    )


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_a_large_mean_costs_no_digits(chunks):
    problem, values = values_of(ROWS.op, 3, 4099)
    prior = dict(ROWS.config(None, problem, TARGET).knobs)
    config = {**prior, "CHUNKS": chunks, "BLOCK_M": 1, "num_warps": 8 // chunks}
    (want,), _ = truth(ROWS.op, values)
    assert furthest([ROWS(*values, config=config)], [want]) < DIGITS


@pytest.mark.parametrize("chunks", [1, 4])
def test_nor_in_a_sum(chunks):
    problem, values = values_of(ADDING.op, 3, 4099)
    prior = dict(ADDING.config(None, problem, TARGET).knobs)
    config = {**prior, "CHUNKS": chunks, "BLOCK_M": 1, "num_warps": 8 // chunks}
    want, _ = truth(ROWS.op, (values[0] + values[1], *values[2:]))
    out, total = ADDING(*values, config=config)
    assert torch.equal(total, values[0] + values[1])
    assert furthest([out], want) < DIGITS


def test_nor_do_its_gradients():
    _, values = values_of(PERSISTENT.op, 5, 1000)
    want, _ = truth(PERSISTENT.op, values)
    assert furthest(PERSISTENT(*values), want) < DIGITS


@pytest.mark.parametrize("kernel", [ROWS, PERSISTENT], ids=lambda i: i.id)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mean = tl.sum(x, axis=1) / N", "mean = 0 * tl.sum(x, axis=1)"),
        ("slip = gaps / N", "slip = 0 * gaps"),
        ("left * left", "x * x"),
    ],
)
def test_what_makes_it_so(kernel, old, new, tmp_path):
    _, values = values_of(kernel.op, 5, 1000)
    want, _ = truth(kernel.op, values)
    broken = mutated(kernel, old, new, tmp_path)
    outputs = broken(*values)
    assert not furthest(outputs if isinstance(outputs, tuple) else (outputs,), want) < DIGITS


@pytest.mark.parametrize("kernel", [ROWS, PERSISTENT], ids=lambda i: i.id)
def test_constant_rows_leave_nothing(kernel):
    """Of 4,099 times 0.1 the float32 mean is not 0.1."""
    _, values = values_of(kernel.op, 2, 4099)
    x = values[kernel.op.names.index("x")]
    x.fill_(0.1)
    x[1] = 1e4
    want, _ = truth(kernel.op, values)
    outputs = kernel(*values)
    assert furthest(outputs if isinstance(outputs, tuple) else (outputs,), want) < DIGITS
