"""Operators as kernels and expressions: what a row says is what the launcher does, for every size
that its conditions hold for."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import triton

from gristmill import aot
from gristmill.aot import expressions, op_plans
from gristmill.aot.functions import Condition
from gristmill.aot.op_forms import arguments_of
from gristmill.aot.row_choice import holds, value
from gristmill.aot.symbolic import Tracer, dynamic_dims, sizes_of
from gristmill.cache.packs import KeptPlan, Pack
from gristmill.core.plan import Candidate, Measurement, Outcome, Plan
from gristmill.core.problem import Problem
from gristmill.core.provenance import provenance
from gristmill.core.registry import implementation, load
from gristmill.core.target import named_target
from gristmill.errors import ArtifactError, InvalidInputError, UnsupportedProblemError
from gristmill.specs import matmul, rms_norm, rms_norm_backward, silu_and_mul

TARGET = named_target("sm_90")


def with_strides(problem, name, strides):
    spec = dataclasses.replace(problem[name], strides=strides)
    return Problem(problem.op, tuple((n, spec if n == name else v) for n, v in problem.args))


CASES = {
    "rms_norm": (
        [rms_norm.problem_of((m, 4096)) for m in (16, 512)] + [rms_norm.problem_of((4, 40, 128))],
        [rms_norm.problem_of((m, 4096)) for m in (0, 1, 2, 17, 513, 70_000)]
        + [rms_norm.problem_of(s) for s in ((1, 1, 128), (1, 7, 128), (9, 1, 128), (3, 5, 128))]
        + [with_strides(rms_norm.problem_of((33, 4096)), "x", (9000, 1))]
        + [with_strides(rms_norm.problem_of((3, 5, 128)), "x", (7 * 128, 128, 1))]
        + [rms_norm.problem_of((2, 4096), eps=3e-5)],
    ),
    "silu_and_mul": (
        [silu_and_mul.problem_of((m, 1537), packed=p) for m in (16, 4096) for p in (True, False)],
        [
            silu_and_mul.problem_of((m, 1537), packed=p)
            for m, p in itertools.product((0, 1, 3, 4095, 10_000), (True, False))
        ]
        + [with_strides(silu_and_mul.problem_of((5, 1537)), "x", (4000, 1))],
    ),
    "rms_norm_backward": (
        [rms_norm_backward.problem_of((m, 1024)) for m in (64, 8192)],
        [rms_norm_backward.problem_of((m, 1024)) for m in (1, 63, 4000, 9000)],
    ),
    "matmul": (
        [matmul.problem_of(m, 4096, 512) for m in (1, 16, 512)],
        [matmul.problem_of(m, 4096, 512) for m in (0, 1, 2, 33, 1000)],
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """An operator's problems, and what was made of them."""
    made, met = CASES[request.param]
    return load(request.param), met, aot.op_kernels(request.param, "sm_90", problems=made)


def row_for(function, op, problem):
    """The row of a problem, with the numbers of its names."""
    arguments = arguments_of(op, problem)
    (form,) = (f for f in function.forms if f.arguments == arguments)
    sizes = sizes_of(problem.tensors)
    return form, aot.row_of(form, "sm_90", sizes), sizes


def meant(passed, names, problem):
    """What a row passes, as a launcher's argument: tensors by their names."""
    sizes, floats = names, dict(problem.args)
    if passed.kind == "tensor":
        return passed.source
    if passed.kind == "descriptor":
        parts = (tuple(value(e, sizes) for e in part) for part in (passed.sizes, passed.strides))
        return passed.source, *parts
    if passed.kind == "integer":
        return value(passed.source, sizes)
    return floats[passed.source] if passed.kind == "scalar" else passed.value


def launched(arg, tensors):
    """A launcher's argument in the same words."""
    if isinstance(arg, torch.Tensor):
        return next(name for name, tensor in tensors if tensor is arg)
    if hasattr(arg, "block"):
        return launched(arg.tensor, tensors), tuple(arg.shape), tuple(arg.strides)
    return arg


def test_a_row_says_what_the_launcher_does(case):
    op, problems, made = case
    for problem in problems:
        form, row, sizes = row_for(made.function, op, problem)
        impl = implementation(op.name, row.implementation)
        values = problem.meta()
        config = impl.config(row.config, relevant(op, problem, row), TARGET)
        outputs, workspace = impl.allocate(values, config)
        tensors = [*zip(op.names, values, strict=True)]
        tensors += zip(op.output_names, outputs, strict=True)
        tensors += ((f"workspace_{i}", t) for i, t in enumerate(workspace))
        for said, tensor in zip(
            (*form.outputs, *row.workspace), (*outputs, *workspace), strict=True
        ):
            assert tuple(value(e, sizes) for e in said.sizes) == tuple(tensor.shape)
            assert tuple(value(e, sizes) for e in said.strides) == tuple(tensor.stride())
        launches = impl.launches(values, outputs, workspace, config)
        for said, launch in zip(row.launches, launches, strict=True):
            names = [k for k in made.kernels if k.name == said.kernel]
            assert [k.fn for k in names] == [launch.kernel]
            passed = [meant(p, sizes, problem) for p in said.arguments]
            count = len(launch.args)
            assert passed[:count] == [launched(a, tensors) for a in launch.args], (problem, row)
            constexprs = list(launch.constexprs.values())
            assert [v for v in passed[count:] if v in constexprs] == passed[count:]
            assert tuple(value(e, sizes) for e in said.grid)[: len(launch.grid)] == launch.grid
            assert said.num_warps == launch.options["num_warps"]


def relevant(op, problem, row):
    """A problem that the row's config is valid for: its constraints bound the search by the number
    of tokens, and what is derived from them does not."""
    impl = implementation(op.name, row.implementation)
    for candidate in (problem, *CASES[op.name][0]):
        try:
            impl.config(row.config, candidate, TARGET)
        except ValueError:
            continue
        if impl.why_not(candidate, TARGET) is None:
            return candidate
    raise AssertionError(row)


def test_every_launch_names_a_kernel_that_takes_it(case):
    _, _, made = case
    known = {kernel.name: kernel for kernel in made.kernels}
    assert len(known) == len(made.kernels)
    launches = [
        (row, launch)
        for f in made.function.forms
        for r in [f.rows]
        for row in r
        for launch in row.launches
    ]
    assert launches
    for _, launch in launches:
        fn = known[launch.kernel].fn
        options = {"num_warps", "num_stages"} & {p.name for p in fn.params}
        assert len(launch.arguments) == len(fn.params) - len(options)


def test_sizes_that_plans_leave_open_are_the_tokens():
    assert dynamic_dims(rms_norm.OP, rms_norm.problem_of((8, 40, 128))).keys() == {"x", "weight"}
    dims = dynamic_dims(rms_norm.OP, rms_norm.problem_of((8, 40, 128)))
    assert sorted(dims["x"]) == [0, 1]
    assert dims["weight"] == {}
    dims = dynamic_dims(matmul.OP, matmul.problem_of(64, 512, 256))
    assert sorted(dims["a"]) == [0]
    assert dims["b"] == {}
    two = dynamic_dims(silu_and_mul.OP, silu_and_mul.problem_of((8, 512), packed=False))
    assert two["x"] == two["up"]  # one name: the contract makes them equal


def test_of_two_choices_the_row_goes_by_the_size():
    plans = pack(rms_norm, "rms_norm", {16: {"num_warps": 2}, 4096: {"num_warps": 16}})
    made = aot.op_kernels(
        "rms_norm",
        "sm_90",
        problems=[rms_norm.problem_of((m, 4096)) for m in (16, 4096)],
        plans=plans,
    )
    chosen = {
        m: row_for(made.function, rms_norm.OP, rms_norm.problem_of((m, 4096)))[1].config[
            "num_warps"
        ]
        for m in (2, 16, 17, 4096, 100_000)
    }
    assert chosen == {2: 2, 16: 2, 17: 16, 4096: 16, 100_000: 16}
    assert made.notes == ()


def pack(spec, op, configs, implementation_="row", measurements=()):
    """Plans for rows of 4,096 values, by the number of rows."""
    impl = implementation(op, implementation_)
    base = {"CHUNKS": 1, "EVICT": "", "STREAM": "", "PERSISTENT": False}
    kept = []
    for m, config in configs.items():
        problem = spec.problem_of((m, 4096))
        bucket = spec.OP.bucket(problem)
        plan = Plan(
            op,
            Candidate(
                implementation_,
                impl.config({**base, **config}, problem, TARGET)
                if config
                else impl.config(None, problem, TARGET),
            ),
            bucket.key,
            TARGET.key,
            "graph",
            "tuned",
            source_hash=impl.source_hash,
        )
        kept.append(KeptPlan(plan, bucket.family(spec.OP.axes(problem)), dict(bucket.axes), 0.0))
    return Pack(tuple(kept), tuple(measurements))


def test_a_plan_that_is_no_kernel_gives_the_best_kernel_measured():
    problem = rms_norm.problem_of((512, 4096))
    impl = implementation("rms_norm", "row")
    config = impl.config(None, problem, TARGET)
    rows = []
    for warps, time_us in ((4, 9.0), (8, 7.0), (16, 8.0)):
        knobs = {**config.knobs, "num_warps": warps}
        rows.append(
            Measurement(
                "rms_norm",
                Candidate("row", impl.config(knobs, problem, TARGET)),
                impl.source_hash,
                rms_norm.OP.bucket(problem).key,
                TARGET.key,
                str(problem),
                Outcome("ok", device_us=time_us, graph_us=time_us),
                provenance(),
            )
        )
    plans = pack(rms_norm, "rms_norm", {512: {}}, "aten", rows)
    made = aot.op_kernels("rms_norm", "sm_90", problems=[problem], plans=plans)
    row = row_for(made.function, rms_norm.OP, problem)[1]
    assert row.implementation == "row"
    assert row.config["num_warps"] == 8
    assert "aten, is no Triton kernel" in row.reason
    assert len(made.notes) == 1


def test_a_launcher_that_cannot_be_followed_gets_a_row_of_its_sizes(monkeypatch):
    def refuses(op, problem, target, chosen, dynamic):
        if any(dynamic.values()):
            raise TypeError("it asked for a number")
        return traced(op, problem, target, chosen, dynamic)

    traced = op_plans.trace
    monkeypatch.setattr(op_plans, "trace", refuses)
    problem = rms_norm.problem_of((512, 4096))
    made = aot.op_kernels("rms_norm", "sm_90", problems=[problem])
    assert row_for(made.function, rms_norm.OP, problem)[1] is not None
    assert row_for(made.function, rms_norm.OP, rms_norm.problem_of((511, 4096)))[1] is None
    assert "for these sizes alone: it asked for a number" in made.notes[0]


def test_what_no_kernel_computes_is_refused_with_the_reasons():
    wide = rms_norm.problem_of((4, 1 << 21))
    with pytest.raises(UnsupportedProblemError, match="wider than"):
        aot.op_kernels("rms_norm", "sm_90", problems=[wide])
    with pytest.raises(InvalidInputError, match="sm_86"):
        aot.op_kernels("rms_norm", "sm_86")


def test_numbers_that_conditions_keep_within_32_bits_are_compiled_for_no_others():
    """A kernel with descriptors does not compile for 64-bit sizes."""
    made = aot.op_kernels("matmul", "sm_90", problems=[matmul.problem_of(512, 4096, 512)])
    (tma, *_) = (k for k in made.kernels if k.name.startswith("matmul_fwd_persistent_tma"))
    assert tma.given["M"] == aot.Int(widths=[32])
    made = aot.op_kernels("rms_norm", "sm_90", problems=[rms_norm.problem_of((64, 512))])
    strided = [k for k in made.kernels if k.given["stride_0"] == aot.Int()]
    assert strided
    assert all(k.given["n_rows"] == aot.Int(widths=[32]) for k in strided)


def test_alignment_is_a_condition_where_a_launcher_asks_for_it():
    problem = matmul.problem_of(512, 4096, 512)
    made = aot.op_kernels("matmul", "sm_90", problems=[problem])
    _, row, sizes = row_for(made.function, matmul.OP, problem)
    assert row.implementation == "persistent_tma"
    off = {**sizes, "a_address": 2}
    assert any(not holds(c, off) for c in row.conditions)


@pytest.mark.parametrize(
    "of",
    [
        lambda a, b: a * b + 2,
        lambda a, b: (a - 1) // 16 + 1,  # rounded down where `a` is 0, as in Python
        lambda a, b: a % 5 - b,
        lambda a, b: 20 - a,
        lambda a, b: 2 * torch.sym_max(a, b) - torch.sym_min(a, 4),
        lambda a, b: a * a * a - 3 * b,
        lambda a, b: -((-a) // 64) * b,
    ],
)
def test_expressions_are_read_as_they_are_written(of):
    tracer = Tracer()
    said = tracer.text(of(tracer.symbol("a", 7), tracer.symbol("b", 3)))
    for a, b in itertools.product((0, 1, 3, 16, 1000), repeat=2):
        assert value(said, {"a": a, "b": b}) == of(a, b)


@pytest.mark.parametrize("text", ["a ** 2", "f(a, 1)", "a //", "a // 0", "b", "a.b", "1.5"])
def test_an_expression_that_is_damaged_is_refused(text):
    with pytest.raises(ArtifactError, match="has no value"):
        value(text, {"a": 3})


def test_a_question_that_no_comparison_asks_is_refused():
    import sympy

    a = sympy.Symbol("a")
    names = {a: "a"}
    with pytest.raises(expressions.UntraceableError):
        expressions.conditions(sympy.Or(sympy.Eq(a, 1), sympy.Eq(a, 2)), names)
    with pytest.raises(expressions.UntraceableError):
        expressions.text(sympy.sin(a), names)
    assert expressions.conditions(sympy.Gt(a, 3), names) == [Condition("3", "<", "a")]


@pytest.mark.parametrize(
    ("problems", "words"),
    [
        ({"rmsnorm": []}, ["'rmsnorm'", "Did you mean 'rms_norm'"]),
        ({"rms_norm": [(64, 4096)]}, ["[(64, 4096)]", "problem_of"]),
        ([1], ["list", "mapping"]),
    ],
)
def test_problems_that_are_none_are_refused(problems, words, tmp_path):
    with pytest.raises(InvalidInputError) as caught:
        aot.build_ops(tmp_path / "out", "rms_norm", "sm_90", problems=problems)
    for word in words:
        assert word in str(caught.value)


def test_kernels_that_are_no_specifications_are_refused(tmp_path):
    import aot_kernels

    kernel = next(v for v in vars(aot_kernels).values() if isinstance(v, triton.JITFunction))
    for given in (kernel, [kernel], "text"):
        with pytest.raises(InvalidInputError, match=r"aot.Kernel"):
            aot.build(tmp_path / "out", given, ["sm_90"])
    with pytest.raises(InvalidInputError, match="h100 is sm_90"):
        aot.Kernel(kernel).build(tmp_path / "out", targets="h100")
    with pytest.raises(InvalidInputError, match="`targets` is 90"):
        aot.build(tmp_path / "out", [], 90)
