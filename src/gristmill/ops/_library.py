"""Every op in torch's dispatcher, as `torch.ops.gristmill.<op>`: where calls go that need more than
values.

All of it follows from the op's declaration: the schema; a meta kernel that makes its outputs (fake
tensors use it too); the kernel of CPU and CUDA, which is the plan's bound launch; autograd by its
gradients, or through its reference; autocast; vmap.

Beside each op lies `_<op>`, the same with nothing above its values. Graphs that AOTAutograd traces,
where gradients are dealt with, call that one: the autograd kernel is half of the host time of a
call through the dispatcher (docs/performance/dispatch.md). Inductor's code calls neither
(`_inductor.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gristmill.core.gradient import GRAD, NEEDS, SHAPE, STRIDES, saved_names
from gristmill.core.op import Op, as_tuple
from gristmill.core.problem import Problem, TensorSpec
from gristmill.errors import RegistrationError, did_you_mean
from gristmill.ops._generate import refuse_schema
from gristmill.ops._inductor import offer
from gristmill.ops._key import VMAP, below_autograd, in_forward_mode, in_transform

NAMESPACE = "gristmill"
DEVICES = ("CPU", "CUDA")  # torch's dispatch keys; ROCm's devices are CUDA's
_library = torch.library.Library(NAMESPACE, "FRAGMENT")
# Inductor hands kernels the strides that the contract was checked with.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)


def register_op(op: Op, run: Callable[..., Any], call: Callable[[str], Callable[..., Any]]) -> Any:
    """Register an op; returns its overload, `torch.ops.gristmill.<op>.default`.

    `run` computes values, with no regard to gradients or modes; `call(name)` is the public call of
    another op, which its gradients use.
    """
    refuse_schema(op)
    _refuse_unknown_names(op)
    overload, values = _defined(op, op.name, run), _defined(op, f"_{op.name}", run)
    _library.impl(f"_{op.name}", torch.library.fallthrough_kernel, "Autograd")
    for device in DEVICES:
        kernel = _autocast_kernel(op, overload, device)
        _library.impl(op.name, kernel, f"Autocast{device}")
    _library.impl(op.name, op.reference, "FuncTorchBatched")  # whose operations torch can batch

    def below(keys: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            if below_autograd():
                return values(*args)
            return overload.redispatch(keys & torch._C._after_autograd_keyset, *args)

    differentiate = _formula(op, below, call).apply if op.gradients else None
    kernel = _autograd_kernel(op, below, differentiate)
    _library.impl(op.name, kernel, "Autograd", with_keyset=True)
    return overload


def _defined(op: Op, name: str, run: Callable[..., Any]) -> Any:
    """The op's schema under a name, with what makes its values and, of meta tensors, its specs."""
    _library.define(f"{name}{op.schema[len(op.name) :]}", tags=_TAGS)
    for device in DEVICES:
        _library.impl(name, run, device)
    overload = getattr(getattr(torch.ops, NAMESPACE), name).default
    # What fake tensors run too. `register_fake` would look for our source file for 10 ms.
    _library.impl(name, _meta_kernel(op, overload), "Meta")
    return overload


def _refuse_unknown_names(op: Op) -> None:
    """Gradients of what the op does not have, or from it: found here, not in a backward pass."""
    known = {*op.names, *op.output_names}
    known |= {GRAD + n for n in op.output_names} | {
        p + n for n in op.names for p in (NEEDS, STRIDES, SHAPE)
    }
    for gradient in op.gradients:
        unknown = sorted({*gradient.uses, *gradient.of} - known)
        if unknown:
            raise RegistrationError(
                f"a gradient of `{op.name}` by `{gradient.op}` names `{unknown[0]}`; it can name "
                f"{', '.join(sorted(known))}. Mend it in the op's spec."
                f"{did_you_mean(unknown[0], known)}"
            )


def _meta_kernel(op: Op, overload: Any) -> Callable[..., Any]:
    """The outputs without values, for sizes that may be symbols."""

    def meta(*given: Any) -> Any:
        offer(op, overload)  # whoever lowers a graph has traced it
        values = op.bind(given)
        args = tuple(zip(op.names, map(_spec, values), strict=True))
        device = op.device(values)
        outputs = tuple(
            torch.empty_strided(s.shape, s.strides, dtype=s.torch_dtype, device=device)
            for s in op.outputs(Problem(op.name, args))
        )
        return outputs if len(outputs) != 1 else outputs[0]

    return meta


def _spec(value: Any) -> Any:
    """A tensor's spec without asking for its address: it may have none."""
    if not isinstance(value, torch.Tensor):
        return value
    return TensorSpec(
        tuple(value.shape), tuple(value.stride()), str(value.dtype).removeprefix("torch.")
    )


def _autocast_kernel(op: Op, overload: Any, device: str) -> Callable[..., Any]:
    """The op on arguments cast as it declares, with autocast off."""
    off = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))

    def cast(name: str, value: Any, dtype: torch.dtype) -> Any:
        cast_it = isinstance(value, torch.Tensor) and value.dtype in op.dtypes
        return value.to(dtype) if cast_it and name not in op.own_dtypes else value

    def kernel(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(off):
            if op.autocast == "lower":
                dtype = torch.get_autocast_dtype(device.lower())
            else:
                dtype = next(v.dtype for v in args if isinstance(v, torch.Tensor))
            # torch drops defaults at the end
            return overload(*(cast(n, v, dtype) for n, v in zip(op.names, args, strict=False)))

    return kernel


def _completion(op: Op) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Fills in the defaults that torch drops at the end of a kernel's arguments."""
    defaults = tuple(p.default for p in op.signature.parameters.values())
    return lambda args: (*args, *defaults[len(args) :])


def _autograd_kernel(
    op: Op, below: Callable[..., Any], differentiate: Callable[..., Any] | None
) -> Callable[..., Any]:
    """The op with the gradients that it declares. The reference, which torch differentiates, where
    there are none, for an argument that none of them is of, in forward mode, and inside
    `torch.func`'s transforms (which take no formula in Python)."""
    covered = {name for gradient in op.gradients for name in gradient.of}
    arguments = [(a.name, "Tensor" in str(a.type)) for a in op.parsed.arguments]
    uncovered = [i for i, (n, tensor) in enumerate(arguments) if tensor and n not in covered]
    complete = _completion(op)

    def reference(args: tuple[Any, ...]) -> Any:
        values = complete(args)
        if not in_transform(VMAP):  # strides there are the batch's, and torch takes any
            op.validate(values)
        return op.reference(*values)

    def kernel(keys: Any, *args: Any) -> Any:
        if in_forward_mode():
            return reference(args)
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):
            return below(keys, *args)
        if (
            differentiate is None
            or torch._C._are_functorch_transforms_active()
            or (uncovered and torch._C._any_requires_grad(*(complete(args)[i] for i in uncovered)))
        ):
            return reference(args)
        return differentiate(keys, *args)

    return kernel


def _formula(
    op: Op, below: Callable[..., Any], call: Callable[[str], Callable[..., Any]]
) -> type[torch.autograd.Function]:
    """An op joined to the ops that compute its gradients."""
    complete = _completion(op)

    class Formula(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keys: Any, *args: Any) -> Any:
            result = below(keys, *args)
            names = (*op.names, *op.output_names)
            known = dict(zip(names, (*complete(args), *as_tuple(result)), strict=True))
            ctx.needs = [n for n, f in zip(op.names, ctx.needs_input_grad[1:], strict=False) if f]
            saved = saved_names(op.gradients, ctx.needs)
            for name in saved:
                if name.startswith(STRIDES):
                    known[name] = known[name.removeprefix(STRIDES)].stride()
                elif name.startswith(SHAPE):
                    known[name] = tuple(known[name.removeprefix(SHAPE)].shape)
            ctx.tensors = [name for name in saved if isinstance(known[name], torch.Tensor)]
            ctx.scalars = {name: known[name] for name in saved if name not in ctx.tensors}
            ctx.save_for_backward(*(known[name] for name in ctx.tensors))
            return result

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            known = {**ctx.scalars, **dict(zip(ctx.tensors, ctx.saved_tensors, strict=True))}
            known.update({GRAD + n: g for n, g in zip(op.output_names, grads, strict=True)})
            found: dict[str, torch.Tensor] = {}
            for gradient in op.gradients:
                if gradient.wanted(ctx.needs):
                    made = gradient.compute(call(gradient.op), known, ctx.needs)
                    found.update(zip(gradient.of, made, strict=True))
            given = op.names[: len(ctx.needs_input_grad) - 1]
            return (None, *(found[name] if name in ctx.needs else None for name in given))

    Formula.__name__ = f"{op.name}_gradients"
    return Formula
