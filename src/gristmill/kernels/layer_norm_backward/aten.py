"""ATen's kernels for `layer_norm`: the forward's for the moments, then the backward's."""

from __future__ import annotations

import torch

from gristmill.core.registry import register
from gristmill.specs.layer_norm_backward import OP


def _call(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    weight_grad: bool,
    bias_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # On a CPU the moments would be of x's dtype.
    wide = x.dtype if x.is_cuda else torch.float32
    shape, empty = x.shape[-1:], x.new_empty((0,))
    grad_out, x = grad_out.to(wide), x.to(wide)
    vector = None if weight is None else weight.to(wide)
    _, mean, rstd = torch.native_layer_norm(x, shape, vector, None, eps)
    bias = x.new_empty(shape) if bias_grad else None  # its values are not asked for
    mask = [True, vector is not None and weight_grad, bias_grad]
    grads = torch.ops.aten.native_layer_norm_backward(
        grad_out, x, shape, mean, rstd, vector, bias, mask
    )
    grad_x, grad_weight, grad_bias = (
        empty if grad is None or not wanted else grad.to(empty.dtype).contiguous()
        for grad, wanted in zip(grads, mask, strict=True)
    )
    return grad_x, grad_weight, grad_bias


layer_norm_backward = register(OP, "aten", _call, kind="vendor")
