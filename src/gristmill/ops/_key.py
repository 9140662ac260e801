"""The call key: what a bound launch is valid for, and the test that a call may take the fast path
at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gristmill.core.op import Op

_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._is_torch_function_mode_enabled
_autocast = torch._C._is_any_autocast_enabled
_functorch = torch._C._functorch.peek_interpreter_stack
_tracing = torch._C._get_tracing_state

PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)


def is_plain() -> bool:
    """Whether nothing is watching or rewriting calls: no mode, autocast, function transform or
    tracing."""
    return (
        not (_dispatch_modes() or _function_modes() or _autocast())
        and _functorch() is None
        and _tracing() is None
    )


def key_function(op: Op) -> Callable[..., tuple[Any, ...]]:
    """A function of the op's arguments, with its names and defaults, that returns their call key.

    Of each tensor: class, shape, strides, dtype, device, and the address modulo 16; of the call:
    whether a gradient is needed; every scalar as it is. Generated from the schema, once an op,
    because a loop over the arguments costs 2 us. Raises `AttributeError` for an argument that is no
    tensor where the schema has one.
    """
    parts: list[str] = []
    gradients: list[str] = []
    for argument in op.parsed.arguments:
        name, kind = argument.name, str(argument.type)
        key = ", ".join(
            f"{name}.{fact}"
            for fact in ("__class__", "shape", "stride()", "dtype", "device", "data_ptr() & 15")
        )
        if kind == "Tensor":
            parts.append(key)
            gradients.append(f"{name}.requires_grad")
        elif kind == "Optional[Tensor]":
            parts.append(f"None if {name} is None else ({key})")
            gradients.append(f"({name} is not None and {name}.requires_grad)")
        else:
            parts.append(name)
    parts.append(f"grad_enabled() and ({' or '.join(gradients)})")
    parameters = ", ".join(
        f"{p.name}" if p.default is p.empty else f"{p.name}=defaults[{p.name!r}]"
        for p in op.signature.parameters.values()
    )
    defaults = {p.name: p.default for p in op.signature.parameters.values()}
    namespace: dict[str, Any] = {"grad_enabled": torch.is_grad_enabled, "defaults": defaults}
    exec(f"def call_key({parameters}):\n    return ({', '.join(parts)},)", namespace)
    return namespace["call_key"]
