"""The call key: what a bound launch is valid for, and the test that a call may take the fast path
at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

from gristmill.core.op import Op

PROBLEM_FACTS = ("shape", "stride()", "dtype", "device")
LAUNCH_FACTS = ("__class__", "data_ptr() & 15", "is_neg()")  # beyond them, what a kernel needs

_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._is_torch_function_mode_enabled
_autocast = torch._C._is_any_autocast_enabled
_functorch = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]
_tracing = torch._C._get_tracing_state


def _only_devices() -> bool:
    """Whether every function mode is a `torch.device` context or default, which changes factory
    functions alone."""
    modes = torch.overrides._get_current_function_mode_stack()
    return all(isinstance(mode, DeviceContext) for mode in modes)


def is_plain() -> bool:
    """Whether nothing is watching or rewriting calls: no mode, autocast, function transform,
    forward-mode differentiation or tracing."""
    return (
        not (_dispatch_modes() or _autocast())
        and (not _function_modes() or _only_devices())
        and _functorch() is None
        and _tracing() is None
        and forward_ad._current_level < 0
    )


def key_function(op: Op) -> Callable[..., tuple[Any, ...] | None]:
    """A function of the op's arguments, all of them in order, that returns their call key.

    Of each tensor: class, shape, strides, dtype, device, the address modulo 16, and whether it is a
    lazily negated view (which no implementation takes: `Op.validate` refuses it); of the call:
    whether a gradient is needed; every scalar as it is. `None` where the call is not plain (see
    `is_plain`). Raises `AttributeError` for an argument that is no tensor where the schema has one.
    """
    gradients = [
        f"({a.name} is not None and {a.name}.requires_grad)"
        for a in op.parsed.arguments
        if "Tensor" in str(a.type)
    ]
    facts = _facts(op, (*PROBLEM_FACTS, *LAUNCH_FACTS))
    source = f"""
def call_key({", ".join(op.names)}):
    if dispatch_modes() or autocast() or functorch() is not None or tracing() is not None:
        return None
    if forward_ad._current_level >= 0 or (function_modes() and not only_devices()):
        return None
    return ({facts}, grad_enabled() and ({" or ".join(gradients)}))
"""
    scope: dict[str, Any] = {
        "grad_enabled": torch.is_grad_enabled,
        "dispatch_modes": _dispatch_modes,
        "function_modes": _function_modes,
        "only_devices": _only_devices,
        "forward_ad": forward_ad,
        "autocast": _autocast,
        "functorch": _functorch,
        "tracing": _tracing,
    }
    exec(source, scope)
    return scope["call_key"]


def problem_key_function(op: Op) -> Callable[..., tuple[Any, ...]]:
    """The part of the call key that says which problem it is: shapes, strides, dtypes, devices and
    scalars. All that a call of torch's own needs (0.7 us; the whole key takes 1.6, on 2 cores)."""
    scope: dict[str, Any] = {}
    facts = _facts(op, PROBLEM_FACTS)
    exec(f"def problem_key({', '.join(op.names)}):\n    return ({facts},)", scope)
    return scope["problem_key"]


def _facts(op: Op, facts: Sequence[str]) -> str:
    """The expressions of a key, from the schema, so that no call loops over its arguments."""
    parts: list[str] = []
    for argument in op.parsed.arguments:
        name, kind = argument.name, str(argument.type)
        key = ", ".join(f"{name}.{fact}" for fact in facts)
        if kind == "Tensor":
            parts.append(key)
        elif kind == "Optional[Tensor]":
            parts.append(f"None if {name} is None else ({key})")
        else:
            parts.append(name)
    return ", ".join(parts)


def pack_function(op: Op) -> Callable[..., tuple[Any, ...]]:
    """A function with the op's signature that returns its arguments as a tuple, defaults filled in.

    Raises `TypeError` for what does not fit the signature.
    """
    parameters = op.signature.parameters.values()
    given = ", ".join(
        p.name if p.default is p.empty else f"{p.name}=defaults[{p.name!r}]" for p in parameters
    )
    scope: dict[str, Any] = {"defaults": {p.name: p.default for p in parameters}}
    exec(f"def pack({given}):\n    return ({', '.join(op.names)},)", scope)
    return scope["pack"]
