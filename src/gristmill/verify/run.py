"""One guarded run of an implementation: what it returns, and what it did that it may not do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gristmill.core.config import Config
from gristmill.core.implementation import Implementation
from gristmill.core.op import Op, as_tuple
from gristmill.core.problem import TensorSpec
from gristmill.verify.memory import Guard, guarded_empty, poison

Tensors = tuple[torch.Tensor, ...]
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def run_guarded(
    implementation: Implementation,
    values: tuple[Any, ...],
    config: Config,
    call: Callable[..., Any] | None = None,
) -> tuple[Tensors, str | None]:
    """The outputs for these arguments, and the fault: `None`, or what is wrong but for the values.

    With no `call`, kernels get poisoned outputs and workspace between canaries, and any other
    implementation is called. With a `call` (a bound one), that is what runs, and it finds poison
    where the allocator gives it memory of the outputs' sizes. Faults are another count, shape,
    dtype, device or strides than declared, an output in an argument's memory, a write outside the
    outputs and the workspace, a changed argument (which is put back, for whoever comes next). Waits
    for the device.
    """
    op = implementation.op
    before = kept(values)
    try:
        outputs, guards = _outputs(implementation, values, config, call)
    except Exception:
        with contextlib.suppress(RuntimeError):  # a lost device context
            put_back(op.names, values, before)
        raise
    changed = put_back(op.names, values, before)
    if not all(guard.intact() for guard in guards):
        return outputs, "it wrote outside its outputs and workspace"
    if changed:
        return outputs, f"it changed its argument `{changed[0]}`"
    return outputs, _undeclared(op, values, outputs)


def _outputs(
    implementation: Implementation,
    values: tuple[Any, ...],
    config: Config,
    call: Callable[..., Any] | None,
) -> tuple[Tensors, list[Guard]]:
    op = implementation.op
    problem, device = op.problem(values), op.device(values)
    if implementation.launcher is not None and call is None:
        assert implementation.executor is not None
        made = [guarded_empty(spec, device) for spec in op.outputs(problem)]
        spare = [guarded_empty(spec, device) for spec in implementation.workspace(problem, config)]
        outputs, workspace = (tuple(t for t, _ in pairs) for pairs in (made, spare))
        implementation.executor().run(implementation.launches(values, outputs, workspace, config))
        return outputs, [guard for _, guard in (*made, *spare)]
    function = call or implementation.call
    if function is None:
        assert implementation.build is not None
        function = implementation.build(problem)
    # Memory of the outputs' sizes, poisoned and freed: an allocator that recycles gives it to the
    # next who asks, not a right answer that was there before.
    poisoned = [poison(spec.empty(device)) for spec in op.outputs(problem)]
    del poisoned
    return as_tuple(function(*values)), []


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors of one shape and dtype hold the same bits (a NaN equals itself)."""
    if first.is_complex():
        first, second = torch.view_as_real(first), torch.view_as_real(second)
    bits = BITS[first.dtype.itemsize]
    return torch.equal(first.view(bits), second.view(bits))


def _undeclared(op: Op, values: tuple[Any, ...], outputs: Sequence[Any]) -> str | None:
    """How the outputs differ from what the op declares, their values aside."""
    declared, device = op.outputs(op.problem(values)), op.device(values)
    if len(outputs) != len(declared):
        return f"{len(outputs)} outputs where {len(declared)} are declared"
    memory = {
        v.untyped_storage().data_ptr() for v in values if isinstance(v, torch.Tensor) and v.numel()
    }
    for index, (out, spec) in enumerate(zip(outputs, declared, strict=True)):
        if not isinstance(out, torch.Tensor):
            return f"output {index} is a {type(out).__name__}, not a tensor"
        got = TensorSpec.of(out)
        facts = (
            ("shape", got.shape, spec.shape),
            ("dtype", got.dtype, spec.dtype),
            ("device", str(out.device), str(device)),
        )
        for fact, found, expected in facts:
            if found != expected:
                return f"output {index} has {fact} {found} where {expected} is declared"
        if _steps(got) != _steps(spec):
            return f"output {index} has strides {got.strides} where {spec.strides} are declared"
        if got.numel and out.untyped_storage().data_ptr() in memory:
            return f"output {index} is in the memory of an argument"
    return None


def _steps(spec: TensorSpec) -> list[int]:
    """The strides that lead anywhere."""
    if spec.numel == 0:
        return []
    return [s for n, s in zip(spec.shape, spec.strides, strict=True) if n > 1]


def _written(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without its repetitions: of a broadcast dimension, the first entry."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def kept(values: Sequence[Any]) -> list[torch.Tensor | None]:
    """Copies of the tensors among these arguments, for `put_back`."""
    return [_written(v).clone() if isinstance(v, torch.Tensor) else None for v in values]


def put_back(
    names: Sequence[str], values: Sequence[Any], before: Sequence[torch.Tensor | None]
) -> list[str]:
    """Which arguments were changed; they are what they were before, afterwards."""
    changed = []
    for name, value, old in zip(names, values, before, strict=True):
        if old is not None and not same_bits(_written(value), old):
            _written(value).copy_(old)
            changed.append(name)
    return changed
