"""Comparison of outputs with their float64 references, within an op's bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from gristmill.core.op import Bounds, each_bounds

CHUNK_ELEMENTS = 1 << 24  # a comparison's float64 scratch: some times 128 MiB for any tensor


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether outputs are right.

    Attributes:
        ok: every element of every output is within its bound.
        error: the worst error as a share of its bound (at most 1 passes; infinite for a wrong NaN
            or infinity).
        reason: where not `ok`, which output, how many elements and the worst one.
    """

    ok: bool
    error: float
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


def compare(
    outputs: Sequence[torch.Tensor],
    references: Sequence[torch.Tensor],
    magnitudes: Sequence[torch.Tensor],
    bounds: Bounds | Sequence[Bounds],
) -> Verdict:
    """Judge outputs against float64 references, within `Bounds`: one for all, or one for each.

    A NaN or infinite reference needs the same output. A finite reference that overflows the
    output's dtype needs an output within the bound of the overflow threshold, so that rounding at
    the edge is free to go either way.
    """
    if len(outputs) != len(references):
        return Verdict(
            False, torch.inf, f"{len(outputs)} outputs where the reference has {len(references)}"
        )
    worst = 0.0
    allowed = each_bounds(bounds, len(references))
    for index, (out, ref, magnitude, bound) in enumerate(
        zip(outputs, references, magnitudes, allowed, strict=True)
    ):
        if not isinstance(out, torch.Tensor):
            reason = f"output {index} is a {type(out).__name__}, the reference's a tensor"
            return Verdict(False, torch.inf, reason)
        if out.shape != ref.shape:
            reason = (
                f"output {index} has shape {tuple(out.shape)}, the reference {tuple(ref.shape)}"
            )
            return Verdict(False, torch.inf, reason)
        verdict = _compare_one(index, out, ref, magnitude, bound)
        if not verdict.ok:
            return verdict
        worst = max(worst, verdict.error)
    return Verdict(True, worst)


def _compare_one(
    index: int, out: torch.Tensor, ref: torch.Tensor, magnitude: torch.Tensor, bounds: Bounds
) -> Verdict:
    wrong, worst, where = 0, 0.0, -1
    for start, o, r, m in _chunks(out, ref, magnitude):
        share = _share(o, r, m, bounds, out.dtype)
        wrong += int((share > 1).sum())
        top = int(share.argmax())
        if float(share[top]) > worst:
            worst, where = float(share[top]), start + top
    if worst <= 1:
        return Verdict(True, worst)
    position = tuple(int(i) for i in torch.unravel_index(torch.tensor(where), ref.shape))
    got, expected = float(out[position]), float(ref[position])
    reason = (
        f"output {index} is wrong in {wrong} of {out.numel()} elements; worst at {list(position)}: "
        f"{got:.6g} where {expected:.6g} is expected ({worst:.3g} times the bound)"
    )
    return Verdict(False, worst, reason)


def _chunks(
    *tensors: torch.Tensor,
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Flat float64 pieces of the tensors, and where each starts."""
    rows = [t.reshape(1) if t.dim() == 0 else t for t in tensors]
    if rows[0].numel() == 0:
        return
    width = rows[0].numel() // rows[0].shape[0]
    if width > CHUNK_ELEMENTS and rows[0].dim() > 1:  # few huge rows: go into each
        for i in range(rows[0].shape[0]):
            for start, out, ref, magnitude in _chunks(*(t[i] for t in rows)):
                yield i * width + start, out, ref, magnitude
        return
    step = max(1, CHUNK_ELEMENTS // width)
    for i in range(0, rows[0].shape[0], step):
        out, ref, magnitude = (t[i : i + step].reshape(-1).double() for t in rows)
        yield i * width, out, ref, magnitude


def _share(
    out: torch.Tensor,
    ref: torch.Tensor,
    magnitude: torch.Tensor,
    bounds: Bounds,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The error as a share of the bound, element by element; all arguments float64 (`dtype`: the
    output's own)."""
    exact = ~ref.isfinite()
    same = (out == ref) | (out.isnan() & ref.isnan())
    if dtype.is_floating_point:
        info = torch.finfo(dtype)
        edge = info.max * (1 + info.eps / 4)  # from here on, rounding gives infinity
        out, clipped = out.clamp(-edge, edge), ref.clamp(-edge, edge)
    else:
        clipped = ref
    allowed = bounds.rtol * ref.abs() + bounds.gamma * magnitude + bounds.atol
    error = (out - clipped).abs()
    share = torch.where(error == 0, 0.0, error / allowed)
    share = share.nan_to_num(
        nan=torch.inf, posinf=torch.inf
    )  # a NaN output where the reference is finite
    return torch.where(exact, torch.where(same, 0.0, torch.inf), share)
