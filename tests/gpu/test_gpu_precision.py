"""Products keep their bounds on a GPU whatever the process allows cuBLAS, also where it changes its
mind between two calls of one operator."""

from __future__ import annotations

import pytest
import torch

from gristmill.compile.bound import bind
from gristmill.core.registry import implementation, load
from gristmill.core.target import device_target
from gristmill.specs.matmul import problem_of
from gristmill.verify import compare, truth

C = torch._C
PLACE = ("cuda", "matmul")
OP = load("matmul")


def _reduced(kind, on):
    getattr(C, f"_set_cublas_allow_{kind}_reduced_precision_reduction")(on, True)


def _tf32_new(on):
    C._set_fp32_precision_setter(*PLACE, "tf32" if on else "none")


# dtype, the setting, what reads it
SETTINGS = {
    "tf32-legacy": (
        "float32",
        C._set_cublas_allow_tf32,
        lambda: C._get_fp32_precision_getter(*PLACE),
    ),
    "tf32-new": ("float32", _tf32_new, lambda: C._get_fp32_precision_getter(*PLACE)),
    "bf16-sums": (
        "bfloat16",
        lambda on: _reduced("bf16", on),
        C._get_cublas_allow_bf16_reduced_precision_reduction,
    ),
    "fp16-sums": (
        "float16",
        lambda on: _reduced("fp16", on),
        C._get_cublas_allow_fp16_reduced_precision_reduction,
    ),
    "fp16-accumulation": (
        "float16",
        C._set_cublas_allow_fp16_accumulation,
        C._get_cublas_allow_fp16_accumulation,
    ),
}


@pytest.fixture(autouse=True)
def defaults():
    yield
    C._set_float32_matmul_precision("highest")
    C._set_fp32_precision_setter(*PLACE, "none")
    C._set_fp32_precision_setter("mkldnn", "matmul", "none")
    C._set_cublas_allow_fp16_accumulation(False)
    for kind in ("bf16", "fp16"):
        _reduced(kind, True)


@pytest.mark.parametrize("name", ["aten", "inductor", "tiled"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_that_flips_between_calls_changes_nothing(cuda, name, setting):
    dtype, allow, read = SETTINGS[setting]
    problem = OP.sized({"M": 1023, "N": 1031, "K": 1000}, dtype)
    values = OP.inputs(problem, torch.Generator(cuda).manual_seed(0), "normal")
    references, magnitudes = truth(OP, values)
    impl = implementation("matmul", name)
    allow(False)
    bound = bind(impl, impl.config(None, problem, device_target(cuda)), values)
    for on in (False, True, False, True):
        allow(on)
        before = read()
        out = bound(*values)
        assert read() == before
        verdict = compare((out,), references, magnitudes, OP.bounds(problem))
        assert verdict.ok, (on, verdict.reason)


def test_the_settings_matter_here(cuda):
    """Plain torch under TF32 leaves the bounds: the test above can fail."""
    problem = OP.sized({"M": 512, "N": 512, "K": 1024}, "float32")
    a, b, _ = OP.inputs(problem, torch.Generator(cuda).manual_seed(0), "normal")
    references, magnitudes = truth(OP, (a, b))
    C._set_fp32_precision_setter(*PLACE, "tf32")
    assert not compare((a @ b,), references, magnitudes, OP.bounds(problem)).ok


@pytest.mark.parametrize("name", ["aten", "tiled"])
def test_tf32_is_used_where_it_is_asked_for_and_allowed(cuda, name):
    """Within its own bounds, and outside those of IEEE products."""
    problem = problem_of(512, 512, 1024, "float32", tf32=True)
    impl = implementation("matmul", name)
    values = OP.inputs(problem, torch.Generator(cuda).manual_seed(0), "normal")
    references, magnitudes = truth(OP, values)
    C._set_fp32_precision_setter(*PLACE, "tf32")
    out = impl(*values)
    assert compare((out,), references, magnitudes, OP.bounds(problem)).ok
    plain = OP.bounds(problem_of(512, 512, 1024, "float32"))
    assert not compare((out,), references, magnitudes, plain).ok
