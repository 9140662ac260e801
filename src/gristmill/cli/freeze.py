"""Write a lock file of this device's plans, or check one.

gristmill freeze                            # gristmill-lock.json: every plan kept for the device
gristmill freeze serving.json --strict
gristmill freeze serving.json --check
GRISTMILL_LOCK_FILE=serving.json python serve.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from gristmill.cache.lockfile import Lock, read_lock
from gristmill.cli.options import Device, Json
from gristmill.cli.output import console, print_json
from gristmill.cli.problems import chosen_device
from gristmill.core.plan import Plan
from gristmill.core.target import device_name, device_target
from gristmill.ops.plans import LOCK_FILE, chosen

app = typer.Typer(add_completion=False)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The lock file.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="A process that is frozen to it refuses what it lacks.")
]
CheckOnly = Annotated[
    bool,
    typer.Option(
        "--check",
        help="Write nothing: exit code 1 where the file has no plans for this device, or any of "
        "kernels that are others here.",
    ),
]


@app.command()
def command(
    file: File = Path(LOCK_FILE),
    device: Device = None,
    strict: Strict = False,
    check: CheckOnly = False,
    as_json: Json = False,
) -> None:
    target = device_target(chosen_device(device))
    if check:
        lock = read_lock(file)
    else:
        lock = Lock(file, chosen("stored", [target.key]), strict)
        lock.write()
    stale = [p for p in lock.stale() if p.target == target.key]
    here = sum(p.plan.target == target.key for p in lock.plans)
    if as_json:
        print_json(
            {
                "path": str(file),
                "strict": lock.strict,
                "gristmill": lock.made_by,
                "devices": [device_name(t) for t in lock.targets],
                "plans": len(lock.plans),
                "plans_here": here,
                "stale": [f"{p.op}/{p.candidate.implementation} {p.bucket}" for p in stale],
            }
        )
    else:
        _print(lock, target.name, here, stale)
    if check and (stale or not here):
        raise typer.Exit(1)


def _print(lock: Lock, device: str, here: int, stale: Sequence[Plan]) -> None:
    out = console()
    kind = ", strict" if lock.strict else ""
    out.print(f"{escape(str(lock.path))}: {len(lock.plans):,} plans{kind}", soft_wrap=True)
    if not here:
        devices = ", ".join(map(device_name, lock.targets)) or "no device"
        out.print(f"[red]none for {escape(device)}: they are of {escape(devices)}[/]")
    for plan in stale:
        name = f"{plan.op}/{plan.candidate.implementation}"
        out.print(f"[red]{escape(name)} is another here[/]: {escape(plan.bucket)}", soft_wrap=True)
