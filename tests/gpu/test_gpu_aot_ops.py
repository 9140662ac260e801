"""Operators and traces ahead of time, on a device: rows of an artifact launched as they say give
the implementation's own results, bit for bit; what a program launched is what its artifact runs."""

from __future__ import annotations

import pytest
import torch

import aot_c_cases as cases
from aot_cases import example
from gristmill import aot
from gristmill.aot.op_forms import arguments_of
from gristmill.aot.row_choice import value
from gristmill.aot.symbolic import address_name, size_name, stride_name
from gristmill.core.registry import implementation, load
from gristmill.core.target import device_target
from gristmill.specs import matmul, rms_norm, rms_norm_backward, silu_and_mul

pytestmark = [
    pytest.mark.skipif(not cases.HAS["gcc"], reason="needs gcc"),
    pytest.mark.skipif(torch.version.hip is not None, reason="these binaries are NVIDIA's"),
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="plans are made for sm_90",
    ),
]
BUILT = {
    "rms_norm": [rms_norm.problem_of((m, 4096)) for m in (16, 2048)],
    "silu_and_mul": [
        silu_and_mul.problem_of((m, 4097), packed=p) for m in (16, 512) for p in (0, 1)
    ],
    "rms_norm_backward": [rms_norm_backward.problem_of((m, 1024)) for m in (64, 4096)],
    "matmul": [matmul.problem_of(m, 4096, 1024) for m in (1, 16, 512)],
}
CALLED = {
    "rms_norm": [rms_norm.problem_of((m, 4096)) for m in (0, 1, 5, 16, 700, 5000)],
    "silu_and_mul": [
        silu_and_mul.problem_of((m, 4097), packed=p) for m in (0, 1, 5, 500) for p in (0, 1)
    ],
    "rms_norm_backward": [rms_norm_backward.problem_of((m, 1024)) for m in (1, 63, 5000)],
    "matmul": [matmul.problem_of(m, 4096, 1024) for m in (1, 2, 33, 512, 1500)],
}


@pytest.fixture(scope="module", params=BUILT)
def built(request, tmp_path_factory):
    """An operator's artifact, opened, and what it says of the operator."""
    folder = tmp_path_factory.mktemp(request.param) / request.param
    name = request.param
    report = aot.build_ops(folder, name, "sm_90", problems={name: BUILT[name]})
    return load(name), report.manifest.functions[0], aot.load(folder)


def launch(op, function, artifact, values):
    """The outputs of a call, by its row; and the row."""
    problem = op.problem(values)
    (form,) = (f for f in function.forms if f.arguments == arguments_of(op, problem))
    tensors = {n: v for n, v in zip(op.names, values, strict=True) if isinstance(v, torch.Tensor)}
    sizes = {address_name(n): t.data_ptr() for n, t in tensors.items()}
    for name, tensor in tensors.items():
        for d, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            sizes |= {size_name(name, d): size, stride_name(name, d): stride}
    row = aot.row_of(form, "sm_90", sizes)
    for one in (*form.outputs, *row.workspace):
        shape, strides = (tuple(value(e, sizes) for e in part) for part in (one.sizes, one.strides))
        dtype = next(t.dtype for t in tensors.values())
        dtype = torch.float32 if one.type == "fp32" else dtype
        tensors[one.name] = torch.empty_strided(shape, strides, dtype=dtype, device="cuda")
        tensors[one.name].fill_(torch.nan)
    scalars = dict(zip(op.names, values, strict=True))
    for made in row.launches:
        args = [passed(p, tensors, sizes, scalars) for p in made.arguments]
        grid = [value(e, sizes) for e in made.grid]
        artifact[made.kernel](*args, made.num_warps, made.num_stages, *grid)
    return tuple(tensors[one.name] for one in form.outputs), row


def passed(one, tensors, sizes, scalars):
    if one.kind == "tensor":
        return tensors[one.source]
    if one.kind == "descriptor":
        shape, strides = (tuple(value(e, sizes) for e in p) for p in (one.sizes, one.strides))
        return tensors[one.source].as_strided(shape, strides)
    if one.kind == "integer":
        return value(one.source, sizes)
    return {"null": None, "scalar": scalars.get(one.source)}.get(one.kind, one.value)


def test_rows_give_the_implementation_s_results(built):
    op, function, artifact = built
    target = device_target(torch.device("cuda", 0))
    for problem in CALLED[op.name]:
        generator = torch.Generator("cuda").manual_seed(1)
        values = op.inputs(problem, generator, "normal")
        outputs, row = launch(op, function, artifact, values)
        impl = implementation(op.name, row.implementation)
        # It was valid where it was chosen: some bounds on the search know the number of tokens.
        config = next(
            made
            for p in (problem, *BUILT[op.name])
            if impl.why_not(p, target) is None and (made := valid(impl, row.config, p, target))
        )
        expected, workspace = impl.allocate(values, config)
        impl.executor().run(impl.launches(values, expected, workspace, config))
        for out, right in zip(outputs, expected, strict=True):
            assert torch.equal(out.view(torch.uint8), right.view(torch.uint8)), (problem, row)


def valid(impl, config, problem, target):
    try:
        return impl.config(config, problem, target)
    except ValueError:
        return None


def test_what_a_program_launched_is_what_its_artifact_runs(tmp_path):
    kernel = example("vector_add").add_kernel
    x, y = torch.randn(2, 1000, device="cuda")
    cases_ = [(x, y, 1000, 128, 4), (x[1:], y[1:], 999, 128, 4), (x.half(), y.half(), 992, 256, 8)]
    expected = []
    with aot.trace(kernel) as t:
        for a, b, n, block, warps in cases_:
            out = torch.zeros_like(a)
            kernel[(-(-n // block),)](a, b, out, n, BLOCK_SIZE=block, num_warps=warps)
            expected.append(out)
    assert t.launches == len(cases_)
    (traced,) = t.kernels()
    assert not kernel.pre_run_hooks
    traced.build(tmp_path / "traced", "sm_90")
    artifact = aot.load(tmp_path / "traced")
    for (a, b, n, block, warps), right in zip(cases_, expected, strict=True):
        out = torch.zeros_like(a)
        artifact[traced.name](a, b, out, n, block, warps, 0, -(-n // block), 1, 1)
        assert torch.equal(out, right)


def test_kernels_that_come_while_a_trace_runs_are_in_it():
    fresh = example("vector_add").add_kernel  # a module of its own: never compiled in this process
    x, y = torch.randn(2, 64, device="cuda")
    with aot.trace() as t:
        fresh[(1,)](x, y, x, 64, BLOCK_SIZE=64)
        fresh[(1,)](x, y, x, 63, BLOCK_SIZE=64)
    (kernel,) = (k for k in t.kernels() if k.name == "add_kernel")
    assert kernel.given["n_elements"] == aot.Int([16, None])
