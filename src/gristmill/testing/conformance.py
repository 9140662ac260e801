"""Judging one case: a guarded run on fresh values, against the float64 reference."""

from __future__ import annotations

import torch

from gristmill.core.target import Target, device_target
from gristmill.testing.cases import Case
from gristmill.verify import Verdict, compare, run_guarded, truth


def judge(
    case: Case,
    device: torch.device | str,
    target: Target | None = None,
) -> Verdict:
    """Run a case and say whether it conforms: no fault of `run_guarded`, and values within the op's
    bounds.

    `target` is what configs are made for where it is not the device's own (the interpreter).
    """
    device = torch.device(device)
    implementation, op = case.implementation, case.implementation.op
    generator = torch.Generator(device).manual_seed(0)
    values = op.inputs(case.problem, generator, case.variant)
    op.validate(values)
    problem = op.problem(values)
    config = implementation.config(case.config, problem, target or device_target(device))
    references, magnitudes = truth(op, values)
    outputs, fault = run_guarded(implementation, values, config)
    if fault is not None:
        return Verdict(False, torch.inf, fault)
    return compare(outputs, references, magnitudes, op.bounds(case.problem))
