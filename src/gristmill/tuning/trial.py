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
from gristmill.core.plan import Candidate, Outcome, Status
from gristmill.core.problem import Problem
from gristmill.core.registry import implementation, load
from gristmill.core.target import device_target
from gristmill.errors import CompileError, GristmillError
from gristmill.measure.isolation import REASON_CHARS
from gristmill.measure.statistics import median
from gristmill.measure.timing import timer
from gristmill.verify import Verdict, compare, run_guarded, same_bits, truth

ABANDON_AFTER_1 = 3.0  # a first repeat this many times the best ends the race for a candidate
ABANDON_AFTER_5 = 1.25  # the same for the median of five
FULL_REPEATS = 25
TIMED_US = 30_000.0  # device time to spend on a candidate's repeats
RACE_PAIRS = 60
HOST_ROUNDS = 5
HOST_BOUND_US = 60.0  # no call of ours or of ATen keeps the host longer


class ContextLost(Exception):
    """The device context is unusable: an earlier kernel trapped. The worker has to be replaced."""


@dataclass(frozen=True)
class Case:
    """Arguments of one value variant, with the float64 truth."""

    values: tuple[Any, ...]
    references: tuple[torch.Tensor, ...]
    magnitudes: tuple[torch.Tensor, ...]


class Trials:
    """Candidates of one problem on one device."""

    def __init__(self, problem: Problem, device: torch.device, seed: int) -> None:
        self.op: Op = load(problem.op)
        self.problem, self.device, self.seed = problem, device, seed
        self.target = device_target(device)
        self.timer = timer(device)
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
                f"on {self.device} beside what is there: {_reason(error)}"
            ) from error
        except Exception as error:
            raise GristmillError(
                f"the {step} of `{self.op.name}` raised on {variant!r} inputs: {_reason(error)}"
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
            outcome = self._time(lambda: call(*case.values), best_us)
            outcome = replace(outcome, error=verdict.error)
            return self._with_resources(outcome, impl, config, case)

        return self._guarded(candidate, trial)

    def verify(self, candidates: Sequence[Candidate]) -> list[Outcome]:
        """Which candidates are correct on every variant (`ok`, with the worst error, untimed)."""
        return [outcome for outcome, _ in self._verified(candidates)]

    def race(
        self, candidates: Sequence[Candidate]
    ) -> tuple[list[Outcome], list[dict[str, list[float] | None]]]:
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
        samples: list[dict[str, list[float] | None]] = [{} for _ in candidates]
        if calls:
            self._race(calls, outcomes, samples)
        return outcomes, samples

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

    def _race(
        self,
        calls: Sequence[tuple[int, Callable[[], Any]]],
        outcomes: list[Outcome],
        samples: list[dict[str, list[float] | None]],
    ) -> None:
        functions = [call for _, call in calls]
        warm = [median(times) for times in self.timer.device_us(functions, 3)]
        hosts = self._host_us(functions, warm)
        pairs = (
            RACE_PAIRS
            if self.device.type == "cuda"
            else int(min(RACE_PAIRS, max(5, 2e6 / sum(warm))))
        )
        devices = self.timer.device_us(functions, pairs, max(hosts))
        graphs = self.timer.graph_us(functions, pairs)
        for (index, _), host, device, graph in zip(calls, hosts, devices, graphs, strict=True):
            samples[index] = {"device": device, "graph": graph}
            outcomes[index] = replace(
                outcomes[index],
                device_us=median(device),
                host_us=median(device) if self.device.type == "cpu" else host,  # one clock
                graph_us=None if graph is None else median(graph),
                repeats=len(device),
            )

    def _host_us(
        self, calls: Sequence[Callable[[], Any]], device_us: Sequence[float]
    ) -> list[float]:
        """Host times of calls, in turns where the host may be what decides."""
        rounds = HOST_ROUNDS if min(device_us) < HOST_BOUND_US else 1
        times = [
            [self.timer.host_us(call, us) for call, us in zip(calls, device_us, strict=True)]
            for _ in range(rounds)
        ]
        return [median(samples) for samples in zip(*times, strict=True)]

    def _time(self, call: Callable[[], Any], best_us: float | None) -> Outcome:
        call()
        self.timer.synchronize()
        best = float("inf") if best_us is None else best_us
        first = self.timer.device_us([call], 1)[0][0]
        if first > ABANDON_AFTER_1 * best:
            return Outcome(
                "slow",
                f"{first / best:.1f} times the best at the first repeat",
                device_us=first,
                repeats=1,
            )
        few = median(self.timer.device_us([call], 5)[0])
        if few > ABANDON_AFTER_5 * best:
            return Outcome(
                "slow", f"{few / best:.2f} times the best after 5 repeats", device_us=few, repeats=5
            )
        repeats = int(min(FULL_REPEATS, max(5, TIMED_US / max(few, 1.0))))
        device_us = median(self.timer.device_us([call], repeats)[0])
        return Outcome(
            "ok", device_us=device_us, host_us=self.timer.host_us(call, device_us), repeats=repeats
        )

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
        """The outcome of a trial, whatever it raises: a candidate's failure is a row."""
        impl = implementation(self.op.name, candidate.implementation)
        try:
            config = impl.config(candidate.config, self.problem, self.target)
            outcome = trial(impl, config)
        except CompileError as error:
            outcome = Outcome("compile_error", _reason(error))
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            outcome = Outcome("launch_error", _reason(error))
        except Exception as error:  # a candidate may raise anything
            status: Status = (
                "compile_error" if type(error).__module__.startswith("triton") else "launch_error"
            )
            outcome = Outcome(status, _reason(error))
        try:
            self.timer.synchronize()
        except RuntimeError as error:
            raise ContextLost(outcome.reason or _reason(error)) from error
        return outcome


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:REASON_CHARS]


def candidate_from_json(data: Mapping[str, Any]) -> Candidate:
    return Candidate(data["implementation"], Config(data["config"]))


def candidate_to_json(candidate: Candidate) -> dict[str, Any]:
    return {"implementation": candidate.implementation, "config": candidate.config.knobs}
