"""A tuning record as text: the choices and the candidates, for people."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gristmill.bench.tuning_record import Contender, TuningRecord
from gristmill.core.plan import OBJECTIVES

SHOWN = 20  # candidates


def print_record(out: Console, record: TuningRecord) -> None:
    """What was chosen, then the candidates with what became of them."""
    out.print(f"[bold]{escape(record.problem)}[/] on {escape(record.stamp.device)}", soft_wrap=True)
    for objective, choice in record.choices.items():
        out.print(
            f"plan ({objective}): [bold]{escape(str(choice.candidate))}[/], "
            f"{escape(choice.reason)}",
            soft_wrap=True,
        )
    contenders = record.contenders(OBJECTIVES[0])
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("#", "after s", "candidate", "us", "fate", "note"):
        rows.add_column(name, justify="right" if name in ("#", "after s", "us") else "left")
    for contender in contenders[:SHOWN]:
        rows.add_row(*map(escape, _cells(contender)))
    out.print(rows)
    if len(contenders) > SHOWN:
        out.print(f"... and {len(contenders) - SHOWN} more (--html or --json has them)")


def _cells(contender: Contender) -> tuple[str, ...]:
    outcome = contender.outcome
    time = "" if outcome.device_us is None else f"{outcome.time_us(OBJECTIVES[0]):,.2f}"
    return (
        str(contender.order),
        f"{contender.elapsed_s:.1f}",
        str(contender.candidate),
        time,
        fate_text(contender),
        contender.note,
    )


def fate_text(contender: Contender) -> str:
    """What became of a candidate, with the class of a failure."""
    if contender.fate != "failed":
        return contender.fate
    return contender.outcome.status.replace("_", " ")
