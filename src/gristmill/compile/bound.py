"""Bound calls: an implementation with a config, made into a plain callable for one call key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gristmill.compile.executor import EXECUTOR
from gristmill.compile.hot import code
from gristmill.compile.programs import Maker, program, ready
from gristmill.core.config import Config
from gristmill.core.implementation import Implementation
from gristmill.core.launch import Launch
from gristmill.core.problem import TensorSpec

BoundCall = Callable[..., Any]

# The whole call is one generated function: no argument list is built, no loop runs (see `hot`).
SOURCE = """
def call({names}):
    {allocate}
    if current() == index:
        {launch}
    else:
        with guard(index):
            {launch}
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
    bound = _bound(launches, slots, device)
    if not bound:
        return _unbound(implementation, config)
    scope: dict[str, Any] = {f"launch_{i}": function for i, function in enumerate(bound)}
    results = [f"made_{i}" for i in range(len(made))]
    slot_names = [*names, *results]
    held = [n for n, slot in zip(slot_names, slots, strict=True) if slot is not None]
    addresses = ", ".join(f"{name}.data_ptr()" for name in held)
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
    call.program = _program(launches, makers, slots, len(values), len(outputs), device)
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
    given = len(outputs)
    return _program(launches, makers, slots, len(arguments), 0, device, given)


def native(call: BoundCall) -> Any:
    """What a table of the C module runs for a bound call: its program, if it has one."""
    return getattr(call, "program", None) or call


def _bound(
    launches: list[Launch], slots: list[torch.Tensor | None], device: torch.device
) -> list[Callable[..., None]]:
    """Each launch as a function of the slots' addresses; none where there is nothing to bind."""
    tensors = [slot for slot in slots if slot is not None]
    bound = [EXECUTOR.bind(launch, tensors, device) for launch in launches]
    return [function for function in bound if function is not None]


def _program(
    launches: list[Launch],
    makers: list[Maker],
    slots: list[torch.Tensor | None],
    arguments: int,
    outputs: int,
    device: torch.device,
    given: int = 0,
) -> Any:
    if device.type != "cuda" or ready() is None:
        return None
    with torch.cuda.device(device):
        kernels = [EXECUTOR.loaded(launch) for launch in launches]
    loaded = list(zip(launches, kernels, strict=True))
    return program(arguments, outputs, makers, loaded, slots, given)


def _unbound(implementation: Implementation, config: Config) -> BoundCall:
    """Launches afresh at every call (the interpreter, empty tensors)."""

    def call(*values: Any) -> Any:
        outputs, workspace = implementation.allocate(values, config)
        EXECUTOR.run(implementation.launches(values, outputs, workspace, config))
        return outputs if len(outputs) != 1 else outputs[0]

    return call


def _maker(tensor: torch.Tensor, values: tuple[Any, ...]) -> Maker:
    """How a tensor like this one is allocated in the cheapest way.

    `empty_like` of an argument costs 0.9 us, `new_empty` 1.3, `empty` 1.7 (CPU tensors here).
    """
    spec = TensorSpec.of(tensor)
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
