"""What a user's kernel should give: their reference on the call's values, and how far a candidate
may be from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gristmill.core.op import Bounds, as_tuple
from gristmill.errors import InvalidInputError
from gristmill.tuners.arguments import tensors_of
from gristmill.verify import Verdict, compare

Reference = Callable[..., Any]
FILL = 1e3  # times the other values: what masked places are filled with
UNITS = 8.0  # roundings of the output's dtype that a candidate may be away, by default


def truth_of(
    reference: Reference, named: Mapping[str, Any], outputs: Sequence[str] | None
) -> dict[str, torch.Tensor]:
    """The true values of a kernel's output arguments, by name.

    The reference gets, by name, those of the arguments that it names (all of them where it takes
    `**kwargs`), as copies: floating-point tensors in float64, of a descriptor the tensor that it is
    of. It returns a dict from output to truth, or the truths in the order of `outputs` (`None`: of
    what a Python function returns).

    Raises:
        InvalidInputError: it names what is no argument, or returns something else.
    """
    parameters = inspect.signature(reference).parameters.values()
    everything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    asked = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    missing = [
        p.name
        for p in parameters
        if p.name in asked and p.default is p.empty and p.name not in named
    ]
    if missing:
        raise InvalidInputError(
            f"`reference` has the parameter {missing[0]!r}; the kernel is called with "
            f"{', '.join(named)}. Name its parameters like the kernel's."
        )
    taken = {n: _wide(v) for n, v in named.items() if everything or n in asked}
    with torch.no_grad():
        result = reference(**taken)
    if not isinstance(result, Mapping):
        found = as_tuple(result)
        outputs = returned_names(len(found)) if outputs is None else outputs
        if len(found) != len(outputs):
            raise InvalidInputError(
                f"`reference` returned {len(found)} value(s) for the outputs {list(outputs)}; it "
                "needs one for each, or a dict from output to value. Name the kernel's output "
                "arguments in `outputs=`."
            )
        result = dict(zip(outputs, found, strict=True))
    tensors, truth = tensors_of(named), {}
    for name, value in result.items():
        known = value if name in returned_names(len(result)) else named.get(name)
        target = tensors.get(name, known)
        if not isinstance(value, torch.Tensor) or not isinstance(target, torch.Tensor):
            raise InvalidInputError(
                f"`reference` gives {name!r} a {type(value).__name__}, where the kernel has a "
                f"{type(target).__name__}; both need to be tensors. Return a tensor for a tensor "
                "argument."
            )
        if value.shape != target.shape:
            raise InvalidInputError(
                f"`reference` gives {name!r} the shape {tuple(value.shape)}, where the argument "
                f"has {tuple(target.shape)}. Return it in the argument's shape."
            )
        truth[name] = value.to(target.device).resolve_conj().resolve_neg()
    return truth


def returned_names(count: int) -> list[str]:
    """What the values that a Python function returns are called."""
    return [f"returned[{index}]" for index in range(count)]


def _wide(value: Any) -> Any:
    """A value for the reference, which may write into it: `Tensor.double` copies no float64."""
    if isinstance(value, tuple):
        parts = [_wide(part) for part in value]
        return getattr(type(value), "_make", tuple)(parts)  # a named tuple, or a plain one
    value = tensors_of({"": value}).get("", value)
    if isinstance(value, torch.Tensor):
        return value.to(torch.float64 if value.is_floating_point() else value.dtype, copy=True)
    return value


def judge(
    outputs: Mapping[str, torch.Tensor],
    truth: Mapping[str, torch.Tensor],
    rtol: float | None,
    atol: float,
) -> Verdict:
    """Whether outputs are within their bounds of the truth.

    `|out - truth| <= rtol (|truth| + rms(truth)) + atol`: the root mean square stands for what a
    reduction rounds, which an element that cancels to near zero does not show (a value that fills
    masked places, infinite or huge, is no part of it). `rtol` is, where
    none is given, eight roundings of the output's dtype (the tensor cores' TF32 needs more).
    Integers and booleans have to be equal, but for `atol`.
    """
    worst = Verdict(True, 0.0)
    for name, expected in truth.items():
        out = outputs.get(name)
        if out is None:
            return Verdict(False, torch.inf, f"`{name}` is missing")
        share = 0.0
        if out.is_floating_point():
            share = UNITS * torch.finfo(out.dtype).eps if rtol is None else rtol
        scale = _size(expected)
        bounds = Bounds(share, share, atol, "the dtype's rounding, or what the caller gave")
        verdict = compare((out,), (expected,), (scale.expand(expected.shape),), bounds)
        if not verdict.ok:
            return Verdict(False, verdict.error, verdict.reason.replace("output 0", f"`{name}`"))
        worst = max(worst, verdict, key=lambda v: v.error)
    return worst


def _size(expected: torch.Tensor) -> torch.Tensor:
    """The root mean square, without infinities and what masked places are filled with: one value,
    more than once, far above the rest."""
    sizes = expected.abs().double()
    sizes = torch.where(sizes.isfinite(), sizes, 0)
    if not sizes.numel():
        return sizes.new_zeros(())
    top = sizes.max()
    fills = sizes == top
    rest = torch.where(fills, 0, sizes).square().sum() / (~fills).sum().clamp(min=1)
    if int(fills.sum()) > 1 and 0 < float(rest.sqrt()) * FILL < float(top):
        return rest.sqrt()
    return sizes.square().mean().sqrt()
