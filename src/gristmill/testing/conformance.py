"""Judging one case: a run on fresh values, with poisoned outputs between canaries, against the
float64 reference."""

from __future__ import annotations

from typing import Any

import torch

from gristmill.core.implementation import Implementation
from gristmill.core.op import as_tuple
from gristmill.core.problem import TensorSpec
from gristmill.core.target import Target, device_target
from gristmill.testing.cases import Case
from gristmill.verify import Guard, Verdict, compare, guarded_empty, poison, truth


def judge(
    case: Case,
    device: torch.device | str,
    target: Target | None = None,
) -> Verdict:
    """Run a case and say whether it conforms: values within the op's bounds, shapes, strides and
    dtypes as declared, no write outside the outputs or workspace, arguments unchanged.

    `target` is what configs are made for where it is not the device's own (the interpreter).
    """
    device = torch.device(device)
    implementation, op = case.implementation, case.implementation.op
    generator = torch.Generator(device).manual_seed(0)
    values = op.inputs(case.problem, generator, case.variant)
    op.validate(values)
    references, magnitudes = truth(op, values)
    before = [v.clone() if isinstance(v, torch.Tensor) else v for v in values]
    outputs, guards = _run(case, values, device, target or device_target(device))
    fault = _fault(implementation, case, outputs, guards) or _changed(op.names, values, before)
    if fault:
        return Verdict(False, torch.inf, fault)
    return compare(outputs, references, magnitudes, op.bounds(case.problem))


def _run(
    case: Case,
    values: tuple[Any, ...],
    device: torch.device,
    target: Target,
) -> tuple[tuple[torch.Tensor, ...], list[Guard]]:
    implementation = case.implementation
    problem = implementation.op.problem(values)
    if implementation.call is not None:
        return as_tuple(implementation.call(*values)), []
    if implementation.build is not None:
        return as_tuple(implementation.build(problem)(*values)), []
    assert implementation.executor is not None
    config = implementation.config(case.config, problem, target)
    guarded = [guarded_empty(spec, device) for spec in implementation.op.outputs(problem)]
    scratch = [guarded_empty(spec, device) for spec in implementation.workspace(problem, config)]
    outputs, workspace = (tuple(t for t, _ in pairs) for pairs in (guarded, scratch))
    for tensor in (*outputs, *workspace):
        poison(tensor)
    implementation.executor().run(implementation.launches(values, outputs, workspace, config))
    return outputs, [guard for _, guard in (*guarded, *scratch)]


def _fault(
    implementation: Implementation,
    case: Case,
    outputs: tuple[torch.Tensor, ...],
    guards: list[Guard],
) -> str:
    for index, (out, spec) in enumerate(
        zip(outputs, implementation.op.outputs(case.problem), strict=True)
    ):
        got = TensorSpec.of(out)
        if (got.shape, got.dtype) != (spec.shape, spec.dtype):
            return (
                f"output {index} is {got.dtype}{got.shape} where {spec.dtype}{spec.shape} is "
                "declared"
            )
        if got.numel and spec.is_contiguous and not got.is_contiguous:
            return f"output {index} has strides {got.strides} where a contiguous one is declared"
    if not all(guard.intact() for guard in guards):
        return "memory outside an output or the workspace was written"
    return ""


def _changed(names: tuple[str, ...], values: tuple[Any, ...], before: list[Any]) -> str:
    for name, value, old in zip(names, values, before, strict=True):
        if isinstance(value, torch.Tensor) and not torch.equal(
            value.nan_to_num(), old.nan_to_num()
        ):
            return f"the argument `{name}` was changed"
    return ""
