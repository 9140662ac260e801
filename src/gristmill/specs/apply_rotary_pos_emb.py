"""apply_rotary_pos_emb: queries and keys turned by their positions' angles (Su et al., "RoFormer",
2021), of each pair `(a, b)` of a head's columns

    a' = a * cos - b * sin
    b' = b * cos + a * sin
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from gristmill.core.gradient import Gradient, dense
from gristmill.core.op import Bounds, Cost, Op, Workload
from gristmill.core.problem import Axis, Problem, TensorSpec
from gristmill.core.registry import declare
from gristmill.errors import InvalidInputError
from gristmill.record import record
from gristmill.specs._rotary import (
    INTEGERS,
    TABLE_DTYPES,
    angles,
    check_positions,
    check_rows_of,
    check_tables,
    check_widths,
    from_pairs,
    in_two,
    pairs,
    rotated_width,
    rotation_bounds,
    tables,
    turned,
    vary,
)
from gristmill.specs._rows import check_dtype, check_rows, normal

NAME = "apply_rotary_pos_emb"
OWN_DTYPES = {**TABLE_DTYPES, "position_ids": INTEGERS}
VARIANTS = ("normal", "large", "zeros", "nonfinite")


def check_operands(
    op: str,
    operands: tuple[tuple[str, torch.Tensor], tuple[str, torch.Tensor]],
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor | None,
    rotary_dim: int | None,
) -> None:
    """Refuse what is no queries, keys (with their names), tables and positions that fit."""
    (first, q), (second, k) = operands
    for name, x in operands:
        if x.dim() != 4:
            raise InvalidInputError(
                f"`{name}` has shape {tuple(x.shape)}; `{op}` takes (batch, positions, heads, "
                f"head_dim). Call `{name}.reshape(...)`, or `{name}.transpose(1, 2)` where heads "
                "come first."
            )
        check_rows(op, name, x)
    check_dtype(op, second, k, q)
    batch, length, _, head_dim = q.shape
    if (k.shape[0], k.shape[1], k.shape[3]) != (batch, length, head_dim):
        raise InvalidInputError(
            f"`{second}` has shape {tuple(k.shape)} and `{first}` {tuple(q.shape)}; `{op}` needs "
            "all sizes equal but the number of heads. Pass such tensors."
        )
    check_tables(op, cos, sin)
    check_widths(op, head_dim, cos.shape[-1], rotary_dim)
    if position_ids is None:
        check_rows_of(op, cos, batch, length)
    else:
        check_positions(op, position_ids, cos, batch, length)


def check(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    interleaved: bool = False,
    rotary_dim: int | None = None,
) -> None:
    """The contract beyond types and devices.

    Raises:
        InvalidInputError: `q` or `k` that are not 4-D, not dense in a head, or differ in more than
            heads; an odd number of columns to turn; tables of another length or width, or unlike
            each other; positions of another shape.
    """
    del interleaved
    check_operands(NAME, (("q", q), ("k", k)), cos, sin, position_ids, rotary_dim)


def rotated(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool,
    width: int,
    size: bool = False,
) -> torch.Tensor:
    """`x` with its first `width` columns turned by these angles (`size`: see `turned`)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    first, second = pairs(x[..., :width].to(dtype), interleaved)
    made = turned(first, second, cos.to(dtype), sin.to(dtype), size)
    head = from_pairs(*made, interleaved).to(x.dtype)
    return torch.cat((head, x[..., width:]), -1).contiguous()


def both(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor | None,
    interleaved: bool,
    rotary_dim: int | None,
    sign: int = 1,
    size: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rotated` queries and keys, by the tables' angles times `sign`."""
    width = rotated_width(q.shape[-1], cos.shape[-1], rotary_dim)
    cosines, sines = (angles(t, width, interleaved, position_ids) for t in (cos, sin))
    q_out, k_out = (rotated(x, cosines, sign * sines, interleaved, width, size) for x in (q, k))
    return q_out, k_out


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    interleaved: bool = False,
    rotary_dim: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 inside (float64 for float64), one rounding, contiguous results."""
    return both(q, k, cos, sin, position_ids, interleaved, rotary_dim)


def magnitude(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    interleaved: bool = False,
    rotary_dim: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of the terms' absolute values."""
    q_out, k_out = both(q, k, cos, sin, position_ids, interleaved, rotary_dim, size=True)
    return q_out.abs(), k_out.abs()


@record
class Heads:
    """What a problem of either direction turns.

    Attributes:
        q, k: as the schema has them, or their gradients.
        tokens: positions of all sequences.
        pairs, rest: of a head, the pairs of columns to turn, and the columns behind them.
    """

    q: TensorSpec
    k: TensorSpec
    tokens: int
    pairs: int
    rest: int


def heads(problem: Problem) -> Heads:
    """The sizes of a problem, forward or backward."""
    (_, q), (_, k) = problem.args[:2]
    assert isinstance(q, TensorSpec)
    assert isinstance(k, TensorSpec)
    width = rotated_width(q.shape[-1], problem["cos"].shape[-1], problem["rotary_dim"])
    return Heads(q, k, q.shape[0] * q.shape[1], width // 2, q.shape[-1] - width)


def outputs(problem: Problem) -> tuple[TensorSpec, ...]:
    of = heads(problem)
    return tuple(TensorSpec.contiguous(x.shape, x.dtype) for x in (of.q, of.k))


def axes(problem: Problem) -> tuple[Axis, ...]:
    of = heads(problem)
    sizes = {"pairs": of.pairs, "rest": of.rest, "heads": of.q.shape[2], "kv_heads": of.k.shape[2]}
    return (Axis("tokens", of.tokens, exact=False), *(Axis(n, s) for n, s in sizes.items()))


def cost(problem: Problem) -> Cost:
    """Of tables, the rows that positions can name, and of each the half that is read."""
    of, cos, ids = heads(problem), problem["cos"], problem["position_ids"]
    rows = cos.numel // max(1, cos.shape[-1])
    read = 2 * min(rows, of.tokens) * of.pairs * cos.itemsize
    turned_pairs = of.tokens * (of.q.shape[2] + of.k.shape[2]) * of.pairs
    return Cost(
        flops=6 * turned_pairs,
        size_bytes=2 * (of.q.size_bytes + of.k.size_bytes)
        + read
        + (0 if ids is None else ids.size_bytes),
    )


def bounds(problem: Problem) -> Bounds:
    return rotation_bounds(heads(problem).q)


def inputs(
    problem: Problem, generator: torch.Generator, variant: str
) -> tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, bool, int | None
]:
    """Values of the problem's layout and tables of random angles. Variants: `normal`, and those of
    `_rotary.vary`."""
    of, cos, ids = heads(problem), problem["cos"], problem["position_ids"]
    q, k = (x.fill(vary(normal(x, generator), variant)) for x in (of.q, of.k))
    made = tables(cos, problem["sin"], 2 * of.pairs, problem["interleaved"], generator)
    positions = None
    if ids is not None:
        drawn = torch.randint(
            max(1, cos.shape[0]), ids.shape, generator=generator, device=generator.device
        )
        positions = ids.fill(drawn.to(ids.torch_dtype))
    return q, k, *made, positions, problem["interleaved"], problem["rotary_dim"]


def forms(problem: Problem) -> dict[str, Problem]:
    """Two sequences, pairs of neighbours, and positions that pick rows of tables of half the width,
    in the dtype of `q`."""
    of = heads(problem)
    names = [name for name, _ in problem.args[:2]]
    batch, length = in_two(of.q).shape[:2]
    table = TensorSpec.contiguous((length + 3, of.pairs), of.q.dtype)
    args = {
        **dict(problem.args),
        **dict(zip(names, map(in_two, (of.q, of.k)), strict=True)),
        "cos": table,
        "sin": table,
        "position_ids": TensorSpec.contiguous((batch, length), "int64"),
        "interleaved": True,
    }
    if of.rest:  # else half a table could be a whole one of fewer columns
        args["rotary_dim"] = 2 * of.pairs
    return {"neighbours": Problem(problem.op, tuple(args.items()))}


def problem_of(
    batch: int,
    length: int,
    heads_each: tuple[int, int],
    head_dim: int,
    dtype: str = "bfloat16",
    rotary_dim: int | None = None,
    *,
    names: tuple[str, str] = ("q", "k"),
    tables_of: str = "float32",
    rows: int | None = None,
    each: bool = False,
    interleaved: bool = False,
) -> Problem:
    """The problem of contiguous queries and keys with this many heads each and whole tables: one,
    one for `each` sequence, or one of `rows` that positions pick. `names`: of `q` and `k`."""
    q, k = (TensorSpec.contiguous((batch, length, n, head_dim), dtype) for n in heads_each)
    width = head_dim if rotary_dim is None else rotary_dim
    shape = (batch, length, width) if each else (rows or length, width)
    table = TensorSpec.contiguous(shape, tables_of)
    args = {
        **dict(zip(names, (q, k), strict=True)),
        "cos": table,
        "sin": table,
        "position_ids": TensorSpec.contiguous((batch, length), "int64") if rows else None,
        "interleaved": interleaved,
        "rotary_dim": rotary_dim,
    }
    return Problem(NAME if names[0] == "q" else f"{NAME}_backward", tuple(args.items()))


def heads_first(problem: Problem) -> Problem:
    """The same of `x.transpose(1, 2)` with heads before positions in memory."""

    def moved(x: Any) -> TensorSpec:
        _, length, count, head_dim = x.shape
        return replace(x, strides=(count * length * head_dim, head_dim, length * head_dim, 1))

    names = [name for name, _ in problem.args[:2]]
    args = ((n, moved(v) if n in names else v) for n, v in problem.args)
    return Problem(problem.op, tuple(args))


WORKLOADS = (
    *(Workload(f"llama3-8b-m{m}", problem_of(m, 1, (32, 8), 128, rows=8192)) for m in (1, 16, 64)),
    Workload("llama3-8b-4x4096", problem_of(4, 4096, (32, 8), 128)),
    Workload("llama3-8b-4x4096-heads-first", heads_first(problem_of(4, 4096, (32, 8), 128))),
    Workload("llama3-8b-4x4096-interleaved", problem_of(4, 4096, (32, 8), 128, interleaved=True)),
    Workload(
        "llama3-8b-4x4096-bf16-tables", problem_of(4, 4096, (32, 8), 128, tables_of="bfloat16")
    ),
    Workload("llama3-8b-4x4096-fp16", problem_of(4, 4096, (32, 8), 128, "float16")),
    Workload("llama3-8b-4x4096-fp32", problem_of(4, 4096, (32, 8), 128, "float32")),
    Workload("qwen2-7b-1x512", problem_of(1, 512, (28, 4), 128)),
    Workload("glm4-9b-1x8192", problem_of(1, 8192, (32, 2), 128, rotary_dim=64, interleaved=True)),
    Workload("phi2-2x2048", problem_of(2, 2048, (32, 32), 80, rotary_dim=32)),
    Workload("odd-3x341", problem_of(3, 341, (5, 1), 66)),
)


def sized(sizes: dict[str, int], dtype: str, names: tuple[str, str] = ("q", "k")) -> Problem:
    """The problem of sizes by axis name."""
    tokens, pairs_each = sizes.get("tokens", 64), sizes.get("pairs", 16)
    rest, count = sizes.get("rest", 0), sizes.get("heads", 2)
    return problem_of(
        1,
        tokens,
        (count, sizes.get("kv_heads", 1)),
        2 * pairs_each + rest,
        dtype,
        2 * pairs_each if rest else None,
        names=names,
    )


OP = declare(
    Op(
        schema=f"{NAME}(Tensor q, Tensor k, Tensor cos, Tensor sin, Tensor? position_ids=None, "
        "bool interleaved=False, int? rotary_dim=None) -> (Tensor q_out, Tensor k_out)",
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
        own_dtypes=OWN_DTYPES,
        sized=lambda s, dtype: sized(dict(s), dtype),
        forms=forms,
        gradients=(
            Gradient(
                f"{NAME}_backward",
                ("q", "k"),
                lambda grad_q_out, grad_k_out, cos, sin, position_ids, interleaved, rotary_dim: (
                    dense(grad_q_out),
                    dense(grad_k_out),
                    cos,
                    sin,
                    position_ids,
                    interleaved,
                    rotary_dim,
                ),
            ),
        ),
    )
)
