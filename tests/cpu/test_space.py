"""The space language, and the spaces and priors that the library's kernels declare."""

import itertools

import pytest

from gristmill.core import registry
from gristmill.core.config import Config
from gristmill.core.problem import Problem
from gristmill.core.space import Rejection, Space, choice, derive, flag, pow2, require, when
from gristmill.core.target import named_target
from gristmill.errors import InvalidConfigError, RegistrationError

TARGET = named_target("sm_90")
PROBLEM = Problem("nothing", ())
SPACE = Space(
    pow2("BLOCK", 16, 64),
    flag("SPLIT"),
    when(lambda c, p, t: c["SPLIT"], choice("PARTS", 2, 4)),
    derive("TOTAL", lambda c, p, t: c["BLOCK"] * c.get("PARTS", 1)),
    require("too many in total", lambda c, p, t: c["TOTAL"] <= 128),
)


def test_points_are_distinct_and_rejections_have_reasons():
    points = list(SPACE.points(PROBLEM, TARGET))
    assert SPACE.size == 12
    assert len(points) == 9
    assert SPACE.rejections(PROBLEM, TARGET) == {"too many in total": 1}
    configs = list(SPACE.valid(PROBLEM, TARGET))
    assert len(configs) == len(set(configs)) == 8
    assert all(("PARTS" in c) == c["SPLIT"] for c in configs)


def test_derived_values_ride_along_and_are_not_part_of_the_identity():
    config = SPACE.config({"BLOCK": 32, "SPLIT": True, "PARTS": 4}, PROBLEM, TARGET)
    assert config["TOTAL"] == 128
    assert config == Config({"BLOCK": 32, "SPLIT": True, "PARTS": 4})
    assert "TOTAL" not in config.key


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"BLOK": 16}, ["'BLOK'", "BLOCK", "Did you mean"]),
        ({"BLOCK": 16}, ["lacks", "'SPLIT'"]),
        ({"BLOCK": 48, "SPLIT": False}, ["48", "[16, 32, 64]"]),
        ({"BLOCK": 16, "SPLIT": 1}, ["'SPLIT'", "1"]),
        ({"BLOCK": 64, "SPLIT": True, "PARTS": 4}, ["too many in total", "config=None"]),
    ],
)
def test_bad_configs_are_refused_with_the_reason(values, words):
    with pytest.raises(InvalidConfigError) as caught:
        SPACE.config(values, PROBLEM, TARGET)
    for word in words:
        assert word in str(caught.value)


def test_a_name_is_declared_once():
    with pytest.raises(RegistrationError, match="twice"):
        Space(flag("A"), flag("A"))


def test_pow2_needs_powers_of_two():
    with pytest.raises(RegistrationError, match="powers of two"):
        pow2("A", 3, 8)


TRITON = [
    i for op in registry.op_names() for i in registry.implementations(op) if i.kind == "triton"
]
# A problem, and the least number of valid configs: 1,000 for a GEMM, 100 for what memory bounds.
REPRESENTATIVE = {
    "matmul/gemv": ("llama3-8b-o-m1", 100),
    "matmul": ("square-4096", 1000),
    "add_layer_norm": ("16384x4096", 100),
    "add_layer_norm_backward": ("8192x8192", 100),
    "layer_norm": ("16384x4096", 100),
    "layer_norm_backward": ("8192x8192", 100),
    "rms_norm": ("16384x4096", 100),
    "rms_norm_backward": ("2048x16384", 100),
    "silu_and_mul": ("8192x14336", 100),
    "silu_and_mul_backward": ("8192x14336", 100),
    "gelu": ("8192x14336", 50),  # one long row: tiles have no height
    "gelu_backward": ("8192x14336", 50),
    "gelu_and_mul": ("8192x14336", 100),
    "gelu_and_mul_backward": ("8192x14336", 100),
    "relu2_and_mul": ("8192x14336", 100),
    "relu2_and_mul_backward": ("8192x14336", 100),
    "apply_rotary_pos_emb": ("llama3-8b-4x4096", 100),
    "apply_rotary_pos_emb_backward": ("llama3-8b-4x4096", 100),
    "partial_rotary_emb": ("deepseek-v2-lite-2x2048", 100),
    "partial_rotary_emb_backward": ("deepseek-v2-lite-2x2048", 100),
}


@pytest.mark.parametrize("implementation", TRITON, ids=lambda i: i.id)
def test_spaces_are_large_enough_to_search(implementation):
    of_op = REPRESENTATIVE[implementation.op.name]
    name, least = REPRESENTATIVE.get(implementation.id, of_op)
    problem = implementation.op.workload(name).problem
    found = itertools.islice(implementation.space.valid(problem, TARGET), least)
    assert len(list(found)) == least


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("implementation", TRITON, ids=lambda i: i.id)
def test_every_prior_is_in_its_space(implementation, arch):
    target = named_target(arch)
    sizes = (0, 1, 2, 3, 15, 16, 17, 33, 64, 100, 129, 1000, 4096, 5000, 70_000)
    op = implementation.op
    names = op.axis_names
    problems = [w.problem for w in op.workloads]
    for dtype in ("bfloat16", "float32"):
        for shift in range(len(sizes)):
            for stride in (1, 4, 7):
                chosen = {n: sizes[(shift + i * stride) % len(sizes)] for i, n in enumerate(names)}
                problems.append(op.sized(chosen, dtype))
    for problem in problems:
        if implementation.why_not(problem, target) is None:
            assert isinstance(implementation.config(None, problem, target), Config)


def test_a_rejection_is_a_value():
    rejected = [p for p in SPACE.points(PROBLEM, TARGET) if isinstance(p, Rejection)]
    assert [r.reason for r in rejected] == ["too many in total"]
