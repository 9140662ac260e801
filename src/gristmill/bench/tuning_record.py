"""The record of a tuning run, as a value and as JSON: every outcome when it came, the choice, and
why not the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from gristmill.bench.checking import finite
from gristmill.bench.results import read_json, write_json
from gristmill.bench.stamp import Stamp
from gristmill.core.config import Config
from gristmill.core.plan import OBJECTIVES, Candidate, Objective, Outcome
from gristmill.errors import InvalidInputError
from gristmill.selection.explain import Explanation
from gristmill.tuning.budget import Evaluation, TuningResult
from gristmill.tuning.trial import candidate_to_json

Fate = Literal["chosen", "tie", "slower", "given up", "failed"]
KIND = "gristmill tuning record"


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen under an objective, why, and whoever tied with it."""

    candidate: Candidate
    reason: str
    ties: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Contender:
    """A candidate of a run and what became of it.

    Attributes:
        order: its first evaluation, from 1; `elapsed_s`: when.
        outcome: the last one: of the race, where it raced.
        fate: `chosen`; `tie` (as fast as the fastest, and needs more); `slower`; `given up` (early:
            its times are of few repeats); `failed`, of the class in `outcome.status`.
        note: how much slower than the choice, or the message of the failure.
    """

    order: int
    elapsed_s: float
    candidate: Candidate
    outcome: Outcome
    fate: Fate
    note: str
    raced: bool


@dataclass(frozen=True, slots=True)
class TuningRecord:
    """A tuning run of one problem.

    Attributes:
        choices: by objective; without those that have none (an interruption, say).
        evaluations: every outcome in the order in which they came.
        rejections: for each implementation, how many points of its space each constraint rejects.
        unsupported: implementations that cannot run the problem here, with the reason.
        conditions: what the device was like (`Conditions.to_json`); empty in older records.
    """

    op: str
    workload: str
    problem: str
    stamp: Stamp
    seconds: float
    interrupted: bool
    evaluations: tuple[Evaluation, ...]
    choices: Mapping[Objective, Choice]
    rejections: Mapping[str, Mapping[str, int]]
    unsupported: Mapping[str, str]
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        op: str,
        workload: str,
        device: torch.device,
        result: TuningResult,
        explanation: Explanation,
    ) -> TuningRecord:
        """The record of a run that has just ended, with what `explain` knows of its space."""
        return cls(
            op=op,
            workload=workload,
            problem=explanation.problem,
            stamp=Stamp.of(device),
            seconds=result.seconds,
            interrupted=result.interrupted,
            evaluations=tuple(
                replace(e, outcome=replace(e.outcome, error=finite(e.outcome.error)))
                for e in result.trajectory
            ),
            choices={
                objective: Choice(plan.candidate, plan.reason, result.ties.get(objective, ()))
                for objective, plan in result.plans.items()
            },
            rejections=explanation.rejections,
            unsupported={
                row.implementation: row.note
                for row in explanation.rows
                if row.status == "unsupported" and not row.config
            },
            conditions=result.conditions.to_json(),
        )

    def contenders(self, objective: Objective) -> list[Contender]:
        """Every candidate with its fate under an objective: the choice first, then by time, what
        failed last."""
        first: dict[Candidate, tuple[int, Evaluation]] = {}
        last: dict[Candidate, Evaluation] = {}
        order = 0
        for one in self.evaluations:
            if one.candidate not in first:
                order += 1
                first[one.candidate] = (order, one)
            last[one.candidate] = one
        found = [
            self._contender(*first[candidate], evaluation, objective)
            for candidate, evaluation in last.items()
        ]
        rank: dict[Fate, int] = {"chosen": 0, "tie": 1, "slower": 1, "given up": 2, "failed": 3}
        return sorted(found, key=lambda c: (rank[c.fate], c.outcome.time_us(objective), c.order))

    def _contender(
        self, order: int, first: Evaluation, last: Evaluation, objective: Objective
    ) -> Contender:
        candidate, outcome = last.candidate, last.outcome
        choice = self.choices.get(objective)
        best = choice and next(
            (e.outcome for e in reversed(self.evaluations) if e.candidate == choice.candidate), None
        )
        fate: Fate = "slower"
        note = outcome.reason
        if outcome.status == "slow":
            fate = "given up"
        elif not outcome.ok:
            fate, note = "failed", outcome.reason
        elif choice is not None and candidate == choice.candidate:
            fate, note = "chosen", choice.reason
        elif choice is not None and candidate in choice.ties:
            fate = "tie"
        if outcome.status in ("ok", "slow") and fate != "chosen" and best is not None and best.ok:
            note = f"{outcome.time_us(objective) / best.time_us(objective):.2f}x the choice's time"
        return Contender(
            order, first.elapsed_s, candidate, outcome, fate, note, last.stage == "race"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": KIND,
            "op": self.op,
            "workload": self.workload,
            "problem": self.problem,
            "stamp": self.stamp.to_json(),
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "evaluations": [
                {
                    **candidate_to_json(e.candidate),
                    "outcome": e.outcome.to_json(),
                    "elapsed_s": e.elapsed_s,
                    "stage": e.stage,
                }
                for e in self.evaluations
            ],
            "choices": {
                objective: {
                    **candidate_to_json(choice.candidate),
                    "reason": choice.reason,
                    "ties": [candidate_to_json(c) for c in choice.ties],
                }
                for objective, choice in self.choices.items()
            },
            "rejections": {name: dict(counts) for name, counts in self.rejections.items()},
            "unsupported": dict(self.unsupported),
            "conditions": dict(self.conditions),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TuningRecord:
        """The record of which `to_json` made this."""
        return cls(
            op=data["op"],
            workload=data["workload"],
            problem=data["problem"],
            stamp=Stamp(**data["stamp"]),
            seconds=data["seconds"],
            interrupted=data["interrupted"],
            evaluations=tuple(
                Evaluation(
                    _candidate(e), Outcome.from_json(e["outcome"]), e["elapsed_s"], e["stage"]
                )
                for e in data["evaluations"]
            ),
            choices={
                objective: Choice(
                    _candidate(data["choices"][objective]),
                    data["choices"][objective]["reason"],
                    tuple(map(_candidate, data["choices"][objective]["ties"])),
                )
                for objective in OBJECTIVES
                if objective in data["choices"]
            },
            rejections=data["rejections"],
            unsupported=data["unsupported"],
            conditions=data.get("conditions", {}),
        )


def _candidate(data: Mapping[str, Any]) -> Candidate:
    return Candidate(data["implementation"], Config(data["config"]))


def records_json(records: Sequence[TuningRecord]) -> dict[str, Any]:
    """One document of tuning records."""
    return {"kind": KIND, "records": [record.to_json() for record in records]}


def save_records(path: Path, records: Sequence[TuningRecord]) -> None:
    """Write tuning records into one file, whole or not at all."""
    write_json(path, records_json(records))


def is_record(data: Mapping[str, Any]) -> bool:
    """Whether a document is of tuning runs, not of a benchmark."""
    return data.get("kind") == KIND


def load_records(path: Path) -> tuple[TuningRecord, ...]:
    """Read what `save_records` wrote.

    Raises:
        InvalidInputError: the file cannot be read or holds something else.
    """
    data = read_json(path)
    try:
        return tuple(TuningRecord.from_json(one) for one in data["records"])
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(
            f"'{path}' is no tuning record of this version ({type(error).__name__}: {error}); "
            "records are what `gristmill tune --out FILE` writes. Name one, or tune again."
        ) from error
