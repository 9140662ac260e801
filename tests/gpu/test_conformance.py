"""Every implementation against its op's contract, on the GPU: adversarial sizes, layouts, values
and configs, in every dtype; real workloads; tensors that reach past 2**31 elements."""

import pytest
import torch

from gristmill.core import registry
from gristmill.core.target import device_target, named_target
from gristmill.kernels.device.partial_sums import can_overlap
from gristmill.testing import Case, cases, configs, fitted, judge, layouts, mutated

HAS_GPU = torch.cuda.is_available()
pytestmark = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
DEVICE = torch.device("cuda", 0) if HAS_GPU else torch.device("cpu")
TARGET = device_target(DEVICE) if HAS_GPU else named_target("sm_90")

ALL = [i for op in registry.op_names() for i in registry.implementations(op)]
TRITON = [i for i in ALL if i.kind == "triton"]
FIXED = [i for i in ALL if i.kind != "compiled"]  # a compiled one takes seconds per problem
WORKLOADS = [
    Case(i, w.problem, "normal", label=w.name)
    for i in FIXED
    for w in i.op.workloads
    if i.why_not(w.problem, TARGET) is None
]


@pytest.mark.parametrize("case", list(cases(FIXED, TARGET, count=90, configs_each=30)), ids=str)
def test_conforms(case):
    verdict = judge(case, DEVICE)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("case", WORKLOADS, ids=str)
def test_workloads(case):
    verdict = judge(case, DEVICE)
    assert verdict.ok, verdict.reason


SEARCHED = [
    Case(c.implementation, c.problem, "normal", config, c.label)
    for c in WORKLOADS
    if next(iter(c.problem.tensors.values())).numel <= 2**22
    for config in configs(c.implementation, c.problem, TARGET, 4)
]


@pytest.mark.parametrize("case", SEARCHED, ids=str)
def test_configs_of_workloads(case):
    verdict = judge(case, DEVICE)
    assert verdict.ok, verdict.reason


COMPILED = list(cases([i for i in ALL if i.kind == "compiled"], TARGET, count=6, largest=257))


@pytest.mark.parametrize("case", COMPILED[::4], ids=str)
def test_compiled_references_conform(case):
    verdict = judge(case, DEVICE)
    assert verdict.ok, verdict.reason


def far_cases():
    sizes = {"rows": 40, "N": 256, "M": 72, "K": 256, "B": 1}
    sizes |= {"tokens": 40, "pairs": 64, "rest": 16, "heads": 3, "kv_heads": 2, "value": 8}
    for i in FIXED:
        axes = i.op.axis_names
        fit = fitted(i, {name: sizes[name] for name in axes}, "bfloat16", TARGET)
        for label, problem in layouts(i.op, i.op.sized(fit, "bfloat16"), far=True):
            if i.why_not(problem, TARGET) is None:
                yield Case(i, problem, "normal", label=label)


@pytest.mark.parametrize("case", list(far_cases()), ids=str)
def test_offsets_past_32_bits(case):
    verdict = judge(case, DEVICE)
    assert verdict.ok, verdict.reason


BREAK = {
    "add_layer_norm": ("squares / N", "squares / N / 2"),
    "add_layer_norm_backward": ("squares / N", "squares / N / 2"),
    "layer_norm": ("squares / N", "squares / N / 2"),
    "layer_norm_backward": ("squares / N", "squares / N / 2"),
    "rms_norm": ("/ N + eps", "/ BLOCK_N + eps"),
    "rms_norm_backward": ("/ N + eps", "/ BLOCK_N + eps"),
    "silu_and_mul": ("cols < N - start", "cols < N - 1 - start"),
    "silu_and_mul_backward": ("(1 + z * rest)", "(1 + z * side)"),
    "gelu": ("1.15110874e00", "1.16110874e00"),
    "gelu_backward": ("z * (0.398942280", "z * (0.378942280"),
    "gelu_and_mul": ("up_ptr = x_ptr + N", "up_ptr = x_ptr + N - 1"),
    "gelu_and_mul_backward": ("z * (0.398942280", "z * (0.378942280"),
    "relu2_and_mul": ("side * side if", "side if"),
    "relu2_and_mul_backward": ("return 2 * side", "return side"),
    **dict.fromkeys(
        (
            *("apply_rotary_pos_emb", "apply_rotary_pos_emb_backward"),
            *("partial_rotary_emb", "partial_rotary_emb_backward"),
        ),
        ("second * cos + first * sin", "second * cos - first * sin"),
    ),
    "matmul": ("acc = tl.zeros(", "acc = 1.0 + tl.zeros("),
    "matmul/padded": ("& (col < cols)", "& (col < cols - 1)"),
}


@pytest.mark.parametrize("implementation", TRITON, ids=lambda i: i.id)
def test_a_broken_kernel_is_rejected(implementation, tmp_path):
    names = implementation.op.axis_names
    known = {"rows": 37, "M": 140, "N": 1000, "K": 520, "B": 2}
    known |= {"tokens": 37, "pairs": 20, "rest": 9, "heads": 5, "kv_heads": 2, "value": 7}
    if implementation.id == "matmul/padded":
        known["K"] = 523  # which it is for
    sizes = {name: known[name] for name in names}
    problem = implementation.op.sized(fitted(implementation, sizes, "bfloat16", TARGET), "bfloat16")
    broken = mutated(
        implementation, *BREAK.get(implementation.id, BREAK[implementation.op.name]), tmp_path
    )
    assert judge(Case(implementation, problem, "normal"), DEVICE).ok
    assert not judge(Case(broken, problem, "normal"), DEVICE).ok


@pytest.mark.skipif(not can_overlap(TARGET), reason="needs programmatic dependent launch")
@pytest.mark.parametrize("sizes", [(2048, 16384), (32768, 1024), (1, 4096), (0, 4096)])
def test_a_launch_that_is_set_up_early_reads_what_the_one_before_wrote(sizes):
    """The same bits as one launch after the other, call behind call and in a graph. Two sets of
    values take turns, so that shares of the last call, in memory used again, would show."""
    persistent = registry.implementation("rms_norm_backward", "persistent")
    problem = persistent.op.sized(dict(zip(("rows", "N"), sizes, strict=True)), "bfloat16")
    early = persistent.config(None, problem, TARGET).knobs
    assert early["OVERLAP"]
    late = {**early, "OVERLAP": False}
    generator = torch.Generator(DEVICE).manual_seed(0)
    sets = [persistent.op.inputs(problem, generator, "normal") for _ in range(2)]
    expected = [persistent(*values, config=late) for values in sets]
    outputs = [persistent(*sets[n % 2], config=early) for n in range(20)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = [persistent(*sets[n % 2], config=early) for n in range(4)]
    graph.replay()
    for made in (outputs, captured):
        for n, out in enumerate(made):
            assert all(map(torch.equal, out, expected[n % 2])), n
