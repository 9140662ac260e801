"""`gristmill tune --record`: its options, and what it prints."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from gristmill.bench.stamp import Stamp
from gristmill.cli.app import INTERRUPTED
from gristmill.cli.output import check_out, console, error_console, print_json
from gristmill.core.op import Workload
from gristmill.errors import InvalidInputError
from gristmill.tuning.progress import counted, observer
from gristmill.tuning.recorded import VERSION
from gristmill.tuning.recorder import Recorded, Recorder

Record = Annotated[
    Path | None,
    typer.Option(
        "--record",
        metavar="FILE",
        help="Measure every config of one problem into FILE (.jsonl.gz) in place of tuning; goes "
        "on with a file that is not complete.",
    ),
]
Points = Annotated[
    int | None,
    typer.Option("--points", help="With --record: only so many configs, drawn evenly."),
]
Names = Annotated[
    list[str] | None,
    typer.Option(
        "--implementation",
        metavar="NAME",
        help="With --record: only this Triton implementation; may be repeated.",
    ),
]
Commit = Annotated[
    str | None,
    typer.Option(
        "--commit",
        help="With --record, in a copy without git: what `python -m gristmill.bench.tree HEAD` "
        "prints in the checkout.",
    ),
]


@dataclass(frozen=True)
class RecordOptions:
    """What `--record` was asked for; `path` is `None` where it was not."""

    path: Path | None
    points: int | None
    names: Sequence[str]
    commit: str | None

    def check(self, problems: Sequence[Workload], **others: object) -> bool:
        """Whether to record; `others` are options that are for tuning only.

        Raises:
            InvalidInputError: options that do not go together, or several problems for one file.
        """
        check_out("--record", self.path)
        if self.path is None:
            given = {
                "--points": self.points,
                "--implementation": self.names,
                "--commit": self.commit,
            }
            for option, value in given.items():
                if value:
                    raise InvalidInputError(
                        f"`--{option}` is given without `--record`, which it belongs to. Add "
                        "`--record FILE`, or leave it out."
                    )
            return False
        if len(problems) != 1:
            raise InvalidInputError(
                f"`--record` is given with {len(problems)} problems; a file has the space of one. "
                "Name one problem."
            )
        given = [f"`--{name}`" for name, value in others.items() if value]
        if given:
            raise InvalidInputError(
                f"`--record` is given with {' and '.join(given)}; recording measures every config "
                "and makes no plan. Leave that out."
            )
        return True


def record(
    options: RecordOptions,
    workload: Workload,
    device: torch.device,
    budget_s: float,
    seed: int,
    as_json: bool,
) -> None:
    """Record one problem's space, and say what was recorded."""
    assert options.path is not None
    recorder = Recorder(
        workload.problem,
        device,
        options.path,
        {**Stamp.of(device, options.commit).to_json(), "workload": workload.name},
        points=options.points,
        names=options.names,
        seed=seed,
        observer=observer(),
    )
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a time limit's end: save
    try:
        done = recorder.run(budget_s)
    finally:
        signal.signal(signal.SIGTERM, before)
    if as_json:
        print_json({"file": str(options.path), "version": VERSION, **done.to_json()})
    else:
        _print(options.path, done)
    if done.interrupted:
        error_console().print("interrupted: what was measured is kept")
        raise typer.Exit(INTERRUPTED)


def _print(path: Path, done: Recorded) -> None:
    facts, recording = done.to_json(), done.recording
    out = console()
    rate = done.measured / max(done.seconds, 1e-9)
    out.print(
        f"{counted(done.measured, 'config')} in {done.seconds:.1f} s ({rate:.1f}/s; "
        f"{done.device_s:.1f} s in the worker, {done.compiler_s:.1f} s waiting for compilers), "
        f"{done.near} timed in turns"
    )
    statuses = ", ".join(f"{count} {name}" for name, count in sorted(facts["statuses"].items()))
    out.print(
        f"{facts['problem']}: {facts['recorded']} of {recording.planned} recorded ({statuses})"
    )
    out.print(f"drawn from {recording.valid} valid configs of {_sources(done)}")
    if facts["best_us"] is not None:
        out.print(
            f"{facts['right']} right; best {facts['best_us']:.2f} us; "
            f"{facts['within_5_percent']:.1%} within 5% of it"
        )
    left = "complete" if done.complete else "not complete: the same command goes on with it"
    out.print(f"kept in {path}, {left}", soft_wrap=True)


def _sources(done: Recorded) -> str:
    return ", ".join(f"{s.name} ({s.valid})" for s in done.recording.sources)
