"""The call key: what a bound launch is valid for, and the test that a call may take the fast path
at all. Both as source text, for the functions that `_generate` makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._C._functorch import TransformType
from torch._guards import TracingContext
from torch.autograd import forward_ad, profiler
from torch.utils._device import DeviceContext

from gristmill.core.implementation import PLAIN_TYPES
from gristmill.core.op import Op

NO_KEY = (AttributeError, TypeError, RuntimeError)  # no tensor, unhashable, or without memory
PROBLEM_FACTS = ("{x}.shape", "{x}.stride()", "{x}.dtype", "{x}.device")
# A subclass may be anything, so a call never finds what was bound below torch's dispatcher, where
# the class no longer counts. A `Parameter` is a tensor.
PLAIN_CLASS, ANY_CLASS = "{x}.__class__ in PLAIN_TYPES", "True"
JVP, VMAP = TransformType.Jvp, TransformType.Vmap
# Beyond them, what a kernel needs. A null address is no multiple of 16: memory that was let go of.
LAUNCH_FACTS = ("(_at & 15 if (_at := {x}.data_ptr()) else -1)", "{x}.is_neg()")


def _only_devices() -> bool:
    """Whether every function mode is a `torch.device` context or default, which changes factory
    functions alone."""
    modes = torch.overrides._get_current_function_mode_stack()
    return all(isinstance(mode, DeviceContext) for mode in modes)


# Nothing is watching or rewriting calls: no mode, autocast, function transform, tracing, or
# forward-mode differentiation.
PLAIN = (
    "not (dispatch_modes() or autocast()) and functorch() is None and tracing() is None "
    "and forward_ad._current_level < 0 and (not function_modes() or only_devices())"
)
SCOPE: dict[str, Any] = {
    "NO_KEY": NO_KEY,
    "PLAIN_TYPES": PLAIN_TYPES,
    "autocast": torch._C._is_any_autocast_enabled,
    "compiling": torch.compiler.is_dynamo_compiling,
    "dispatch_modes": torch._C._len_torch_dispatch_stack,
    "forward_ad": forward_ad,
    "function_modes": torch._C._is_torch_function_mode_enabled,
    "functorch": torch._C._functorch.peek_interpreter_stack,  # pyright: ignore[reportAttributeAccessIssue]
    "grad_enabled": torch.is_grad_enabled,
    "only_devices": _only_devices,
    "profiler": profiler,
    "tracing": torch._C._get_tracing_state,
}
_PLAIN = compile(PLAIN, "<plain>", "eval")


def is_plain() -> bool:
    """What `PLAIN` says, as a function."""
    return bool(eval(_PLAIN, SCOPE))  # noqa: S307 - the text above


def is_profiled() -> bool:
    """Whether `torch.profiler` watches this process."""
    return profiler._is_profiler_enabled  # what Inductor asks too, at each launch


def in_forward_mode() -> bool:
    """Whether forward-mode differentiation is under way (compiled code enters it without telling
    the level)."""
    return forward_ad._current_level >= 0 or in_transform(JVP)


def below_autograd() -> bool:
    """Whether AOTAutograd records the operations below autograd into a graph that it has given its
    gradients: what `make_fx` and exported programs record may be differentiated yet."""
    return (
        torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
        and TracingContext.try_get() is not None
        and not torch.compiler.is_exporting()
    )


def in_transform(kind: Any) -> bool:
    """Whether one of `torch.func`'s transforms around us is of this kind."""
    stack = torch._C._functorch.get_interpreter_stack()  # pyright: ignore[reportAttributeAccessIssue]
    return any(transform.key() == kind for transform in stack or ())


def values_key(op: Op) -> str:
    """The key of a call that needs no gradient, of tensors of torch's own classes or below its
    dispatcher.

    Of each tensor: shape, strides, dtype, device, the address modulo 16, and whether it is a lazily
    negated or conjugated view (which no implementation takes: `Op.validate` refuses it); every
    scalar as it is. Evaluating it raises `AttributeError` for an argument that is no tensor where
    the schema has one.
    """
    return f"({_facts(op, (*PROBLEM_FACTS, ANY_CLASS, *_launch_facts(op)))}, False)"


def call_key(op: Op) -> str:
    """As `values_key`, and whether the classes are torch's own, and a gradient is needed."""
    gradients = " or ".join(
        f"({a.name} is not None and {a.name}.requires_grad)"
        for a in op.parsed.arguments
        if "Tensor" in str(a.type)
    )
    facts = _facts(op, (*PROBLEM_FACTS, PLAIN_CLASS, *_launch_facts(op)))
    return f"({facts}, grad_enabled() and ({gradients}))"


def _launch_facts(op: Op) -> tuple[str, ...]:
    """Only complex tensors have the bit of a conjugate."""
    complex_too = any(dtype.is_complex for dtype in op.dtypes)
    return (*LAUNCH_FACTS, "{x}.is_conj()") if complex_too else LAUNCH_FACTS


def problem_key(op: Op) -> str:
    """The part of the call key that says which problem it is: shapes, strides, dtypes, devices and
    scalars. All that a call of torch's own needs."""
    return f"({_facts(op, PROBLEM_FACTS)},)"


def addresses(op: Op) -> str:
    """The bits of every tensor's address together: none of the last four is set where all lie on 16
    bytes."""
    return " | ".join(
        f"(0 if {a.name} is None else {a.name}.data_ptr())"
        if "Optional" in str(a.type)
        else f"{a.name}.data_ptr()"
        for a in op.parsed.arguments
        if "Tensor" in str(a.type)
    )


def _facts(op: Op, facts: Sequence[str]) -> str:
    """The expressions of a key, from the schema, so that no call loops over its arguments."""
    parts: list[str] = []
    for argument in op.parsed.arguments:
        name, kind = argument.name, str(argument.type)
        key = ", ".join(fact.format(x=name) for fact in facts)
        if kind == "Tensor":
            parts.append(key)
        elif kind == "Optional[Tensor]":
            parts.append(f"None if {name} is None else ({key})")
        else:
            parts.append(name)
    return ", ".join(parts)
