"""`gristmill tune` of many problems: which ones, and on which devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import typer

from gristmill.bench.suites import SUITES, suite_named
from gristmill.cli.problems import requested_of
from gristmill.core.op import Workload
from gristmill.core.registry import load, op_names
from gristmill.errors import InvalidInputError
from gristmill.ops.tune_many import Where
from gristmill.tuning.fleet.local import devices_named

EVERY = "all"  # in place of an op's name
Devices = Annotated[
    str | None,
    typer.Option(
        "--devices",
        metavar="LIST",
        help="Share the problems out to these GPUs: 0,1,... or all.",
        show_default="for several problems, those like the current one",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Share them out to a Ray cluster's devices: HOST:PORT of its head, auto, or local "
        "(extra `ray`).",
    ),
]
SuiteName = Annotated[
    str | None,
    typer.Option(
        "--suite", help=f"Workloads by a name for many: {', '.join(s.name for s in SUITES)}."
    ),
]


def problems_of(
    op: str,
    suite: str | None,
    named: tuple[list[str] | None, list[str] | None, list[str] | None],
    dtype: str,
) -> list[Workload]:
    """The problems that are asked for: of one op, or `all`.

    Raises:
        InvalidInputError: there is none, or two ways of naming them.
    """
    if suite is not None and any(named):
        raise InvalidInputError(
            "`--suite` is given together with `--workload`, `--shape` or `--scalar`; problems are "
            "named one way. Leave one out."
        )
    if suite is not None:
        chosen = suite_named(suite).select(() if op == EVERY else (op,))
    elif op == EVERY or any(named):
        ops = op_names() if op == EVERY else [op]
        chosen = requested_of([load(name) for name in ops], *named, dtype)
    else:
        raise InvalidInputError(
            f"no problem of `{op}` is named; `gristmill tune` needs one. "
            "Add `--workload NAME` (`gristmill list OP` shows them), `--suite NAME` or `--shape`."
        )
    return [workload for _, workloads in chosen for workload in workloads]


def where_to(
    devices: str | None, ray: str | None, device: str | None, problems: Sequence[Workload]
) -> Where | None:
    """The devices to share problems out to; `None` where they are tuned one after the other on
    one.

    Raises:
        InvalidInputError: options that do not go together, or no such device.
    """
    if devices is not None and (ray is not None or device is not None):
        other = "--ray" if ray is not None else "--device"
        raise InvalidInputError(
            f"`--devices` is given together with `{other}`; devices are named one way. Leave one "
            "out."
        )
    if ray is not None:
        kind = device and device.partition(":")[0]
        if kind not in (None, "cuda", "cpu"):
            raise InvalidInputError(
                f"`--device` is {device!r}; with `--ray` it can be 'cuda' or 'cpu', the kind of "
                "the cluster's devices. Choose one."
            )
        return Where(ray=ray, kind=kind)
    if devices is not None:
        names = devices.split(",") if devices != EVERY else EVERY
        devices_named(names)  # wrong ones are wrong before anything starts
        return Where(names)
    if device is None and len(problems) > 1 and torch.cuda.device_count() > 1:
        here = devices_named(None)
        return Where([str(one) for one in here]) if len(here) > 1 else None
    return None
