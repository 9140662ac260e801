"""A tuning run over a user's kernel: the run of `tuning` with a kernel in place of an op, tried in
a worker or in this process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Self

from gristmill import settings
from gristmill.cache.store import PlanStore
from gristmill.core.plan import Candidate, Objective, Outcome, Plan, latest_of_each
from gristmill.core.problem import Problem
from gristmill.core.provenance import provenance
from gristmill.errors import TuningError
from gristmill.measure.conditions import Conditions, Sightings
from gristmill.tuners.arguments import copies_of
from gristmill.tuners.choices import Choices
from gristmill.tuners.compiler import KernelCompilePool, NothingToCompile
from gristmill.tuners.task import KernelTask
from gristmill.tuners.trial import KernelTrials
from gristmill.tuning.budget import Budget
from gristmill.tuning.known import AGAIN, best_known
from gristmill.tuning.measurer import Measurer
from gristmill.tuning.progress import Observer
from gristmill.tuning.runner import STORED, TuningRun
from gristmill.tuning.strategies import StrategyLike
from gristmill.tuning.subject import Compiles, Measures
from gristmill.tuning.timed import ContextLost, reason_of

UNCHECKED = "; its outputs were not checked"
LEAST = 16  # configs of a space


class WorkerMeasurer(Measurer):
    """Tries candidates in a worker, which reads the call from a folder that lives as long as the
    run."""

    worker = "gristmill.tuners.worker"

    def __init__(self, task: KernelTask, device: torch.device, seed: int) -> None:
        super().__init__(Problem(task.name, ()), device, seed)
        self._task = task
        self._stack = ExitStack()
        self.folder = ""  # of the task, while the run lasts

    def measure(self, candidate: Candidate, best_us: float | None) -> Outcome:
        """The outcome of one candidate, whatever it does to the worker."""
        try:
            self._task.resolve(candidate.config).to_json()
        except Exception as error:  # noqa: BLE001 - a user's grid or heuristic: this config's outcome
            return Outcome("launch_error", reason_of(error))
        return super().measure(candidate, best_us)

    def encode(self, candidate: Candidate) -> dict[str, Any]:
        """A candidate as it crosses to the worker: with its call."""
        return {**super().encode(candidate), "call": self._task.resolve(candidate.config).to_json()}

    def _timeout_s(self, candidates: Sequence[Candidate]) -> float:
        del candidates
        return settings.current().candidate_timeout_s

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # closed where the reference raises
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gristmill-"))
            try:
                self._task.save(Path(folder))
            except OSError as error:
                size_gib = self._task.arguments.size_bytes / (1 << 30)
                raise TuningError(
                    f"the arguments ({size_gib:.2f} GiB) cannot be written to {folder} for the "
                    f"worker: {error}. Let TMPDIR name a folder with room, or pass `isolate=False`."
                ) from error
            self.folder = self._base["folder"] = self._base["problem"] = folder
            super().__enter__()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        super().__exit__(kind, *exc)
        self._stack.close()


class LocalMeasurer:
    """Tries candidates in this process, on copies."""

    def __init__(self, task: KernelTask, device: torch.device) -> None:
        self._task, self._device = task, device
        self._stack = ExitStack()
        self._trials: KernelTrials | None = None
        self._sightings = Sightings()

    def measure(self, candidate: Candidate, best_us: float | None) -> Outcome:
        """The outcome of one candidate.

        Raises:
            TuningError: it has ruined this process's device context.
        """
        try:
            self._prepared([candidate])
        except Exception as error:  # noqa: BLE001 - as for the worker
            return Outcome("launch_error", reason_of(error))
        return self._in_context(lambda trials: trials.measure(candidate, best_us), [candidate])

    def race(self, candidates: Sequence[Candidate]) -> tuple[list[Outcome], list[dict[str, Any]]]:
        """Outcomes and samples of finalists timed in turns."""
        return self._in_context(lambda trials: trials.race(candidates), candidates)

    def verify(self, candidates: Sequence[Candidate]) -> list[Outcome]:
        """Outcomes of candidates that are run once."""
        return self._in_context(lambda trials: trials.verify(candidates), candidates)

    def roofline(self) -> None:
        """What a kernel computes is not known."""

    def conditions(self) -> Conditions:
        """What the device was like so far."""
        if self._trials is not None:
            self._sightings.add(self._trials.watch.drain())
        return self._sightings.conditions()

    def _prepared(self, candidates: Sequence[Candidate]) -> KernelTrials:
        assert self._trials is not None
        for candidate in candidates:
            self._trials.calls[candidate] = self._task.resolve(candidate.config)
        return self._trials

    def _in_context(
        self, ask: Callable[[KernelTrials], Any], candidates: Sequence[Candidate]
    ) -> Any:
        try:
            return ask(self._prepared(candidates))
        except ContextLost as lost:
            named = ", ".join(str(c.config) for c in candidates)
            raise TuningError(
                f"{self._task.name} has ruined the device context of this process, with {named}: "
                f"{lost}. Start again without that config, or let the kernel be tried in a worker."
            ) from lost

    def __enter__(self) -> Self:
        task = self._task
        with ExitStack() as stack:  # as for the worker
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gristmill-"))
            if self._device.type == "cuda":
                stack.enter_context(torch.cuda.device(self._device))
            self._trials = KernelTrials(
                task.function,
                copies_of(task.arguments),
                task.truth,
                task.asked,
                self._device,
                task.effort,
                Path(folder),
                task.hooks,
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._trials = None
        self._stack.close()


class KernelRun(TuningRun):
    """One run for one call of a user's kernel."""

    def __init__(
        self,
        task: KernelTask,
        device: torch.device,
        store: PlanStore,
        isolate: bool,
        budget: Budget,
        strategy: StrategyLike = "auto",
        seed: int = 0,
        observer: Observer | None = None,
        explore: bool = True,
        afresh: bool = False,
        skip: bool = False,
    ) -> None:
        """`skip`: the configs of a list that were measured before, for whatever call of this key,
        are so only among the best."""
        self._task, self._isolate = task, isolate
        super().__init__(
            task, task.problem, device, store, budget, strategy, seed, observer, explore, afresh
        )
        known = store.measurements(task.name, self.bucket.key, self.target.key)
        if skip and explore and isinstance(task.space, Choices):
            now = (task.source_hash, provenance())
            rows = [m for m in known if m.outcome.status not in AGAIN]
            rows = [m for m in rows if (m.source_hash, m.provenance) == now]
            for m in latest_of_each(rows, provenance()):
                if m.candidate.config in task.space.values and m.candidate not in self._resumed:
                    self._strategies.tell(m.candidate, m.outcome)

    def tunables(self) -> Sequence[KernelTask]:
        """The kernel alone."""
        return (self._task,)

    def tunable(self, name: str) -> KernelTask:
        """The kernel."""
        del name
        return self._task

    def make_measurer(self, seed: int) -> Measures:
        """A worker where everything can travel, this process where not."""
        if self._isolate:
            return WorkerMeasurer(self._task, self.device, seed)
        return LocalMeasurer(self._task, self.device)

    def make_pool(self) -> Compiles:
        """A compile server where the kernel is in a folder for it; elsewhere candidates are
        compiled as they are tried."""
        compiled = (
            type(self._task.function).__name__ == "JITFunction"
        )  # Gluon's are another language
        if compiled and isinstance(self._measurer, WorkerMeasurer):
            return KernelCompilePool(self._measurer.folder, self.target, self._task.resolve)
        return NothingToCompile()

    @property
    def _time_left(self) -> bool:
        """As for an op; but a space has no prior, so its first config says nothing: some are tried
        whatever the worker's start has left of the budget."""
        return super()._time_left or len(self._measured) < LEAST

    def _first_candidates(self) -> list[Candidate]:
        """As for an op; a list has no prior, but a first one."""
        task = self._task
        rows = self.store.measurements(task.name, self.bucket.key, self.target.key)
        first = Candidate(task.name, task.config(None, self.problem, self.target))
        known = best_known(rows, (task,), self.problem, self.target, provenance())
        return [first, *islice((c for c in known if c != first), STORED)]

    def _plan(self, pool: Sequence[Candidate], objective: Objective) -> Plan | None:
        plan = super()._plan(pool, objective)
        if plan is None or self._task.terms.check != "none" or plan.reason.endswith(UNCHECKED):
            return plan
        return replace(plan, reason=plan.reason + UNCHECKED)

    def _decide(self) -> None:
        """As for an op; where candidates are compared with each other and most are unlike the
        first, nobody knows which of them are right."""
        outcomes = list(self.result.outcomes.values())
        unlike = [o for o in outcomes if o.status == "wrong" and o.reason.startswith("unlike")]
        right = sum(o.status in ("ok", "slow") for o in outcomes)
        if self._task.terms.check == "agree" and len(unlike) > right:
            raise TuningError(
                f"{self.problem} has no plan: {len(unlike)} of {len(outcomes)} configs give other "
                f"outputs than the first ({unlike[0].reason}), so it is not known who is right. "
                "Pass `reference=`, or widen `rtol` and `atol`."
            )
        super()._decide()
