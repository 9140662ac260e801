"""partial_rotary_emb_backward: the gradients of `partial_rotary_emb` (DeepSeek-V2, 2024): what was
turned is turned back, that of the one `k_pe` summed over the heads that it went to."""

from __future__ import annotations

import torch

from gristmill.core.op import Bounds, Cost, Op, Workload
from gristmill.core.problem import Axis, Problem, TensorSpec
from gristmill.core.registry import declare
from gristmill.errors import InvalidInputError
from gristmill.specs._rotary import (
    TABLE_DTYPES,
    angles,
    check_rows_of,
    check_tables,
    check_widths,
    from_pairs,
    pairs,
    rotation_bounds,
    tables,
    turned,
    vary,
)
from gristmill.specs._rows import check_dtype, normal
from gristmill.specs.partial_rotary_emb import (
    VARIANTS,
    Latent,
    axes_of,
    check_shape,
    cost_of,
    forms,
)
from gristmill.specs.partial_rotary_emb import problem_of as forward_problem_of
from gristmill.specs.partial_rotary_emb import sized as forward_sized

NAME = "partial_rotary_emb_backward"


def check(
    grad_q_out: torch.Tensor,
    grad_kv_out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rotary_dim: int,
    value_dim: int,
    interleaved: bool = True,
) -> None:
    """The contract beyond types and devices.

    Raises:
        InvalidInputError: gradients of other ranks or sizes than `partial_rotary_emb` returns, not
            dense in a head; columns that a head does not have; tables that do not fit.
    """
    del interleaved
    check_shape(NAME, "grad_q_out", grad_q_out, 4, "batch, positions, heads, columns")
    check_shape(NAME, "grad_kv_out", grad_kv_out, 5, "batch, positions, 2, heads, columns")
    check_dtype(NAME, "grad_kv_out", grad_kv_out, grad_q_out)
    batch, length, count, width = grad_q_out.shape
    wanted = (batch, length, 2, count, width)
    if tuple(grad_kv_out.shape) != wanted:
        raise InvalidInputError(
            f"`grad_kv_out` has shape {tuple(grad_kv_out.shape)}; `{NAME}` needs {wanted}, the "
            "shape of what `partial_rotary_emb` returns. Pass a tensor of that shape."
        )
    for name, columns in (("rotary_dim", rotary_dim), ("value_dim", value_dim)):
        if not 0 <= columns <= width:
            raise InvalidInputError(
                f"`{name}` is {columns} and a head has {width} columns; `{NAME}` needs 0 to "
                f"{width}. Pass that of the forward call."
            )
    check_tables(NAME, cos, sin)
    check_widths(NAME, width, cos.shape[-1], rotary_dim)
    check_rows_of(NAME, cos, batch, length)


def unpacked(
    grad_q_out: torch.Tensor,
    grad_kv_out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rotary_dim: int,
    value_dim: int,
    interleaved: bool,
    size: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The results, float32 inside (float64 for float64), one rounding (`size`: see `turned`)."""
    given = grad_q_out.dtype
    dtype = torch.promote_types(given, torch.float32)
    nope = grad_q_out.shape[-1] - rotary_dim
    cos, sin = (angles(t, rotary_dim, interleaved=False).to(dtype) for t in (cos, sin))

    def back(halves: torch.Tensor) -> torch.Tensor:
        made = turned(*pairs(halves, interleaved=False), cos, -sin, size)
        return from_pairs(*made, interleaved).to(given)

    key, value = grad_kv_out.unbind(2)
    pe = key[..., nope:].to(dtype)
    grad_k_pe = back((pe.abs() if size else pe).sum(2, keepdim=True))
    grad_q = torch.cat((grad_q_out[..., :nope], back(grad_q_out[..., nope:].to(dtype))), -1)
    grad_kv = torch.cat((key[..., :nope], value[..., :value_dim]), -1)
    return grad_q.contiguous(), grad_k_pe.contiguous(), grad_kv.contiguous()


def reference(
    grad_q_out: torch.Tensor,
    grad_kv_out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rotary_dim: int,
    value_dim: int,
    interleaved: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """float32 inside (float64 for float64), one rounding, contiguous results."""
    return unpacked(grad_q_out, grad_kv_out, cos, sin, rotary_dim, value_dim, interleaved)


def magnitude(
    grad_q_out: torch.Tensor,
    grad_kv_out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rotary_dim: int,
    value_dim: int,
    interleaved: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sums of the terms' absolute values."""
    given = (grad_q_out, grad_kv_out, cos, sin, rotary_dim, value_dim, interleaved)
    grad_q, grad_k_pe, grad_kv = unpacked(*given, size=True)
    return grad_q.abs(), grad_k_pe, grad_kv.abs()


def latent(problem: Problem) -> Latent:
    """The sizes of a backward problem."""
    batch, length, count, width = problem["grad_q_out"].shape
    rotary = problem["rotary_dim"]
    return Latent(batch * length, count, width - rotary, rotary // 2, problem["value_dim"])


def outputs(problem: Problem) -> tuple[TensorSpec, ...]:
    of, (batch, length, count, width) = latent(problem), problem["grad_q_out"].shape
    shapes = (
        (batch, length, count, width),
        (batch, length, 1, problem["rotary_dim"]),
        (batch, length, count, of.nope + of.value),
    )
    return tuple(TensorSpec.contiguous(s, problem["grad_q_out"].dtype) for s in shapes)


def axes(problem: Problem) -> tuple[Axis, ...]:
    return axes_of(latent(problem))


def cost(problem: Problem) -> Cost:
    of = latent(problem)
    return cost_of(of, problem["cos"], problem["grad_q_out"].itemsize, of.value)


def bounds(problem: Problem) -> tuple[Bounds, Bounds, Bounds]:
    grad = problem["grad_q_out"]
    once = rotation_bounds(grad)
    return once, rotation_bounds(grad, max(1, grad.shape[2])), once


def inputs(
    problem: Problem, generator: torch.Generator, variant: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, int, bool]:
    """Gradients of the problem's layout and tables of random angles. Variants: `normal`, and those
    of `_rotary.vary`."""
    specs = (problem["grad_q_out"], problem["grad_kv_out"])
    grad_q_out, grad_kv_out = (x.fill(vary(normal(x, generator), variant)) for x in specs)
    scalars = (problem["rotary_dim"], problem["value_dim"], problem["interleaved"])
    turns = tables(problem["cos"], problem["sin"], scalars[0], False, generator)
    return grad_q_out, grad_kv_out, *turns, *scalars


def of_forward(problem: Problem) -> Problem:
    """The backward of a contiguous forward problem."""
    q, k_pe, kv = (problem[name] for name in ("q", "k_pe", "kv"))
    batch, length, count, width = q.shape
    args = {
        "grad_q_out": TensorSpec.contiguous(q.shape, q.dtype),
        "grad_kv_out": TensorSpec.contiguous((batch, length, 2, count, width), q.dtype),
        "cos": problem["cos"],
        "sin": problem["sin"],
        "rotary_dim": k_pe.shape[-1],
        "value_dim": kv.shape[-1] - width + k_pe.shape[-1],
        "interleaved": problem["interleaved"],
    }
    return Problem(NAME, tuple(args.items()))


WORKLOADS = (
    Workload("deepseek-v3-1x4096", of_forward(forward_problem_of(1, 4096, 128))),
    Workload("deepseek-v2-lite-2x2048", of_forward(forward_problem_of(2, 2048, 16))),
    Workload(
        "deepseek-v2-lite-2x2048-fp32", of_forward(forward_problem_of(2, 2048, 16, dtype="float32"))
    ),
    Workload("odd-3x341", of_forward(forward_problem_of(3, 341, 5, (33, 18, 29)))),
)

OP = declare(
    Op(
        schema=f"{NAME}(Tensor grad_q_out, Tensor grad_kv_out, Tensor cos, Tensor sin, "
        "int rotary_dim, int value_dim, bool interleaved=True) "
        "-> (Tensor grad_q, Tensor grad_k_pe, Tensor grad_kv)",
        check=check,
        reference=reference,
        magnitude=magnitude,
        inputs=inputs,
        variants=VARIANTS,
        outputs=outputs,
        axes=axes,
        cost=cost,
        bounds=bounds,
        workloads=WORKLOADS,
        own_dtypes=TABLE_DTYPES,
        sized=lambda s, dtype: of_forward(forward_sized(dict(s), dtype)),
        forms=forms,
    )
)
