"""What the contracts of rotary embeddings share (Su et al., "RoFormer", 2021): which columns of a
head are pairs, which of the tables' they turn by, and the rotation itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from gristmill.core.op import Bounds
from gristmill.core.problem import TensorSpec
from gristmill.errors import InvalidInputError
from gristmill.specs._rows import check_rows

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
INTEGERS = (torch.int32, torch.int64)
TABLE_DTYPES: Mapping[str, tuple[torch.dtype, ...]] = {"cos": FLOATS, "sin": FLOATS}
ROUNDINGS = 3  # of float32: two products and their sum
SUBNORMALS = 4  # of float32 that may be flushed: both products, a table's value, the sum


def rotated_width(head_dim: int, table_width: int, rotary_dim: int | None) -> int:
    """How many of a head's columns are turned: `rotary_dim` where it is given; else all of them by
    tables of the head's width or of half of it, and as many as a table has by any other."""
    if rotary_dim is not None:
        return rotary_dim
    return head_dim if head_dim in (table_width, 2 * table_width) else table_width


def check_widths(op: str, head_dim: int, table_width: int, rotary_dim: int | None) -> None:
    """Refuse tables that do not say an angle for each pair of columns."""
    width = rotated_width(head_dim, table_width, rotary_dim)
    if width % 2:
        raise InvalidInputError(
            f"{width} columns of a head are to be turned (`cos` has {table_width}, a head "
            f"{head_dim}); `{op}` turns pairs, an even number. Pass tables and `rotary_dim` of an "
            "even width."
        )
    if not 0 <= width <= head_dim or table_width not in (width, width // 2):
        raise InvalidInputError(
            f"`cos` has {table_width} columns, `rotary_dim` is {rotary_dim} and a head has "
            f"{head_dim}; `{op}` needs tables of `rotary_dim` columns or of half as many, and at "
            "most the head's. Pass such tables."
        )


def check_tables(op: str, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Refuse tables of other ranks than two or three, unlike each other, or not dense in a row."""
    if cos.dim() not in (2, 3):
        raise InvalidInputError(
            f"`cos` has shape {tuple(cos.shape)}; `{op}` takes tables (positions, width), or "
            "(batch, positions, width) for positions that differ. Call `cos.reshape(...)`."
        )
    if sin.shape != cos.shape or sin.dtype != cos.dtype:
        raise InvalidInputError(
            f"`sin` is {sin.dtype} of shape {tuple(sin.shape)} and `cos` {cos.dtype} of "
            f"{tuple(cos.shape)}; `{op}` needs them alike. Pass both tables of one `rope_tables`."
        )
    check_rows(op, "cos", cos)
    check_rows(op, "sin", sin)


def check_rows_of(op: str, cos: torch.Tensor, batch: int, length: int) -> None:
    """Refuse tables that have not one row for each position of `batch` sequences."""
    sizes = tuple(cos.shape[:-1])
    if sizes[-1] != length or (len(sizes) == 2 and sizes[0] not in (1, batch)):
        raise InvalidInputError(
            f"`cos` has shape {tuple(cos.shape)}; `{op}` without `position_ids` needs {length} "
            f"rows, one for each position, of one table or of {batch}. Slice it, or pass "
            "`position_ids` that pick rows."
        )


def check_positions(
    op: str, position_ids: torch.Tensor, cos: torch.Tensor, batch: int, length: int
) -> None:
    """Refuse positions that are not (length,) or (batch, length), or pick rows of many tables."""
    shape = tuple(position_ids.shape)
    if shape not in ((length,), (1, length), (batch, length)):
        raise InvalidInputError(
            f"`position_ids` has shape {shape}; `{op}` needs ({length},), (1, {length}) or "
            f"({batch}, {length}): a row of the tables for each position. Reshape it."
        )
    if cos.dim() != 2 or (cos.shape[0] == 0 and position_ids.numel() > 0):
        raise InvalidInputError(
            f"`cos` has shape {tuple(cos.shape)}; `{op}` with `position_ids` picks rows of one "
            "table (positions, width) that has some. Pass such a table, or no `position_ids`."
        )


def angles(
    table: torch.Tensor, width: int, interleaved: bool, position_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """A table's value for each pair, `(..., positions, 1, width / 2)`: of a full row the column of
    the pair's first value. A position that the table does not have gives NaN."""
    full = table.shape[-1] == width
    rows = table[..., ::2] if full and interleaved else table[..., : width // 2]
    if position_ids is not None:
        count = rows.shape[0]
        known = (position_ids >= 0) & (position_ids < count)
        rows = rows[position_ids.clamp(0, max(count - 1, 0))]
        rows = torch.where(known.unsqueeze(-1), rows, torch.nan)
    return rows.unsqueeze(-2)


def pairs(x: torch.Tensor, interleaved: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """First and second values of the pairs that the last dimension holds."""
    if interleaved:
        return x[..., ::2], x[..., 1::2]
    return x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]


def from_pairs(first: torch.Tensor, second: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """What `pairs` takes apart."""
    if interleaved:
        return torch.stack((first, second), -1).flatten(-2)
    return torch.cat((first, second), -1)


def turned(
    first: torch.Tensor,
    second: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    size: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pairs turned by angles of these cosines and sines; with `size`, what that would be if
    nothing cancelled."""
    if size:
        first, second, cos, sin = first.abs(), second.abs(), cos.abs(), sin.abs()
        return first * cos + second * sin, second * cos + first * sin
    return first * cos - second * sin, second * cos + first * sin


def rotation_bounds(x: TensorSpec, terms: int = 1) -> Bounds:
    """The bounds of a rotation, of sums of `terms` values."""
    info = torch.finfo(x.torch_dtype)
    chain = "" if terms == 1 else f" of float32 sums of {terms} values"
    return Bounds(
        rtol=info.eps / 2,
        gamma=(ROUNDINGS + terms - 1) * 2.0**-24,
        atol=info.smallest_normal * info.eps
        + (SUBNORMALS + terms - 1) * torch.finfo(torch.float32).smallest_normal,
        reason=f"one rounding to {x.dtype}; two float32 products and their sum{chain}, which may "
        "cancel; float32 below 2^-126 may be flushed",
    )


def tables(
    cos: TensorSpec, sin: TensorSpec, width: int, interleaved: bool, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of random angles, each twice in a full row, where its pair stands."""
    device = generator.device
    shape = (*cos.shape[:-1], width // 2)
    angle = 2 * torch.pi * torch.rand(shape, generator=generator, device=device)
    if cos.shape[-1] == width:
        angle = from_pairs(angle, angle, interleaved)
    return cos.fill(angle.cos()), sin.fill(angle.sin())


def in_two(x: TensorSpec) -> TensorSpec:
    """A contiguous tensor of one sequence as one of two, where it has an even number of
    positions."""
    batch, length, *rest = x.shape
    parts = 2 if batch == 1 and length and length % 2 == 0 else 1
    return TensorSpec.contiguous((batch * parts, length // parts, *rest), x.dtype)


def vary(x: torch.Tensor, variant: str) -> torch.Tensor:
    """Normal values made into those of a variant: `large` (2^40, float16: 2^12), `zeros` (every
    third), `nonfinite` (an infinity and a NaN in a head)."""
    if variant == "large":
        x = x * (2.0**12 if x.dtype == torch.float16 else 2.0**40)
    elif variant == "zeros":
        x[..., ::3] = 0
    elif variant == "nonfinite" and x.numel():
        x[:1, ..., 0] = torch.inf
        x[-1:, ..., -1] = torch.nan
    return x
