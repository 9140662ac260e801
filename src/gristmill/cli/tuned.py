"""What `gristmill tune` says of the problems that it has tuned, and where it writes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

from gristmill.bench.pages import tuning_page
from gristmill.bench.tuning_record import TuningRecord, save_records
from gristmill.cache.store import store
from gristmill.cli.explain import headline, print_explanation
from gristmill.cli.output import console, error_console, print_json
from gristmill.cli.report import write_html
from gristmill.core.op import Workload
from gristmill.core.plan import Objective
from gristmill.core.registry import load
from gristmill.core.target import Target
from gristmill.errors import GristmillError
from gristmill.selection.explain import Explanation, explain_problem
from gristmill.tuning.budget import TuningResult

SHOWN = 10  # candidates of each problem


@dataclass
class Tuned:
    """The problems of a `gristmill tune`, as they end."""

    objective: Objective
    as_json: bool
    stamped: bool = False  # whether records are wanted, of runs on this machine
    explanations: list[Explanation] = field(default_factory=list)
    records: list[TuningRecord] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return any("error" in report for report in self.reports)

    def add(
        self, workload: Workload, result: TuningResult, target: Target, device: torch.device | None
    ) -> None:
        """A problem that was tuned, on a device of this machine where it is known."""
        op = workload.problem.op
        explanation = explain_problem(load(op), workload.problem, target, self.objective)
        self.explanations.append(explanation)
        if self.stamped and device is not None:
            self.records.append(TuningRecord.of(op, workload.name, device, result, explanation))
        self.reports.append(_report(workload.name, result, explanation))
        if not self.as_json:
            print_explanation(console(), explanation, SHOWN)

    def fail(self, workload: Workload, error: GristmillError | str) -> None:
        """A problem that was not."""
        error_console().print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        self.reports.append({"workload": workload.name, "error": str(error)})

    def end(self, out: Path | None, html: Path | None, interrupted: bool) -> None:
        """After all problems: the files, and the JSON document, or who was chosen how often and
        where it is kept."""
        if out is not None:
            save_records(out, self.records)
        write_html(html, tuning_page(self.records, self.objective) if html else "")
        if interrupted:
            error_console().print("interrupted: what was measured is kept")
        kept = store().summary()
        if self.as_json:
            print_json(
                {"problems": self.reports, "interrupted": interrupted, "store": kept.to_json()}
            )
            return
        if len(self.explanations) > 1:
            console().print(headline(self.explanations))
        console().print(
            f"kept in {kept.path}" if not kept.unsaved else f"not kept on disk: {kept.reason}"
        )


def _report(workload: str, result: TuningResult, explanation: Explanation) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for outcome in result.outcomes.values():
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
    return {
        "workload": workload,
        "interrupted": result.interrupted,
        "stopped": result.stopped,
        "seconds": result.seconds,
        "candidates": counts,
        "conditions": result.conditions.to_json(),
        "explanation": explanation.to_json(),
    }
