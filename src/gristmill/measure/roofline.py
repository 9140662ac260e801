"""The least time that a problem can take under the ceilings measured in the same run."""

from __future__ import annotations

from dataclasses import dataclass

from gristmill.core.op import Cost


@dataclass(frozen=True, slots=True)
class Roofline:
    """The least time that a problem can take: `time_us`, set by `limit` (`memory` or `compute`)."""

    time_us: float
    limit: str


def roofline(cost: Cost, copy_us: float, flops_per_s: float | None) -> Roofline:
    """The longer of moving the bytes and doing the operations.

    `copy_us` is the time of a `copy_` that moves as many bytes, in the same run: at small sizes it
    is far from the rate of a large copy, and nothing reaches that. `flops_per_s` is `None` for an
    op off the matrix units: its operations are free beside its bytes.
    """
    compute_us = cost.flops / flops_per_s * 1e6 if flops_per_s else 0.0
    return Roofline(compute_us, "compute") if compute_us > copy_us else Roofline(copy_us, "memory")
