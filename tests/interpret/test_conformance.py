"""Every Triton implementation against its op's contract, in the interpreter (float16 and float32:
it rounds bfloat16 stores towards zero and multiplies bfloat16 tiles wrongly)."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gristmill.core import registry
from gristmill.core.target import named_target
from gristmill.testing import Case, cases, judge, mutated
from gristmill.testing.cases import SIZES, fitted, layouts

# The interpreter's own: numpy deprecations, and inf - inf where the values ask for it.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

TARGET = named_target("sm_90")
DTYPES = (torch.float16, torch.float32)
TRITON = [
    i for op in registry.op_names() for i in registry.implementations(op) if i.kind == "triton"
]
CASES = list(cases(TRITON, TARGET, count=20, largest=257, dtypes=DTYPES, configs_each=3))


def by_id(implementation):
    return implementation.id


def test_every_op_has_triton_cases():
    assert {c.implementation.id for c in CASES} == {i.id for i in TRITON}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conforms(case):
    verdict = judge(case, "cpu", TARGET)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("implementation", TRITON, ids=by_id)
def test_conforms_at_any_size(implementation):
    op = implementation.op
    names = [axis.name for axis in op.axes(op.workloads[0].problem)]

    @settings(
        max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(data=st.data())
    def run(data):
        sizes = {name: data.draw(st.sampled_from(SIZES[:-1]), name) for name in names}
        dtype = data.draw(st.sampled_from(["float16", "float32"]), "dtype")
        problem = op.sized(fitted(implementation, sizes, dtype, TARGET), dtype)
        choices = [("plain", problem), *layouts(op, problem)]
        label, problem = data.draw(st.sampled_from(choices), "layout")
        variant = data.draw(st.sampled_from(op.variants), "variant")
        if implementation.why_not(problem, TARGET) is None:
            verdict = judge(Case(implementation, problem, variant, label=label), "cpu", TARGET)
            assert verdict.ok, verdict.reason

    run()


# What is broken in the kernel's source, and the value variant that shows it.
MUTATIONS = {
    "rms_norm/row": [
        ("/ N + eps", "/ BLOCK_N + eps", "normal"),
        ("/ N + eps)", "/ N) + eps", "small"),
        ("mask = cols < N\n", "mask = cols < N - 1\n", "normal"),
    ],
    "rms_norm/multi_row": [
        ("/ N + eps", "/ BLOCK_N + eps", "normal"),
        ("/ N + eps)", "/ N) + eps", "small"),
        ("row < n_rows", "row < n_rows - 1", "normal"),
    ],
    "matmul/gemv": [
        ("K - start", "K - 1 - start", "normal"),  # the last product of each sum dropped
        ("a_ptr + start + ks", "a_ptr + start + ks // 2 * 2", "normal"),
        ("col_mask = cols < N", "col_mask = cols < N - 1", "normal"),
        ("b_ptr += batch *", "b_ptr += 0 * batch *", "normal"),
    ],
    "matmul/tiled": [
        ("last - start", "last - 1 - start", "normal"),
        ("=PRECISION)", "=PRECISION).to(tl.float16).to(tl.float32)", "normal"),
        ("m < M, n < N", "m < M - 1, n < N", "normal"),
        ("b_ptr += batch *", "b_ptr += 0 * batch *", "normal"),
        ("out_ptr += batch *", "out_ptr += 0 * batch *", "normal"),
    ],
    "matmul/split_k": [
        ("min(first + part_k, K)", "min(first + part_k, K - 1)", "normal"),
        ("=PRECISION)", "=PRECISION).to(tl.float16).to(tl.float32)", "normal"),
        ("range(SPLIT_K)", "range(SPLIT_K - 1)", "normal"),
        ("out_ptr + part", "out_ptr + 0 * part", "normal"),
    ],
    "matmul/persistent_tma": [
        ("range(tiles_k)", "range(tiles_k - 1)", "normal"),
        ('="tf32")', '="tf32").to(tl.float16).to(tl.float32)', "normal"),
        ("row, col = out_m * BLOCK_M,", "row, col = out_m * BLOCK_M + 1,", "normal"),
        ("(tile // tiles,", "(0 * tile,", "normal"),
        ("(stored // tiles,", "(0 * stored,", "normal"),
    ],
    "matmul/padded": [
        ("& (col < cols)", "& (col < cols - 1)", "normal"),
        ("block - one_blocks", "block - one_blocks + 1", "normal"),
        ("// blocks_across * BLOCK_ROWS", "// blocks_across * BLOCK_ROWS + 1", "normal"),
    ],
}
BROKEN = [
    pytest.param(i, *m, id=f"{i.id}-{n}") for i in TRITON for n, m in enumerate(MUTATIONS[i.id])
]


@pytest.mark.parametrize(("implementation", "old", "new", "variant"), BROKEN)
def test_a_broken_kernel_is_rejected(implementation, old, new, variant, tmp_path):
    names = [axis.name for axis in implementation.op.axes(implementation.op.workloads[0].problem)]
    known = {"rows": 37, "M": 72, "N": 136, "K": 296, "B": 2}
    if implementation.id == "matmul/padded":
        known["K"] = 299  # which it is for
    sizes = {name: known[name] for name in names}
    problem = implementation.op.sized(fitted(implementation, sizes, "float16", TARGET), "float16")
    broken = mutated(implementation, old, new, tmp_path)
    assert judge(Case(implementation, problem, variant), "cpu", TARGET).ok
    assert not judge(Case(broken, problem, variant), "cpu", TARGET).ok
