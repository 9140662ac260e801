"""Bound calls: an implementation with a config, made into a plain callable for one call key."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from gristmill.compile.executor import EXECUTOR
from gristmill.compile.hot import code
from gristmill.core.config import Config
from gristmill.core.implementation import Implementation
from gristmill.core.problem import TensorSpec

BoundCall = Callable[..., Any]

# The whole call is one generated function: no argument list is built, no loop runs (see `hot`).
SOURCE = """
def call({names}):
    if current() == index:
        {allocate}; {launch}
    else:
        with guard(index):
            {allocate}; {launch}
    return {result}
"""


def bind(implementation: Implementation, config: Config, values: tuple[Any, ...]) -> BoundCall:
    """A callable of the op's arguments (all of them, in the schema's order).

    It runs `implementation` with `config`. A Triton implementation's is valid for the call key of
    `values`: same shapes, strides, dtypes, device, alignment and scalars. May compile: a Triton
    kernel for less than a second, a `compiled` implementation for many.
    """
    if implementation.call is not None:
        return implementation.call
    if implementation.build is not None:
        return implementation.built(implementation.op.problem(values))
    outputs, workspace = implementation.allocate(values, config)
    launches = [
        launch
        for launch in implementation.launches(values, outputs, workspace, config)
        if 0 not in launch.grid
    ]
    device = implementation.op.device(values)
    names = implementation.op.names
    tensors = {
        name: v for name, v in zip(names, values, strict=True) if isinstance(v, torch.Tensor)
    }
    tensors.update({f"output_{i}": t for i, t in enumerate(outputs)})
    tensors.update({f"workspace_{i}": t for i, t in enumerate(workspace)})
    slots = list(tensors.values())
    bound = [EXECUTOR.bind(launch, slots, device) for launch in launches]
    if not bound or None in bound:
        return _unbound(implementation, config)
    scope: dict[str, Any] = {f"launch_{i}": function for i, function in enumerate(bound)}
    addresses = ", ".join(f"{name}.data_ptr()" for name in tensors)
    steps = [f"launch_{i}({addresses})" for i in range(len(bound))]
    made = [name for name in tensors if name not in names]
    empty = _empty_strided(device)
    make = _like if empty is None else functools.partial(_strided, empty)
    allocations = [f"{name} = {make(name, tensors, names, scope)}" for name in made]
    results = [f"output_{i}" for i in range(len(outputs))]
    source = SOURCE.format(
        names=", ".join(names),
        allocate="; ".join(allocations) or "pass",
        launch="; ".join(steps) or "pass",
        result=", ".join(results),
    )
    scope.update(current=torch.cuda.current_device, guard=torch.cuda.device, index=device.index)
    if device.type == "cuda":
        scope["current"] = torch._C._cuda_getDevice
    exec(code(source), scope)
    return scope["call"]


def _unbound(implementation: Implementation, config: Config) -> BoundCall:
    """Launches afresh at every call (the interpreter, empty tensors)."""

    def call(*values: Any) -> Any:
        outputs, workspace = implementation.allocate(values, config)
        EXECUTOR.run(implementation.launches(values, outputs, workspace, config))
        return outputs if len(outputs) != 1 else outputs[0]

    return call


def _empty_strided(device: torch.device) -> Callable[..., torch.Tensor] | None:
    """What code that Inductor generates allocates with, on the current device: it takes sizes,
    strides and a dtype past torch's dispatcher. `None` where this torch or device has none."""
    guards = torch._C._dynamo.guards  # pyright: ignore[reportAttributeAccessIssue]
    return getattr(guards, f"_empty_strided_{device.type}", None)


def _strided(
    empty: Callable[..., torch.Tensor],
    name: str,
    tensors: dict[str, torch.Tensor],
    names: tuple[str, ...],
    scope: dict[str, Any],
) -> str:
    """The expression that allocates a tensor like `tensors[name]`: 0.5 us (CPU tensors here)."""
    del names
    spec = TensorSpec.of(tensors[name])
    scope["empty_strided"] = empty
    scope[f"shape_{name}"], scope[f"strides_{name}"] = spec.shape, spec.strides
    scope[f"dtype_{name}"] = spec.torch_dtype
    return f"empty_strided(shape_{name}, strides_{name}, dtype_{name})"


def _like(
    name: str, tensors: dict[str, torch.Tensor], names: tuple[str, ...], scope: dict[str, Any]
) -> str:
    """As `_strided`, by torch's public functions.

    `empty_like` of an argument costs 0.9 us, `new_empty` 1.3, `empty` 1.7 (CPU tensors here).
    """
    spec = TensorSpec.of(tensors[name])
    arguments = {n: t for n, t in tensors.items() if n in names}
    for argument, tensor in arguments.items():
        given = TensorSpec.of(tensor)
        if (given.shape, given.dtype) == (spec.shape, spec.dtype) and given.is_contiguous:
            scope["empty_like"] = torch.empty_like
            return f"empty_like({argument})"
    scope[f"shape_{name}"] = spec.shape
    scope.update(device=tensors[name].device, empty_strided=torch.empty_strided)
    scope[f"strides_{name}"], scope[f"dtype_{name}"] = spec.strides, spec.torch_dtype
    if not spec.is_contiguous:
        facts = f"dtype=dtype_{name}, device=device"
        return f"empty_strided(shape_{name}, strides_{name}, {facts})"
    for argument, tensor in arguments.items():
        if tensor.dtype is spec.torch_dtype:
            return f"{argument}.new_empty(shape_{name})"
    scope["empty"] = torch.empty
    return f"empty(shape_{name}, dtype=dtype_{name}, device=device)"
