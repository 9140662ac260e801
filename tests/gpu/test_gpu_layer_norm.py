"""layer_norm's kernels on a GPU: rows whose mean is far from 0, chunks that are read back, and
shares of both gradients that a launch set up early adds up."""

import pytest
import torch

from gristmill.core.registry import implementation
from gristmill.core.target import device_target, named_target
from gristmill.kernels.device.partial_sums import can_overlap
from gristmill.verify import truth

HAS_GPU = torch.cuda.is_available()
pytestmark = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
DEVICE = torch.device("cuda", 0) if HAS_GPU else torch.device("cpu")
TARGET = device_target(DEVICE) if HAS_GPU else named_target("sm_90")
ROWS, ADDING = implementation("layer_norm", "rows"), implementation("add_layer_norm", "rows")
BACKWARD = [implementation(f"{op}_backward", "persistent") for op in ("layer_norm", ADDING.op.name)]


def values_of(op, rows, width, variant, dtype):
    problem = op.sized({"rows": rows, "N": width}, dtype)
    return problem, op.inputs(problem, torch.Generator(DEVICE).manual_seed(0), variant)


def furthest(outputs, references):
    return max(
        float((out.double() - ref).abs().max() / ref.abs().max())
        for out, ref in zip(outputs, references, strict=True)
    )


@pytest.mark.parametrize("width", [4096, 8191, 40_000])
def test_a_large_mean_costs_no_digits(width):
    _, values = values_of(ROWS.op, 100, width, "offset", "float32")
    want, _ = truth(ROWS.op, values)
    assert furthest([ROWS(*values)], want) < 1e-5


@pytest.mark.parametrize("kernel", BACKWARD, ids=lambda i: i.id)
def test_nor_do_its_gradients(kernel):
    _, values = values_of(kernel.op, 1000, 4096, "offset", "float32")
    want, _ = truth(kernel.op, values)
    assert furthest(kernel(*values), want) < 1e-5


@pytest.mark.parametrize("chunks", [8, 16, 32])
def test_the_sum_is_read_back_as_it_was_written(chunks):
    """By every thread of the program, whoever wrote it: as of a sum made before, and not of the
    call before, whose memory this one has."""
    problem, (x, residual, *rest) = values_of(ADDING.op, 500, 40_001, "normal", "bfloat16")
    config = {**ADDING.config(None, problem, TARGET).knobs, "CHUNKS": chunks, "num_warps": 8}
    for n in range(5):
        shifted = x.roll(n, 0) * (n + 1)
        out, total = ADDING(shifted, residual, *rest, config=config)
        assert torch.equal(total, shifted + residual)
        torch.testing.assert_close(out, ROWS(total, *rest, config=config))
        del out, total


@pytest.mark.skipif(not can_overlap(TARGET), reason="needs programmatic dependent launch")
@pytest.mark.parametrize("kernel", BACKWARD, ids=lambda i: i.id)
@pytest.mark.parametrize("sizes", [(2048, 8192), (16384, 1000), (1, 4096), (0, 4096)])
def test_a_launch_that_is_set_up_early_reads_what_the_one_before_wrote(kernel, sizes):
    """The same bits as one launch after the other, call behind call, on two sets of values."""
    problem = kernel.op.sized(dict(zip(("rows", "N"), sizes, strict=True)), "bfloat16")
    early = kernel.config(None, problem, TARGET).knobs
    assert early["OVERLAP"]
    generator = torch.Generator(DEVICE).manual_seed(0)
    sets = [kernel.op.inputs(problem, generator, "normal") for _ in range(2)]
    expected = [kernel(*values, config={**early, "OVERLAP": False}) for values in sets]
    outputs = [kernel(*sets[n % 2], config=early) for n in range(20)]
    for n, out in enumerate(outputs):
        assert all(map(torch.equal, out, expected[n % 2])), n
