"""What the contracts of ops on rows share: their refusals, and random tensors of a spec."""

from __future__ import annotations

import math

import torch

from gristmill.core.problem import TensorSpec
from gristmill.errors import InvalidInputError


def check_rows(op: str, name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor without a last dimension, or with one that is not dense."""
    if tensor.dim() == 0:
        raise InvalidInputError(
            f"`{name}` has shape (); `{op}` works along the last dimension and needs at least one. "
            f"Call `{name}.reshape(1)`."
        )
    # Of an empty tensor no stride matters, and `contiguous()` would change none.
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1 and tensor.numel() > 0:
        raise InvalidInputError(
            f"`{name}` has stride {tensor.stride(-1)} along its last dimension; `{op}` needs 1. "
            f"Call `{name}.contiguous()`."
        )


def check_dtype(op: str, name: str, tensor: torch.Tensor, x: torch.Tensor) -> None:
    """Refuse a tensor of another dtype than `x`."""
    if tensor.dtype != x.dtype:
        raise InvalidInputError(
            f"`{name}` has dtype {tensor.dtype} and `x` {x.dtype}; `{op}` needs one dtype. Call "
            f"`{name}.to({x.dtype})`."
        )


def check_shape(
    op: str, name: str, tensor: torch.Tensor, shape: tuple[int, ...], what: str
) -> None:
    """Refuse a tensor that is not `shape` (said as `what`)."""
    if tuple(tensor.shape) != shape:
        raise InvalidInputError(
            f"`{name}` has shape {tuple(tensor.shape)}; `{op}` needs {shape}, {what}. Pass a "
            "tensor of that shape."
        )


def check_like(
    op: str, name: str, tensor: torch.Tensor, x: torch.Tensor, shape: tuple[int, ...], what: str
) -> None:
    """Refuse a tensor that is not `shape` (said as `what`), of the dtype of `x` and dense along its
    last dimension."""
    check_shape(op, name, tensor, shape, what)
    check_dtype(op, name, tensor, x)
    check_rows(op, name, tensor)


def check_weight(op: str, weight: torch.Tensor, x: torch.Tensor, name: str = "weight") -> None:
    """Refuse a weight (or `name`) that is not a dense vector of the width and dtype of `x`."""
    width = x.shape[-1]
    if tuple(weight.shape) != (width,):
        raise InvalidInputError(
            f"`{name}` has shape {tuple(weight.shape)}; `{op}` needs ({width},), the last "
            "dimension of `x`. "
            f"Pass a {name} of that length, or None."
        )
    check_dtype(op, name, weight, x)
    if width > 1 and weight.stride(0) != 1:
        raise InvalidInputError(
            f"`{name}` has stride {weight.stride(0)}; `{op}` needs 1. Call `{name}.contiguous()`."
        )


def check_eps(op: str, eps: float) -> None:
    """Refuse an `eps` that is negative or not finite."""
    if not (math.isfinite(eps) and eps >= 0):
        raise InvalidInputError(
            f"`eps` is {eps}; `{op}` needs a finite number, 0 or more. Pass one such as 1e-6."
        )


def normal(spec: TensorSpec, generator: torch.Generator) -> torch.Tensor:
    """Normal values of a spec's shape and dtype, contiguous."""
    return torch.randn(
        spec.shape, generator=generator, device=generator.device, dtype=spec.torch_dtype
    )


def scale(spec: TensorSpec | None, generator: torch.Generator) -> torch.Tensor | None:
    """A weight around 1, or `None` where there is none."""
    return None if spec is None else spec.fill(1 + normal(spec, generator) / 4)


def sum_rows(values: torch.Tensor) -> torch.Tensor:
    """The sum over every dimension but the last."""
    return values.reshape(math.prod(values.shape[:-1]), values.shape[-1]).sum(0)
