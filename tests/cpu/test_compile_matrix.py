"""Every Triton implementation compiles for every architecture without one, within register and
spill budgets."""

import pytest

from compiling import compiled
from gristmill.core import registry
from gristmill.core.target import named_target
from gristmill.testing import configs
from gristmill.testing.cases import layouts

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
TARGETS = [named_target(arch) for arch in ARCHITECTURES]
RUNS_ON = named_target("sm_90")
MAX_REGISTERS = {"cuda": 255, "hip": 512}
SEARCHED_SPILL_BYTES = (
    512  # a random point of a space may spill a little; it loses the race, and is no failure
)

TRITON = [
    i for op in registry.op_names() for i in registry.implementations(op) if i.kind == "triton"
]


def supported(names=None):
    for arch, target in zip(ARCHITECTURES, TARGETS, strict=True):
        for i in TRITON:
            for w in i.op.workloads:
                if i.why_not(w.problem, target) is None and (names is None or w.name in names):
                    yield pytest.param(i, w.problem, target, id=f"{arch}-{i.id}-{w.name}")


@pytest.mark.parametrize(("implementation", "problem", "target"), list(supported()))
def test_priors_fit_in_registers(implementation, problem, target):
    for binary in compiled(implementation, problem, target):
        assert binary.spills == 0
        assert binary.registers is not None
        assert binary.registers <= MAX_REGISTERS[target.vendor]
        assert binary.shared_bytes <= target.shared_memory_bytes


SOME = (
    "square-4096",
    "square-4096-tf32",
    "llama3-8b-qkv-m64",
    "llama3-8b-o-m1",
    "square-1024-fp32",
    "odd-1023x1000x1031",
    "heads-32x128x4096x128",
    "8192x8192",
    "qk-norm-64x40x128",
)


@pytest.mark.parametrize(("implementation", "problem", "target"), list(supported(SOME)))
def test_points_of_the_space_compile(implementation, problem, target):
    """Three where kernels run; on each other architecture one, and another one than elsewhere."""
    few = (3, 0) if target == RUNS_ON else (1, 1 + TARGETS.index(target))
    for config in configs(implementation, problem, target, *few):
        for binary in compiled(implementation, problem, target, config):
            assert binary.spills <= SEARCHED_SPILL_BYTES, config
            assert binary.shared_bytes <= target.shared_memory_bytes, config


@pytest.mark.parametrize("implementation", TRITON, ids=lambda i: i.id)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_layout_compiles(implementation, dtype):
    target = named_target("sm_90")
    base = implementation.op.sized({"rows": 64, "N": 1000, "M": 200, "K": 264}, dtype)
    for label, problem in layouts(implementation.op, base):
        if implementation.why_not(problem, target) is None:
            for binary in compiled(implementation, problem, target):
                assert binary.spills == 0, label
