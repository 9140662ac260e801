"""Every Triton implementation against its op's contract, in the interpreter (float16 and float32:
it rounds bfloat16 stores towards zero and multiplies bfloat16 tiles wrongly)."""

import functools
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gristmill.core import registry
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.target import named_target
from gristmill.testing import Case, cases, judge, mutated
from gristmill.testing.cases import LARGEST_BATCH, SIZES, fitted, layouts

# The interpreter's own: numpy deprecations, and inf - inf where the values ask for it.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

TARGET = named_target("sm_90")
FEW = replace(TARGET, num_sms=2)  # persistent programs meet a second tile at these sizes
DTYPES = (torch.float16, torch.float32)
TRITON = [
    i for op in registry.op_names() for i in registry.implementations(op) if i.kind == "triton"
]
ALL_CASES = list(cases(TRITON, FEW, count=20, largest=257, dtypes=DTYPES, configs_each=3))
OF_HEADS = {i.id for i in TRITON if "tokens" in i.op.axis_names}
# Ops on heads have five tensors or more, each in every layout, and several programs a token: every
# tenth case; all of them run on the GPU.
CASES = [c for n, c in enumerate(ALL_CASES) if c.implementation.id not in OF_HEADS or n % 10 == 0]


def by_id(implementation):
    return implementation.id


def test_every_op_has_triton_cases():
    assert {c.implementation.id for c in CASES} == {i.id for i in TRITON}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conforms(case):
    verdict = judge(case, "cpu", FEW)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("implementation", TRITON, ids=by_id)
def test_conforms_at_any_size(implementation):
    op = implementation.op
    names = op.axis_names

    @settings(
        max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(data=st.data())
    def run(data):
        small = [size for size in SIZES if size <= LARGEST_BATCH]  # heads, a batch
        limits = {"tokens": SIZES[:10], **dict.fromkeys(names[3:], small)}
        sizes = {
            name: data.draw(st.sampled_from(limits.get(name, SIZES[:-1])), name) for name in names
        }
        dtype = data.draw(st.sampled_from(["float16", "float32"]), "dtype")
        problem = op.sized(fitted(implementation, sizes, dtype, TARGET), dtype)
        choices = [("plain", problem), *layouts(op, problem)]
        label, problem = data.draw(st.sampled_from(choices), "layout")
        variant = data.draw(st.sampled_from(op.variants), "variant")
        if implementation.why_not(problem, TARGET) is None:
            verdict = judge(Case(implementation, problem, variant, label=label), "cpu", TARGET)
            assert verdict.ok, verdict.reason

    run()


LEADING = {  # strides of (4, 3, 2, N) rows, in rows: how many dimensions are left to walk
    "two": (1, 8, 4),
    "three": (2, 8, 1),
}
ON_ROWS = [i for i in TRITON if i.op.axes(i.op.workloads[0].problem)[0].name == "rows"]


def rows_of_several_dimensions(op, kind):
    """`x` has its leading dimensions swapped, every other tensor is dense."""
    base = op.sized({"rows": 24, "N": 40}, "float32")
    args = dict(base.args)
    for name, spec in base.tensors.items():
        if spec.shape[0] == 24:
            args[name] = TensorSpec.contiguous((4, 3, 2, spec.shape[1]), spec.dtype)
    steps = tuple(base["x"].shape[1] * step for step in LEADING[kind])
    args["x"] = replace(args["x"], strides=(*steps, 1))
    return Problem(base.op, tuple(args.items()))


WALKED = [
    (i, kind)
    for i in ON_ROWS
    for kind in LEADING
    if i.why_not(rows_of_several_dimensions(i.op, kind), FEW) is None
]


def test_rows_of_several_dimensions_are_walked_by_all_that_read_two_tensors():
    alone = {i.id for i, _ in WALKED}
    assert {i.id for i in ON_ROWS} - alone == {
        "add_layer_norm_backward/persistent",
    }


@pytest.mark.parametrize(("implementation", "kind"), WALKED, ids=lambda v: getattr(v, "id", v))
def test_rows_of_several_dimensions(implementation, kind):
    problem = rows_of_several_dimensions(implementation.op, kind)
    verdict = judge(Case(implementation, problem, "normal"), "cpu", FEW)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("name", ["persistent", "strips"])
def test_rows_past_the_end_add_nothing_to_a_weights_gradient(name, tmp_path):
    """Without an eps, such a row has an infinite reciprocal root, and its zeros would be NaN."""
    implementation = registry.implementation("rms_norm_backward", name)
    base = implementation.op.sized({"rows": 3, "N": 40}, "float32")
    problem = Problem(base.op, tuple({**dict(base.args), "eps": 0.0}.items()))
    assert implementation.config(None, problem, FEW)["BLOCK_M"] == 4
    assert judge(Case(implementation, problem, "normal"), "cpu", FEW).ok
    root = "tl.rsqrt(squares / N + eps)"
    broken = mutated(implementation, f"tl.where(row_mask, {root}, 0.0)", root, tmp_path)
    assert not judge(Case(broken, problem, "normal"), "cpu", FEW).ok


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
    "rms_norm_backward/persistent": [
        ("/ N + eps", "/ BLOCK_N + eps", "normal"),
        ("/ N + eps)", "/ N) + eps", "small"),
        ("row < n_rows", "row < n_rows - 1", "normal"),
        ("dw += terms", "dw = terms", "normal"),  # the last tile's share alone
        ("partial_ptr + first * share", "partial_ptr", "normal"),
        ("mean = rstd * (products / N)", "mean = rstd * (products / BLOCK_N)", "normal"),
        ("tl.sum(dw, axis=0)", "tl.sum(dw.to(tl.float16), axis=0).to(tl.float32)", "normal"),
    ],
    "rms_norm_backward/strips": [
        ("/ N + eps", "/ BLOCK_N + eps", "normal"),
        ("/ N + eps)", "/ N) + eps", "small"),
        ("dw += g * normed", "dw = g * normed", "normal"),
        ("(part + 1) * span", "(part + 1) * span - BLOCK_N", "normal"),
        ("partial_ptr + group * N", "partial_ptr", "normal"),
        ("sums += tl.cast(n_rows, tl.int64) * PARTS", "sums += PARTS", "normal"),
    ],
    "layer_norm/rows": [
        ("squares / N", "squares / (N + 1)", "normal"),
        ("slip * slip, 0.0) + eps)", "slip * slip, 0.0)) + eps", "small"),
        ("tl.sum(x, axis=1) / N", "tl.sum(0 * x, axis=1) / N", "offset"),  # squares that cancel
        ("row < n_rows", "row < n_rows - 1", "normal"),
        (
            "mask = row_mask[:, None] & (cols < N)",
            "mask = row_mask[:, None] & (cols < N - 1)",
            "normal",
        ),
    ],
    "layer_norm_backward/persistent": [
        ("squares / N", "squares / (N + 1)", "normal"),
        ("slip * slip, 0.0) + eps)", "slip * slip, 0.0)) + eps", "small"),
        ("row < n_rows", "row < n_rows - 1", "normal"),
        ("dw += g * normed", "dw = g * normed", "normal"),  # the last tile's share alone
        ("db += g", "db = g", "normal"),
        ("total = totals / N", "total = 0 * totals", "normal"),
        ("products / N", "products / BLOCK_N", "normal"),
        ("partial_ptr + first *", "partial_ptr + 0 * first *", "normal"),
        ("cols - stride // 2", "cols - stride // 2 + 1", "normal"),
    ],
    "add_layer_norm/rows": [
        ("squares / N", "squares / (N + 1)", "normal"),
        ("x.to(tl.float32) + r.to(tl.float32)", "x.to(tl.float32)", "normal"),
        ("(x.to(tl.float32) + r.to(tl.float32))", "x", "normal"),
        ("tl.store(sum_ptr, x,", "tl.store(sum_ptr, r,", "normal"),
        ("r_ptr += offset_in", "r_ptr += 0 * offset_in", "normal"),
    ],
    "add_layer_norm_backward/persistent": [
        ("squares / N", "squares / (N + 1)", "normal"),
        ("dx += h", "dx += 0 * h", "normal"),
        ("(stride_h, 0, 0)", "(0 * stride_h, 0, 0)", "normal"),
        ("row < n_rows", "row < n_rows - 1", "normal"),
        ("db += g", "db = g", "normal"),
    ],
    "silu_and_mul/tiles": [
        ("up_ptr = x_ptr + N", "up_ptr = x_ptr + N - 1", "normal"),
        ("cols < N - start", "cols < N - 1 - start", "normal"),
        ("z * side", "z * side.to(tl.float16).to(tl.float32)", "normal"),
    ],
    "silu_and_mul_backward/tiles": [
        (
            "up_ptr, dup_ptr, at_out = x_ptr + N,",
            "up_ptr, dup_ptr, at_out = x_ptr + N - 1,",
            "normal",
        ),
        ("cols < N - start", "cols < N - 1 - start", "normal"),
        ("(1 + z * rest)", "(1 + z * side)", "normal"),
        ("z * side\n", "(z * side).to(tl.float16).to(tl.float32)\n", "normal"),
    ],
    "gelu/tiles": [
        ("1.15110874e00", "1.15210874e00", "normal"),  # of the tail
        ("cols < N - start", "cols < N - 1 - start", "normal"),
        ("1.0 - tail, tail", "1.0 - tail, 0 * tail", "normal"),
    ],
    "gelu_backward/tiles": [
        ("z * (0.398942280", "z * (0.388942280", "normal"),
        ("-0.721347520", "-0.711347520", "normal"),
        ("y = grad * slope", "y = slope", "normal"),
    ],
    "gelu_and_mul/tiles": [
        ("up_ptr = x_ptr + N", "up_ptr = x_ptr + N - 1", "normal"),
        ("1.15110874e00", "1.15210874e00", "normal"),
    ],
    "gelu_and_mul_backward/tiles": [
        ("grad * up * slope", "grad * slope", "normal"),
        ("side + z * (0.398942280", "side + (0.398942280", "normal"),
    ],
    "relu2_and_mul/tiles": [
        ("side * side if", "side if", "normal"),
        ("tl.maximum(z, 0.0", "tl.maximum(z, 0.1", "normal"),
    ],
    "relu2_and_mul_backward/tiles": [
        ("return 2 * side", "return side", "normal"),
        ("side * side if", "side if", "normal"),
    ],
    "apply_rotary_pos_emb/heads": [
        ("second * cos + first * sin", "second * cos - first * sin", "normal"),
        ("pair < PAIRS", "pair < PAIRS - 1", "normal"),
        ("head < n_heads", "head < n_heads - 1", "normal"),
        ("at + 2 * PAIRS, mask, REST", "at + PAIRS, mask, REST", "normal"),
    ],
    "apply_rotary_pos_emb_backward/heads": [
        ("if INVERSE:", "if not INVERSE:", "normal"),
        ("position = (token % length)", "position = (token // length)", "normal"),
        ("token < n_tokens", "token < n_tokens - 1", "normal"),
    ],
    "partial_rotary_emb/tiles": [
        ("second * cos + first * sin", "second * cos - first * sin", "normal"),
        ("(row + n_heads) * WIDTH", "row * WIDTH", "normal"),
        ("if VALUE < WIDTH:", "if VALUE > WIDTH:", "normal"),
        ("head < n_heads", "head < n_heads - 1", "normal"),
        ("load_columns(kv + NOPE", "load_columns(kv", "normal"),
    ],
    "partial_rotary_emb_backward/tokens": [
        ("if INVERSE:", "if not INVERSE:", "normal"),
        ("first_sum += tl.sum(", "first_sum = tl.sum(", "normal"),
        ("turn(first_sum, second_sum", "turn(first_sum.to(tl.float16), second_sum", "normal"),
        ("value = key + stride_v2", "value = key", "normal"),
    ],
    "matmul/gemv": [
        ("K - start", "K - 1 - start", "normal"),  # the last product of each sum dropped
        ("a_ptr + ks", "a_ptr + ks // 2 * 2", "normal"),
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


@functools.cache  # all mutations of a kernel are held against the same whole one
def conforms(case):
    return judge(case, "cpu", FEW).ok


@pytest.mark.parametrize(("implementation", "old", "new", "variant"), BROKEN)
def test_a_broken_kernel_is_rejected(implementation, old, new, variant, tmp_path):
    names = implementation.op.axis_names
    known = {"rows": 137, "M": 72, "N": 136, "K": 296, "B": 2}
    known |= {"tokens": 22, "pairs": 20, "rest": 9, "heads": 5, "kv_heads": 2, "value": 7}
    # What it is for: rows off 16 bytes; tiles that are fewer than processors.
    known.update(
        {"matmul/padded": {"K": 299}, "matmul/split_k": {"M": 40, "N": 40}}.get(
            implementation.id, {}
        )
    )
    sizes = {name: known[name] for name in names}
    problem = implementation.op.sized(fitted(implementation, sizes, "float16", FEW), "float16")
    broken = mutated(implementation, old, new, tmp_path)
    assert conforms(Case(implementation, problem, variant))
    assert not judge(Case(broken, problem, variant), "cpu", FEW).ok
