"""Bound calls: an implementation with a config, made into a plain callable for one call key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gristmill.compile.executor import EXECUTOR
from gristmill.compile.hot import bind_launch, code
from gristmill.compile.programs import Maker, program
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
    made = [*outputs, *workspace]
    makers = [_maker(tensor, values) for tensor in made]
    slots = [v if isinstance(v, torch.Tensor) else None for v in (*values, *made)]
    loaded = EXECUTOR.load(launches, device)
    if not loaded:
        return _unbound(implementation, config)
    held = [slot for slot in slots if slot is not None]
    bound = [bind_launch(launch, kernel, held, device) for launch, kernel in loaded]
    scope: dict[str, Any] = {f"launch_{i}": function for i, function in enumerate(bound)}
    results = [f"made_{i}" for i in range(len(made))]
    slot_names = [*names, *results]
    addresses = ", ".join(
        f"{name}.data_ptr()"
        for name, slot in zip(slot_names, slots, strict=True)
        if slot is not None
    )
    source = SOURCE.format(
        names=", ".join(names),
        allocate="; ".join(
            f"{name} = {_expression(name, maker, names, scope)}"
            for name, maker in zip(results, makers, strict=True)
        )
        or "pass",
        launch="; ".join(f"launch_{i}({addresses})" for i in range(len(bound))),
        result=", ".join(results[: len(outputs)]),
    )
    scope.update(current=torch.cuda.current_device, guard=torch.cuda.device, index=device.index)
    if device.type == "cuda":
        scope["current"] = torch._C._cuda_getDevice
    exec(code(source), scope)
    call = scope["call"]
    call.program = program(len(values), len(outputs), makers, loaded, slots)
    return call


def program_into(
    implementation: Implementation,
    config: Config,
    values: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
) -> Any:
    """A program of the op's arguments and then its outputs, which the caller gives; `None` where
    there can be none. Valid as what `bind` gives is, for outputs of one alignment too."""
    device = implementation.op.device(values)
    if implementation.launcher is None or device.type != "cuda":
        return None
    problem = implementation.op.problem(values)
    workspace = tuple(s.empty(device) for s in implementation.workspace(problem, config))
    launches = [
        launch
        for launch in implementation.launches(values, outputs, workspace, config)
        if 0 not in launch.grid
    ]
    arguments = (*values, *outputs)
    makers = [_maker(tensor, arguments) for tensor in workspace]
    slots = [v if isinstance(v, torch.Tensor) else None for v in (*arguments, *workspace)]
    loaded = EXECUTOR.load(launches, device)
    return program(len(arguments), 0, makers, loaded, slots, len(outputs)) if loaded else None


def program_of(call: BoundCall) -> Any:
    """What a table of the C module runs for a bound call: its program, if it has one."""
    return getattr(call, "program", None) or call


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


def _maker(tensor: torch.Tensor, values: tuple[Any, ...]) -> Maker:
    """How a tensor like this one is allocated in the cheapest way, on the current device.

    Past torch's dispatcher 0.5 us (CPU tensors here); by its public functions `empty_like` of an
    argument costs 0.9, `new_empty` 1.3, `empty` 1.7.
    """
    spec = TensorSpec.of(tensor)
    empty = _empty_strided(tensor.device)
    if empty is not None:
        return Maker(empty, (spec.shape, spec.strides, spec.torch_dtype))
    arguments = [(i, v) for i, v in enumerate(values) if isinstance(v, torch.Tensor)]
    for index, argument in arguments:
        given = TensorSpec.of(argument)
        if (given.shape, given.dtype) == (spec.shape, spec.dtype) and given.is_contiguous:
            return Maker(torch.empty_like, (None,), source=index)
    facts = (spec.torch_dtype, tensor.device)
    if not spec.is_contiguous:
        return Maker(torch.empty_strided, (spec.shape, spec.strides, *facts), ("dtype", "device"))
    for index, argument in arguments:
        if argument.dtype is spec.torch_dtype:
            return Maker(torch.Tensor.new_empty, (None, spec.shape), source=index)
    return Maker(torch.empty, (spec.shape, *facts), ("dtype", "device"))


def _expression(name: str, maker: Maker, names: tuple[str, ...], scope: dict[str, Any]) -> str:
    """A maker's call as text; what it names is put into `scope`."""
    scope[f"make_{name}"] = maker.function
    texts = []
    for position, value in enumerate(maker.values):
        if position == 0 and maker.source >= 0:
            texts.append(names[maker.source])
        else:
            texts.append(f"{name}_{position}")
            scope[texts[-1]] = value
    plain = len(texts) - len(maker.keywords)
    texts[plain:] = [f"{k}={t}" for k, t in zip(maker.keywords, texts[plain:], strict=True)]
    return f"make_{name}({', '.join(texts)})"
