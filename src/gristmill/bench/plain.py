"""The line that stands in a user's code today, by op: what a benchmark's column `torch` calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from gristmill.core.op import Op, as_tuple
from gristmill.specs._rotary import angles, from_pairs, pairs, rotated_width

Call = Callable[[], Any]
Tensors = torch.Tensor | tuple[torch.Tensor, ...]


def plain_call(op: Op, values: tuple[Any, ...]) -> tuple[str, Call]:
    """What a user calls without us, under the settings of their process, and its name: fast ways
    that leave the op's bounds (TF32, reduced-precision sums) included. Of an op that is not here,
    the reference.

    A backward pass is torch's own, through a forward pass that was made before, on these values.
    """
    if op.name not in _PLAIN:
        return "the op's reference", partial(op.reference, *values)
    what, prepare = _PLAIN[op.name]
    return what, prepare(*values)


def _rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    return functional.rms_norm(x, x.shape[-1:], weight, eps)


def _rms_norm_backward(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    weight_grad: bool,
) -> Call:
    leaf, learned = _leaf(x), None if weight is None else _leaf(weight, weight_grad)
    with torch.enable_grad():
        out = _rms_norm(leaf, learned, eps)
    return _backward(out, (leaf, learned), grad_out)


def _relu2(gate: torch.Tensor) -> torch.Tensor:
    return functional.relu(gate).square()


def _layer_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _layer_norm_backward(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    weight_grad: bool,
    bias_grad: bool,
) -> Call:
    leaf, learned = _leaf(x), None if weight is None else _leaf(weight, weight_grad)
    bias = _leaf(x.new_zeros(x.shape[-1:]), bias_grad)
    with torch.enable_grad():
        out = _layer_norm(leaf, learned, bias, eps)
    return _backward(out, (leaf, learned, bias), grad_out)


def _add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    total = x + residual
    return _layer_norm(total, *rest), total


def _add_layer_norm_backward(
    grad_out: torch.Tensor,
    grad_new_residual: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    weight_grad: bool,
    bias_grad: bool,
) -> Call:
    """Through a sum with zeros, whose gradient torch gives both terms of."""
    leaf, learned = _leaf(x), None if weight is None else _leaf(weight, weight_grad)
    bias = _leaf(x.new_zeros(x.shape[-1:]), bias_grad)
    with torch.enable_grad():
        made = _add_layer_norm(leaf, torch.zeros_like(x), learned, bias, eps)
    return _backward(made, (leaf, learned, bias), (grad_out, grad_new_residual))


def _gelu(x: torch.Tensor, approximate: str) -> torch.Tensor:
    return functional.gelu(x, approximate=approximate)


def _gelu_backward(grad_out: torch.Tensor, x: torch.Tensor, approximate: str) -> Call:
    leaf = _leaf(x)
    with torch.enable_grad():
        out = _gelu(leaf, approximate)
    call = _backward(out, (leaf,), grad_out)
    return lambda: call()[0]


def _gated(activation: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def call(x: torch.Tensor, up: torch.Tensor | None, *given: str) -> torch.Tensor:
        gate, other = x.chunk(2, dim=-1) if up is None else (x, up)
        return activation(gate, *given) * other

    return call


def _gated_backward(activation: Callable[..., torch.Tensor]) -> Callable[..., Call]:
    def prepare(
        grad_out: torch.Tensor, x: torch.Tensor, up: torch.Tensor | None, *given: str
    ) -> Call:
        leaf, other = _leaf(x), None if up is None else _leaf(up)
        with torch.enable_grad():
            out = _gated(activation)(leaf, other, *given)
        return _backward(out, (leaf, other), grad_out)

    return prepare


def _turned(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    """As transformers writes it: the columns that the tables have, the others as they are."""
    width = cos.shape[-1]
    first, second = pairs(x[..., :width], interleaved)
    out = x[..., :width] * cos + from_pairs(-second, first, interleaved) * sin
    return out if width == x.shape[-1] else torch.cat((out, x[..., width:]), -1)


def _tables(
    cos: torch.Tensor,
    sin: torch.Tensor,
    x: torch.Tensor,
    width: int,
    interleaved: bool,
    position_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole tables in the dtype of `x`, a row for each position: as a model makes them once for all
    of its layers, outside of what is timed."""

    def whole(table: torch.Tensor) -> torch.Tensor:
        half = angles(table, width, interleaved, position_ids)
        return from_pairs(half, half, interleaved).to(x.dtype)

    return whole(cos), whole(sin)


def _rotary(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor | None,
    interleaved: bool,
    rotary_dim: int | None,
) -> Call:
    width = rotated_width(q.shape[-1], cos.shape[-1], rotary_dim)
    both = _tables(cos, sin, q, width, interleaved, position_ids)
    return lambda: (_turned(q, *both, interleaved), _turned(k, *both, interleaved))


def _rotary_backward(grad_q_out: torch.Tensor, grad_k_out: torch.Tensor, *rest: Any) -> Call:
    leaves = _leaf(torch.zeros_like(grad_q_out)), _leaf(torch.zeros_like(grad_k_out))
    with torch.enable_grad():
        out = _rotary(*leaves, *rest)()
    return _backward(out, leaves, (grad_q_out, grad_k_out))


def _partial_rotary(
    q: torch.Tensor,
    k_pe: torch.Tensor,
    kv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool,
) -> Call:
    rotary = k_pe.shape[-1]
    nope = q.shape[-1] - rotary
    both = _tables(cos, sin, q, rotary, interleaved=False)

    def turned(x: torch.Tensor) -> torch.Tensor:
        apart = torch.cat(pairs(x, interleaved), -1) if interleaved else x
        return _turned(apart, *both, False)

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        query = torch.cat((q[..., :nope], turned(q[..., nope:])), -1)
        k_turned = turned(k_pe).expand(*q.shape[:3], rotary)
        key = torch.cat((kv[..., :nope], k_turned), -1)
        value = functional.pad(kv[..., nope:], (0, q.shape[-1] + nope - kv.shape[-1]))
        return query, torch.stack((key, value), 2)

    return call


def _partial_rotary_backward(
    grad_q_out: torch.Tensor,
    grad_kv_out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rotary_dim: int,
    value_dim: int,
    interleaved: bool,
) -> Call:
    *sizes, count, width = grad_q_out.shape
    shapes = (count, width), (1, rotary_dim), (count, width - rotary_dim + value_dim)
    q, k_pe, kv = (_leaf(grad_q_out.new_zeros((*sizes, *shape))) for shape in shapes)
    with torch.enable_grad():
        out = _partial_rotary(q, k_pe, kv, cos, sin, interleaved)()
    return _backward(out, (q, k_pe, kv), (grad_q_out, grad_kv_out))


def _leaf(tensor: torch.Tensor, needed: bool = True) -> torch.Tensor:
    return tensor.detach().requires_grad_(needed)


def _backward(out: Tensors, leaves: tuple[torch.Tensor | None, ...], grad_out: Tensors) -> Call:
    """The gradients of `leaves`; of one that needs none, an empty tensor (as our ops have it)."""
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]

    empty = as_tuple(out)[0].new_empty(0)

    def call() -> tuple[torch.Tensor, ...]:
        found = iter(torch.autograd.grad(out, wanted, grad_out, retain_graph=True))
        return tuple(
            next(found) if leaf is not None and leaf.requires_grad else empty for leaf in leaves
        )

    return call


def _called(function: Callable[..., Any]) -> Callable[..., Call]:
    return lambda *values: partial(function, *values)


_PLAIN: dict[str, tuple[str, Callable[..., Call]]] = {
    "add_layer_norm": ("torch.nn.functional.layer_norm of x + residual", _called(_add_layer_norm)),
    "add_layer_norm_backward": ("autograd of layer_norm of x + residual", _add_layer_norm_backward),
    "layer_norm": ("torch.nn.functional.layer_norm", _called(_layer_norm)),
    "layer_norm_backward": ("autograd of torch.nn.functional.layer_norm", _layer_norm_backward),
    "apply_rotary_pos_emb": ("q * cos + rotate_half(q) * sin", _rotary),
    "apply_rotary_pos_emb_backward": (
        "autograd of q * cos + rotate_half(q) * sin",
        _rotary_backward,
    ),
    "partial_rotary_emb": ("rotate_half and torch.cat", _partial_rotary),
    "partial_rotary_emb_backward": (
        "autograd of rotate_half and torch.cat",
        _partial_rotary_backward,
    ),
    "matmul": ("torch.matmul", _called(lambda a, b, *_: torch.matmul(a, b))),
    "rms_norm": ("torch.nn.functional.rms_norm", _called(_rms_norm)),
    "rms_norm_backward": ("autograd of torch.nn.functional.rms_norm", _rms_norm_backward),
    "gelu": ("torch.nn.functional.gelu", _called(_gelu)),
    "gelu_backward": ("autograd of torch.nn.functional.gelu", _gelu_backward),
    "gelu_and_mul": ("torch.nn.functional.gelu(gate) * up", _called(_gated(_gelu))),
    "gelu_and_mul_backward": ("autograd of gelu(gate) * up", _gated_backward(_gelu)),
    "relu2_and_mul": ("torch.relu(gate).square() * up", _called(_gated(_relu2))),
    "relu2_and_mul_backward": ("autograd of relu(gate).square() * up", _gated_backward(_relu2)),
    "silu_and_mul": ("torch.nn.functional.silu(gate) * up", _called(_gated(functional.silu))),
    "silu_and_mul_backward": ("autograd of silu(gate) * up", _gated_backward(functional.silu)),
}
