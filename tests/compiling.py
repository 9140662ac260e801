"""What the tests of compiled kernels share."""

from __future__ import annotations

from gristmill.compile.executor import EXECUTOR


def compiled(implementation, problem, target, config=None):
    values = problem.meta()
    config = implementation.config(config, problem, target)
    outputs, workspace = implementation.allocate(values, config)
    launches = implementation.launches(values, outputs, workspace, config)
    return [EXECUTOR.compile(launch, target) for launch in launches]
