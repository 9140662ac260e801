"""Problems named on the command line: by workload, or by the shapes and scalars of the op's
schema."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Sequence
from typing import Any

import torch

from gristmill.core.op import Op, Workload
from gristmill.core.plan import OBJECTIVES, Objective
from gristmill.core.problem import Problem, TensorSpec, contiguous_strides
from gristmill.errors import InvalidInputError, did_you_mean

Selection = list[tuple[Op, list[Workload]]]  # workloads by op
MAX_ELEMENTS = 1 << 60
NOTATION = (
    "after a shape: c, unit stride in the dimension before the last, as of w.t(); s, in neither of "
    "the last two; +, not dense; !, start or rows not on 16 bytes"
)


def notation(*problems: str) -> str:
    """What the letters after the shapes in these problems mean; empty where there are none."""
    return NOTATION if any(re.search(r"\][cs+!]", problem) for problem in problems) else ""


def chosen_device(name: str | None) -> torch.device:
    """The device of this name; by default the GPU, where there is one.

    Raises:
        InvalidInputError: no such device here.
    """
    cuda = torch.cuda.is_available()
    if name is None:
        return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cuda", "cpu"):
        raise InvalidInputError(
            f"`--device` is {name!r}; it can be 'cpu', 'cuda' or 'cuda:N'. Choose one."
        )
    if device.type == "cuda":
        count = torch.cuda.device_count() if cuda else 0
        index = device.index or 0
        if index >= count:
            raise InvalidInputError(
                f"`--device` is {name!r}; torch sees {count} CUDA device(s) here. Choose another, "
                f"or run "
                "`gristmill doctor` to find out why."
            )
        device = torch.device("cuda", index)
    return device


def named_workloads(op: Op, patterns: Sequence[str]) -> list[Workload]:
    """The workloads that any of these names or patterns select, in the op's order.

    Raises:
        InvalidInputError: a name or pattern selects nothing.
    """
    known = [w.name for w in op.workloads]
    names: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(known, pattern)
        if not found:
            raise InvalidInputError(
                f"`--workload` is {pattern!r}; `{op.name}` has {', '.join(known)}. Choose one, or "
                f"a pattern of them."
                f"{did_you_mean(pattern, known)}"
            )
        names.update(found)
    return [w for w in op.workloads if w.name in names]


def requested(
    op: Op,
    workloads: Sequence[str] | None,
    shapes: Sequence[str] | None,
    scalars: Sequence[str] | None,
    dtype: str,
) -> list[Workload]:
    """The problems that a command was asked for, each with a name; empty where it named none.

    Raises:
        InvalidInputError: a name, shape or scalar that does not parse, or breaks the op's contract.
    """
    if workloads and (shapes or scalars):
        raise InvalidInputError(
            "`--workload` is given together with `--shape` or `--scalar`; a problem is named one "
            "way. Leave one out."
        )
    if workloads:
        return named_workloads(op, workloads)
    if not shapes and not scalars:
        return []
    problem = problem_of(op, shapes or (), scalars or (), dtype)
    return [Workload(str(problem), problem)]


def requested_of(
    ops: Sequence[Op],
    workloads: Sequence[str] | None,
    shapes: Sequence[str] | None,
    scalars: Sequence[str] | None,
    dtype: str,
) -> Selection:
    """The problems that a command was asked for, op by op; every workload where it named none.

    Raises:
        InvalidInputError: as for `requested`; shapes or scalars with several ops.
    """
    if len(ops) == 1:
        (op,) = ops
        return [(op, requested(op, workloads, shapes, scalars, dtype) or list(op.workloads))]
    if shapes or scalars:
        raise InvalidInputError(
            f"`--shape` or `--scalar` is given with {len(ops)} ops; they name a problem of one. "
            "Name one op, or workloads."
        )
    if not workloads:
        return [(op, list(op.workloads)) for op in ops]
    names = sorted({w.name for op in ops for w in op.workloads})
    unknown = [pattern for pattern in workloads if not fnmatch.filter(names, pattern)]
    if unknown:
        raise InvalidInputError(
            f"`--workload` is {unknown[0]!r}; {', '.join(op.name for op in ops)} have "
            f"{', '.join(names)}. Choose one, or a pattern of them."
            f"{did_you_mean(unknown[0], names)}"
        )
    chosen = [
        (op, [w for w in op.workloads if any(fnmatch.fnmatch(w.name, p) for p in workloads)])
        for op in ops
    ]
    return [(op, found) for op, found in chosen if found]


def problem_of(op: Op, shapes: Sequence[str], scalars: Sequence[str], dtype: str) -> Problem:
    """The problem with these tensors and scalars, checked against the op's contract."""
    if dtype not in (known := [str(d).removeprefix("torch.") for d in op.dtypes]):
        raise InvalidInputError(
            f"`--dtype` is {dtype!r}; `{op.name}` takes {', '.join(known)}. Choose "
            f"one.{did_you_mean(dtype, known)}"
        )
    given: dict[str, Any] = {}
    for option, texts in (("--shape", shapes), ("--scalar", scalars)):
        for text in texts:
            name, equals, value = text.partition("=")
            _check_name(op, option, text, name, bool(equals and value))
            given[name] = (
                _tensor(text, value, dtype) if option == "--shape" else _scalar(op, name, value)
            )
    for argument in op.parsed.arguments:
        if not argument.has_default_value() and argument.name not in given:
            tensor = "Tensor" in str(argument.type)
            example = (
                f"--shape {argument.name}=512x4096" if tensor else f"--scalar {argument.name}=1"
            )
            raise InvalidInputError(
                f"'{argument.name}' is missing; the signature is {op.schema}. Add `{example}`, "
                "with the value that you mean."
            )
    specs = {name: v for name, v in given.items() if isinstance(v, TensorSpec)}
    values = op.bind(
        (), {name: v.empty("meta") if name in specs else v for name, v in given.items()}
    )
    args = (specs.get(name, value) for name, value in zip(op.names, values, strict=True))
    return Problem(op.name, tuple(zip(op.names, args, strict=True)))


def _check_name(op: Op, option: str, text: str, name: str, parsed: bool) -> None:
    tensors = [a.name for a in op.parsed.arguments if "Tensor" in str(a.type)]
    allowed = tensors if option == "--shape" else [n for n in op.names if n not in tensors]
    if not parsed or name not in allowed:
        example = f"{tensors[0]}=512x4096" if option == "--shape" else "eps=1e-6"
        raise InvalidInputError(
            f"`{option}` is {text!r}; `{op.name}` takes NAME=VALUE with a name of "
            f"{', '.join(allowed) or 'none'}. "
            f"Write `{option} {example}`; the signature is "
            f"{op.schema}.{did_you_mean(name, allowed)}"
        )


def _tensor(text: str, value: str, dtype: str) -> TensorSpec:
    sizes, _, layout = value.partition(":")
    parts = sizes.split("x")
    if (
        layout not in ("", "t")
        or not all(p.isdecimal() for p in parts)
        or (layout and len(parts) < 2)
    ):
        raise InvalidInputError(
            f"`--shape` is {text!r}; it needs sizes joined by 'x', and ':t' for a transposed view "
            f"of two or more "
            "dimensions. Write `x=512x4096` or `b=4096x6144:t`."
        )
    shape = tuple(int(p) for p in parts)
    if math.prod(shape) >= MAX_ELEMENTS:
        raise InvalidInputError(
            f"`--shape` is {text!r}; a tensor has fewer than 2^60 elements. Write a smaller one."
        )
    if not layout:
        return TensorSpec.contiguous(shape, dtype)
    strides = contiguous_strides((*shape[:-2], shape[-1], shape[-2]))
    return TensorSpec(shape, (*strides[:-2], strides[-1], strides[-2]), dtype)


def _scalar(op: Op, name: str, value: str) -> Any:
    kind = next(str(a.type) for a in op.parsed.arguments if a.name == name)
    kind = kind.removeprefix("Optional[").removesuffix("]")
    try:
        if kind == "bool":
            return {"true": True, "false": False}[value.lower()]
        return {"float": float, "int": int}.get(kind, str)(value)
    except (ValueError, KeyError):
        raise InvalidInputError(
            f"`--scalar` is '{name}={value}'; `{name}` of `{op.name}` is a {kind}. Write a {kind}."
        ) from None


def arguments(problem: Problem, device: torch.device) -> tuple[Any, ...]:
    """Arguments of this problem with no particular values, for what reads only their shapes.

    Raises:
        InvalidInputError: they do not fit into the device's memory.
    """
    try:
        return tuple(v.empty(device) if isinstance(v, TensorSpec) else v for _, v in problem.args)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "alloc" not in str(error):
            raise
        size = sum(spec.size_bytes for spec in problem.tensors.values()) / 2**30
        raise InvalidInputError(
            f"{problem} has {size:,.1f} GiB of arguments; {device} cannot hold them. "
            "Choose a smaller problem."
        ) from None


def objective_named(name: str) -> Objective:
    """The objective of this name.

    Raises:
        InvalidInputError: there is no such objective.
    """
    for objective in OBJECTIVES:
        if objective == name:
            return objective
    raise InvalidInputError(
        f"`--objective` is {name!r}; it can be {' or '.join(OBJECTIVES)}. Choose one."
    )
