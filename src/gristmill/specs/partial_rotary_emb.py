"""partial_rotary_emb: queries and keys of multi-head latent attention (DeepSeek-V2, 2024), of which
the last columns of a head carry the position (Su et al., "RoFormer", 2021), keys and values packed.

    q_out = [q_nope, turned(q_pe)]
    kv_out[0] = [k_nope, turned(k_pe)], the one k_pe for every head
    kv_out[1] = [v, 0]
"""

from __future__ import annotations

import torch

from gristmill.core.gradient import Gradient, dense
from gristmill.core.op import Bounds, Cost, Op, Workload
from gristmill.core.problem import Axis, Problem, TensorSpec
from gristmill.core.registry import declare
from gristmill.errors import InvalidInputError
from gristmill.record import record
from gristmill.specs._rotary import (
    TABLE_DTYPES,
    angles,
    check_rows_of,
    check_tables,
    check_widths,
    in_two,
    pairs,
    rotation_bounds,
    tables,
    turned,
    vary,
)
from gristmill.specs._rows import check_dtype, check_rows, normal

NAME = "partial_rotary_emb"
VARIANTS = ("normal", "large", "zeros", "nonfinite")


def check_shape(op: str, name: str, x: torch.Tensor, dims: int, what: str) -> None:
    """Refuse a tensor of another rank than `dims`, or not dense along its last dimension."""
    if x.dim() != dims:
        raise InvalidInputError(
            f"`{name}` has shape {tuple(x.shape)}; `{op}` takes ({what}). Call "
            f"`{name}.reshape(...)`."
        )
    check_rows(op, name, x)


def check(
    q: torch.Tensor,
    k_pe: torch.Tensor,
    kv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool = True,
) -> None:
    """The contract beyond types and devices.

    Raises:
        InvalidInputError: tensors that are not 4-D, not dense in a head, or whose sizes do not fit;
            an odd number of columns to turn; values wider than a query; tables of another length or
            width, or unlike each other.
    """
    del interleaved
    sizes = "batch, positions, heads, columns"
    for name, x in (("q", q), ("k_pe", k_pe), ("kv", kv)):
        check_shape(NAME, name, x, 4, sizes)
        check_dtype(NAME, name, x, q)
    batch, length, count, width = q.shape
    rotary = k_pe.shape[-1]
    if k_pe.shape[:3] != (batch, length, 1) or rotary > width:
        raise InvalidInputError(
            f"`k_pe` has shape {tuple(k_pe.shape)} and `q` {tuple(q.shape)}; `{NAME}` needs "
            f"({batch}, {length}, 1, at most {width}): the last columns of a key, for all heads. "
            "Call `k_pe.unsqueeze(2)`, or pass such tensors."
        )
    nope = width - rotary
    if kv.shape[:3] != q.shape[:3] or not nope <= kv.shape[-1] <= nope + width:
        raise InvalidInputError(
            f"`kv` has shape {tuple(kv.shape)} and `q` {tuple(q.shape)}; `{NAME}` needs "
            f"({batch}, {length}, {count}, {nope} to {nope + width}): the first {nope} columns of "
            "a key, and values that are no wider than a query. Pass such tensors."
        )
    check_tables(NAME, cos, sin)
    check_widths(NAME, rotary, cos.shape[-1], rotary)
    check_rows_of(NAME, cos, batch, length)


def packed(
    q: torch.Tensor,
    k_pe: torch.Tensor,
    kv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool,
    size: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The results, float32 inside (float64 for float64), one rounding (`size`: see `turned`)."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    width, rotary = q.shape[-1], k_pe.shape[-1]
    nope = width - rotary
    cos, sin = (angles(t, rotary, interleaved=False).to(dtype) for t in (cos, sin))

    def halves(x: torch.Tensor) -> torch.Tensor:
        """The pairs of `x` turned, all first values before all second ones."""
        made = turned(*pairs(x.to(dtype), interleaved), cos, sin, size)
        return torch.cat(made, -1).to(q.dtype)

    q_pe, key_pe = halves(q[..., nope:]), halves(k_pe).expand(*q.shape[:3], rotary)
    value = torch.nn.functional.pad(kv[..., nope:], (0, width + nope - kv.shape[-1]))
    key = torch.cat((kv[..., :nope], key_pe), -1)
    return torch.cat((q[..., :nope], q_pe), -1), torch.stack((key, value), 2)


def reference(
    q: torch.Tensor,
    k_pe: torch.Tensor,
    kv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 inside (float64 for float64), one rounding, contiguous results."""
    return packed(q, k_pe, kv, cos, sin, interleaved)


def magnitude(
    q: torch.Tensor,
    k_pe: torch.Tensor,
    kv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of the terms' absolute values."""
    q_out, kv_out = packed(q, k_pe, kv, cos, sin, interleaved, size=True)
    return q_out.abs(), kv_out.abs()


@record
class Latent:
    """The sizes of a problem: positions of all sequences, heads, and of a head the columns without
    a position, the pairs with one, and the columns of a value."""

    tokens: int
    heads: int
    nope: int
    pairs: int
    value: int

    @property
    def width(self) -> int:
        """Of a query, and of what is packed."""
        return self.nope + 2 * self.pairs


def latent(problem: Problem) -> Latent:
    """The sizes of a forward problem."""
    q, k_pe, kv = (problem[name].shape for name in ("q", "k_pe", "kv"))
    nope = q[-1] - k_pe[-1]
    return Latent(q[0] * q[1], q[2], nope, k_pe[-1] // 2, kv[-1] - nope)


def axes_of(of: Latent) -> tuple[Axis, ...]:
    """The axes of either direction."""
    sizes = {"pairs": of.pairs, "rest": of.nope, "heads": of.heads, "value": of.value}
    return (Axis("tokens", of.tokens, exact=False), *(Axis(n, s) for n, s in sizes.items()))


def outputs(problem: Problem) -> tuple[TensorSpec, ...]:
    q = problem["q"]
    batch, length, count, width = q.shape
    kv_out = (batch, length, 2, count, width)
    return TensorSpec.contiguous(q.shape, q.dtype), TensorSpec.contiguous(kv_out, q.dtype)


def axes(problem: Problem) -> tuple[Axis, ...]:
    return axes_of(latent(problem))


def cost_of(of: Latent, cos: TensorSpec, itemsize: int, packed_value: int) -> Cost:
    """Of either direction, with that many columns of a packed value: all that one side has and the
    other, and half of the tables."""
    rows = cos.numel // max(1, cos.shape[-1])
    heads = of.tokens * of.heads
    columns = 3 * of.width + of.nope + of.value + packed_value
    return Cost(
        flops=6 * of.pairs * (heads + of.tokens),
        size_bytes=(heads * columns + 2 * of.tokens * of.pairs) * itemsize
        + 2 * rows * of.pairs * cos.itemsize,
    )


def cost(problem: Problem) -> Cost:
    of = latent(problem)
    return cost_of(of, problem["cos"], problem["q"].itemsize, of.width)


def bounds(problem: Problem) -> Bounds:
    return rotation_bounds(problem["q"])


def inputs(
    problem: Problem, generator: torch.Generator, variant: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, bool]:
    """Values of the problem's layout and tables of random angles. Variants: `normal`, and those of
    `_rotary.vary`."""
    specs = [problem[name] for name in ("q", "k_pe", "kv")]
    q, k_pe, kv = (x.fill(vary(normal(x, generator), variant)) for x in specs)
    turns = tables(problem["cos"], problem["sin"], specs[1].shape[-1], False, generator)
    return q, k_pe, kv, *turns, problem["interleaved"]


def forms(problem: Problem) -> dict[str, Problem]:
    """Two sequences, pairs half a width apart on both sides, and one table of half the width for
    both, in their dtype."""
    own = {n: x for n, x in problem.tensors.items() if n not in TABLE_DTYPES}
    first = in_two(next(iter(own.values())))
    half = TensorSpec.contiguous((first.shape[1], problem["cos"].shape[-1] // 2), first.dtype)
    args = {
        **dict(problem.args),
        **{name: in_two(x) for name, x in own.items()},
        "cos": half,
        "sin": half,
        "interleaved": False,
    }
    return {"halves": Problem(problem.op, tuple(args.items()))}


def problem_of(
    batch: int,
    length: int,
    count: int,
    widths: tuple[int, int, int] = (128, 64, 128),
    dtype: str = "bfloat16",
) -> Problem:
    """The problem of contiguous tensors with float32 tables; `widths`: of a head the columns
    without a position, with one, and of a value."""
    nope, rotary, value = widths
    table = TensorSpec.contiguous((batch, length, rotary), "float32")
    args = {
        "q": TensorSpec.contiguous((batch, length, count, nope + rotary), dtype),
        "k_pe": TensorSpec.contiguous((batch, length, 1, rotary), dtype),
        "kv": TensorSpec.contiguous((batch, length, count, nope + value), dtype),
        "cos": table,
        "sin": table,
        "interleaved": True,
    }
    return Problem(NAME, tuple(args.items()))


def sized(sizes: dict[str, int], dtype: str) -> Problem:
    """The problem of sizes by axis name; values at most as wide as a query."""
    tokens, rotary = sizes.get("tokens", 64), 2 * sizes.get("pairs", 16)
    nope, count = sizes.get("rest", 32), sizes.get("heads", 2)
    value = min(sizes.get("value", nope), nope + rotary)
    return problem_of(1, tokens, count, (nope, rotary, value), dtype)


WORKLOADS = (
    *(Workload(f"deepseek-v3-m{m}", problem_of(m, 1, 128)) for m in (1, 16, 64)),
    Workload("deepseek-v3-1x4096", problem_of(1, 4096, 128)),
    Workload("deepseek-v2-lite-2x2048", problem_of(2, 2048, 16)),
    Workload("deepseek-v2-lite-2x2048-fp16", problem_of(2, 2048, 16, dtype="float16")),
    Workload("deepseek-v2-lite-2x2048-fp32", problem_of(2, 2048, 16, dtype="float32")),
    Workload("minicpm3-1x4096", problem_of(1, 4096, 40, (64, 32, 64))),
    Workload("odd-3x341", problem_of(3, 341, 5, (33, 18, 29))),
)

OP = declare(
    Op(
        schema=f"{NAME}(Tensor q, Tensor k_pe, Tensor kv, Tensor cos, Tensor sin, "
        "bool interleaved=True) -> (Tensor q_out, Tensor kv_out)",
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
        sized=lambda s, dtype: sized(dict(s), dtype),
        forms=forms,
        gradients=(
            Gradient(
                f"{NAME}_backward",
                ("q", "k_pe", "kv"),
                lambda grad_q_out, grad_kv_out, cos, sin, interleaved, shape_k_pe, shape_kv: (
                    dense(grad_q_out),
                    dense(grad_kv_out),
                    cos,
                    sin,
                    shape_k_pe[-1],
                    shape_kv[-1] - grad_q_out.shape[-1] + shape_k_pe[-1],
                    interleaved,
                ),
            ),
        ),
    )
)
