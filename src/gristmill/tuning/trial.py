"""What happens to a candidate inside the worker: build, check against the float64 reference,
time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from gristmill.compile.bound import BoundCall, bind
from gristmill.compile.executor import EXECUTOR
from gristmill.core.config import Config
from gristmill.core.implementation import Implementation
from gristmill.core.op import Op
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.problem import Problem
from gristmill.core.registry import implementation, load
from gristmill.core.target import device_target
from gristmill.errors import GristmillError
from gristmill.measure.ceilings import copy_call, matrix_rate, time_us
from gristmill.measure.roofline import Roofline, roofline
from gristmill.tuning.timed import Effort, Samples, Timed, reason_of
from gristmill.verify import Verdict, compare, run_guarded, same_bits, truth


@dataclass(frozen=True)
class Case:
    """Arguments of one value variant, with the float64 truth."""

    values: tuple[Any, ...]
    references: tuple[torch.Tensor, ...]
    magnitudes: tuple[torch.Tensor, ...]


class Trials(Timed):
    """Candidates of one problem on one device."""

    def __init__(
        self, problem: Problem, device: torch.device, seed: int, effort: Effort | None = None
    ) -> None:
        self.op: Op = load(problem.op)
        super().__init__(device, effort)
        self.problem, self.seed = problem, seed
        self.target = device_target(device)
        self._cases: dict[str, Case] = {}

    def case(self, variant: str) -> Case:
        """Inputs and truth of a variant; kept for the usual one.

        Raises:
            GristmillError: whatever the input maker or the reference raised, named.
        """
        kept = self._cases.get(variant)
        if kept is not None:
            return kept
        step = "input maker"
        try:
            generator = torch.Generator(self.device).manual_seed(self.seed)
            values = self.op.inputs(self.problem, generator, variant)
            step = "reference"
            references, magnitudes = truth(self.op, values)
            self.timer.synchronize()
        except torch.OutOfMemoryError as error:
            self._cases.clear()
            torch.cuda.empty_cache()
            raise GristmillError(
                f"the {variant!r} inputs of {self.problem} and their float64 references do not fit "
                f"on {self.device} beside what is there: {reason_of(error)}"
            ) from error
        except Exception as error:
            raise GristmillError(
                f"the {step} of `{self.op.name}` raised on {variant!r} inputs: {reason_of(error)}"
            ) from error
        case = Case(values, references, magnitudes)
        if variant == self.op.variants[0]:
            self._cases[variant] = case
        return case

    def measure(self, candidate: Candidate, best_us: float | None) -> Outcome:
        """One candidate: correct on the usual inputs? then how fast, given up early where it trails
        `best_us`."""
        case = self.case(self.op.variants[0])

        def trial(impl: Implementation, config: Config) -> Outcome:
            call = bind(impl, config, case.values)
            verdict = self._check(impl, config, case, call)
            if not verdict.ok:
                return Outcome("wrong", verdict.reason, error=verdict.error)
            outcome = self.time_call(lambda: call(*case.values), best_us)
            outcome = replace(outcome, error=verdict.error)
            return self._with_resources(outcome, impl, config, case)

        return self._guarded(candidate, trial)

    def verify(self, candidates: Sequence[Candidate]) -> list[Outcome]:
        """Which candidates are correct on every variant (`ok`, with the worst error, untimed)."""
        return [outcome for outcome, _ in self._verified(candidates)]

    def race(self, candidates: Sequence[Candidate]) -> tuple[list[Outcome], list[Samples]]:
        """Finalists: correct on every variant? then timed in turns; outcomes, and samples in the
        candidates' order."""
        verified = self._verified(candidates)
        outcomes = [outcome for outcome, _ in verified]
        values = self.case(self.op.variants[0]).values
        calls: list[tuple[int, Callable[[], Any]]] = [
            (index, lambda call=call: call(*values))
            for index, (_, call) in enumerate(verified)
            if call is not None
        ]
        samples: list[Samples] = [{} for _ in candidates]
        if calls:
            self.race_calls(calls, outcomes, samples)
        return outcomes, samples

    def roofline(self) -> Roofline:
        """The least time under what the device reaches now: a copy of as many bytes, and a large
        matmul in the problem's arithmetic."""
        cost = self.op.cost(self.problem)
        copy = copy_call(cost.size_bytes, self.device)
        copy_us = time_us(copy, self.device, self.target.l2)
        arithmetic = self.op.matrix_arithmetic(self.problem)
        rate = matrix_rate(self.device, arithmetic) if arithmetic else None
        return roofline(cost, copy_us, rate)

    def _verified(self, candidates: Sequence[Candidate]) -> list[tuple[Outcome, BoundCall | None]]:
        """Each candidate's outcome of every variant, and its bound call where it passed.

        The candidates go through variant by variant, so that the truth of one adversarial variant
        is on the device at a time, and what its making raises is nobody's outcome.
        """
        outcomes = [Outcome("ok", error=0.0) for _ in candidates]
        calls: dict[Candidate, BoundCall] = {}
        for variant in self.op.variants:
            case = self.case(variant)
            for index, candidate in enumerate(candidates):
                if outcomes[index].ok:
                    so_far = outcomes[index]
                    outcomes[index] = self._on_variant(variant, case, candidate, so_far, calls)
            del case  # before the next one is made
        return [
            (outcome, calls[candidate] if outcome.ok else None)
            for outcome, candidate in zip(outcomes, candidates, strict=True)
        ]

    def _on_variant(
        self,
        variant: str,
        case: Case,
        candidate: Candidate,
        so_far: Outcome,
        calls: dict[Candidate, BoundCall],
    ) -> Outcome:
        """A candidate's outcome after one more variant; bound at its first."""

        def trial(impl: Implementation, config: Config) -> Outcome:
            if candidate not in calls:
                calls[candidate] = bind(impl, config, case.values)
            verdict = self._check(impl, config, case, calls[candidate])
            if not verdict.ok:
                reason = f"on {variant!r} inputs: {verdict.reason}"
                return Outcome("wrong", reason, error=verdict.error)
            worst = replace(so_far, error=max(so_far.error or 0.0, verdict.error))
            return self._with_resources(worst, impl, config, case)

        return self._guarded(candidate, trial)

    def _check(self, impl: Implementation, config: Config, case: Case, call: BoundCall) -> Verdict:
        """A guarded run against the truth; then the bound call, which is what users run, against
        the same: its bits may differ, its errors may not be larger than the bounds."""
        bounds = self.op.bounds(self.problem)
        outputs, fault = run_guarded(
            impl, case.values, config, None if impl.launcher is not None else call
        )
        if fault is not None:
            return Verdict(ok=False, error=float("inf"), reason=fault)
        verdict = compare(outputs, case.references, case.magnitudes, bounds)
        if not verdict.ok or impl.launcher is None:
            return verdict
        again, fault = run_guarded(impl, case.values, config, call)
        if fault is not None:
            return Verdict(ok=False, error=float("inf"), reason=f"bound, {fault}")
        if all(same_bits(first, second) for first, second in zip(outputs, again, strict=True)):
            return verdict
        bound = compare(again, case.references, case.magnitudes, bounds)
        if not bound.ok:
            return replace(bound, reason=f"bound, {bound.reason}")
        return replace(verdict, error=max(verdict.error, bound.error))

    def _with_resources(
        self, outcome: Outcome, impl: Implementation, config: Config, case: Case
    ) -> Outcome:
        if impl.launcher is None:
            return outcome
        outputs, workspace = impl.allocate(case.values, config)
        launches = impl.launches(case.values, outputs, workspace, config)
        registers, spills, shared = EXECUTOR.resources(launches)
        return replace(outcome, registers=registers, spills=spills, shared_bytes=shared)

    def _guarded(
        self, candidate: Candidate, trial: Callable[[Implementation, Config], Outcome]
    ) -> Outcome:
        """The outcome of a trial, with the candidate's config checked as part of it."""
        impl = implementation(self.op.name, candidate.implementation)
        return self.outcome_of(
            lambda: trial(impl, impl.config(candidate.config, self.problem, self.target))
        )


def candidate_from_json(data: Mapping[str, Any]) -> Candidate:
    return Candidate(data["implementation"], Config(data["config"]))


def candidate_to_json(candidate: Candidate) -> dict[str, Any]:
    return {"implementation": candidate.implementation, "config": candidate.config.knobs}
