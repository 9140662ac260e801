"""A tuning run: candidates from strategies, compiled in parallel, measured in the worker, raced,
chosen, stored."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice

import torch

from gristmill import settings
from gristmill.cache.evidence import keep_run
from gristmill.cache.store import PlanStore
from gristmill.core.implementation import Kind
from gristmill.core.plan import (
    INTERRUPTED,
    OBJECTIVES,
    Candidate,
    Measurement,
    Objective,
    Outcome,
    Plan,
)
from gristmill.core.problem import Problem
from gristmill.core.provenance import provenance
from gristmill.core.registry import implementation, implementations
from gristmill.core.target import Target
from gristmill.errors import TuningError
from gristmill.measure.roofline import Roofline
from gristmill.tuning.budget import Budget, Evaluation, TuningResult
from gristmill.tuning.choose import Samples, choose, tied_with_fastest
from gristmill.tuning.hints import hints_of
from gristmill.tuning.known import best_known, known_outcomes, text_of
from gristmill.tuning.peers import against_peers
from gristmill.tuning.progress import Observer, Silent, summary
from gristmill.tuning.searches import Searches, at_roofline, no_plan
from gristmill.tuning.sites import LocalSite, Site
from gristmill.tuning.strategies import StrategyLike
from gristmill.tuning.subject import Compiles, Measures, Subject, Tunable

FINALISTS = 5  # Triton candidates in the last race, beside every vendor and compiled one
STORED = 4  # best candidates of an earlier run that a run starts with
DEVICE_WAIT_S = 10.0  # for another tuner on the device; then selection has to do without
RACES = 3  # at most, where all the Triton finalists of one fall in it
RACE_SHARE = 0.2  # of the budget in seconds, kept for the last race


class TuningRun:
    """One run for one problem on one device."""

    def __init__(
        self,
        op: Subject,
        problem: Problem,
        device: torch.device,
        store: PlanStore,
        budget: Budget | None = None,
        strategy: StrategyLike = "auto",
        seed: int = 0,
        observer: Observer | None = None,
        explore: bool = True,
        afresh: bool = False,
        site: Site | None = None,
    ) -> None:
        """`explore=False` measures only what is measured first: to revalidate a plan after an
        upgrade. `afresh`: what was measured before is measured again. `site`: where to measure, if
        not simply on `device`."""
        self.op, self.problem, self.device, self.store = op, problem, device, store
        self.site = site or LocalSite(device)
        self.explore = explore
        self.budget = budget or Budget(settings.current().budget_s)
        self.observer: Observer = observer or Silent()
        self.target: Target = self.site.target
        self.bucket = op.bucket(problem)
        self.result = TuningResult()
        self._start = time.monotonic()
        self._unsaved: list[Candidate] = []
        able = [i for i in self.tunables() if i.why_not(problem, self.target) is None]
        self._fixed = sorted(
            (i for i in able if i.kind != "triton"), key=lambda i: i.kind != "vendor"
        )
        self._searched = [i for i in able if i.kind == "triton"]
        hints = hints_of(op, self._searched, problem, self.target, store) if explore else {}
        asked = (problem, self.target, seed, hints, self.budget.trials)
        self._strategies = Searches(strategy, self._searched, *asked)
        self._roofline: Roofline | None = None
        self._resumed = set() if afresh else self._resume()
        self._measurer = self.make_measurer(seed)
        self._verified: dict[Candidate, Samples] = {}  # right on every variant

    def tunables(self) -> Sequence[Tunable]:
        """What there is to choose from."""
        return implementations(self.op.name)

    def tunable(self, name: str) -> Tunable:
        """The one of this name."""
        return implementation(self.op.name, name)

    def make_measurer(self, seed: int) -> Measures:
        """What measures candidates, for the length of the run."""
        return self.site.measurer(self.problem, seed)

    def make_pool(self) -> Compiles:
        """What compiles candidates ahead of their trial."""
        return self.site.pool(self.problem)

    @property
    def _versions(self) -> str:
        """Under what is measured: the provenance of rows and plans."""
        return self.site.versions or provenance()

    def _resume(self) -> set[Candidate]:
        """Take over what was measured before: among all of it the finalists race, and nothing else
        is measured twice."""
        rows = self.store.measurements(self.op.name, self.bucket.key, self.target.key)
        able = (*self._fixed, *self._searched)
        known = known_outcomes(rows, able, self.problem, self.target, self._versions)
        self.result.outcomes.update(known)
        for candidate, outcome in known.items():
            self._strategies.tell(candidate, outcome)
        return set(known)

    def _kind(self, candidate: Candidate) -> Kind:
        return self.tunable(candidate.implementation).kind

    def run(self) -> TuningResult:
        """Tune. Ctrl-C ends the search early: what was measured is kept, and `interrupted` says so.

        Raises:
            TuningError: nothing can run the problem here, its reference raises, or no candidate was
                right.
            StrategyError: a strategy raised, or proposed what cannot be measured; what was measured
                until then has raced and is kept, with its plans.
        """
        if not self._fixed and not self._searched:
            reasons = "; ".join(
                f"{i.name}: {i.why_not(self.problem, self.target)}" for i in self.tunables()
            )
            raise TuningError(
                f"{self.problem} cannot be tuned on {self.target.name}: no implementation runs "
                f"it ({reasons})."
            )
        self.observer.started(str(self.problem), self.budget.seconds, self.budget.trials)
        try:
            self._search_and_race()
            if not self.result.skipped:
                self._decide()
        finally:
            self._save_measurements()
            self.observer.ended(summary(self.result, len(self._measured), len(self._resumed)))
        if self._strategies.fault is not None:
            raise self._strategies.fault
        return self.result

    def _search_and_race(self) -> None:
        try:
            with self.site.lease(min(self.budget.seconds, DEVICE_WAIT_S)) as mine:
                if not mine:
                    self.result.skipped = f"another process is measuring on {self.site.name}"
                    return
                with self._measurer, self.make_pool() as pool:
                    self._start = time.monotonic()
                    try:
                        self._measure_all(pool)
                    finally:
                        self.result.conditions = self._measurer.conditions()
        except KeyboardInterrupt:  # the second one, or outside a measurement
            self.result.interrupted = True
        self.result.seconds = time.monotonic() - self._start

    def _measure_all(self, pool: Compiles) -> None:
        try:
            self._search(pool)
            self._race()
        except KeyboardInterrupt:
            # What leads is still to be checked on every variant before it may be a plan: seconds.
            self.result.interrupted = True
            self._verify_leaders()

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._start

    @property
    def _measured(self) -> set[Candidate]:
        return self.result.outcomes.keys() - self._resumed

    @property
    def _searching(self) -> bool:
        trials = self.budget.trials
        spent = sum(self._kind(c) == "triton" for c in self._measured)
        enough = trials is not None and spent >= trials
        self.result.stopped = at_roofline(
            self._best_us(), self._roofline, self.budget.roofline_stop
        )
        if enough or self.result.stopped or self._strategies.fault is not None:
            return False
        return self.explore and self._time_left

    @property
    def _time_left(self) -> bool:
        return self._elapsed_s < self.budget.seconds * (1 - RACE_SHARE)

    def _search(self, pool: Compiles) -> None:
        """What is always measured first, unless it was before: the vendor calls, the priors and the
        stored best (which compile meanwhile), the compiled reference. Then what the strategies ask
        for, until the budget ends."""
        first = [c for c in self._first_candidates() if c not in self._resumed]
        for candidate in first:
            self._strategies[candidate.implementation].seen.add(candidate.config)
            pool.submit(candidate)
        self._measure_fixed("vendor")
        for _ in first:
            self._measure(*pool.collect())
        self._measure_fixed("compiled")
        if self.explore and self.budget.roofline_stop is not None:
            self._roofline = self._measurer.roofline()
        turns = self._strategies.turns
        while self._searching and (turns.active or pool.pending):
            while turns.active and pool.pending < 2 * self.site.jobs:
                name = turns.next()
                asked, why_none = self._strategies.ask(name, self._allowance(pool.pending))
                if why_none is not None:
                    self._tell(Candidate(name), why_none)
                for config in asked:
                    pool.submit(Candidate(name, config))
            if not pool.pending:
                return
            candidate, compiled = pool.collect()
            self._measure(candidate, against_peers(candidate, compiled, self.result.outcomes))

    def _measure_fixed(self, kind: Kind) -> None:
        for impl in (i for i in self._fixed if i.kind == kind):
            candidate = Candidate(impl.name, impl.config(None, self.problem, self.target))
            if candidate not in self._resumed:
                self._measure(candidate)

    def _measure(self, candidate: Candidate, compiled: Outcome | None = None) -> None:
        """Measure a candidate (unless its compilation failed), and tell everyone."""
        outcome = compiled
        if outcome is None or outcome.ok:
            fixed = candidate.implementation not in self._strategies
            outcome = self._measurer.measure(candidate, None if fixed else self._best_us())
        self._tell(candidate, outcome)

    def _allowance(self, pending: int) -> int:
        """How many configs to ask for at once."""
        batch = max(1, self.site.jobs)
        if self.budget.trials is None:
            return batch
        spent = sum(c.implementation in self._strategies for c in self._measured) + pending
        return max(0, min(batch, self.budget.trials - spent))

    def _first_candidates(self) -> list[Candidate]:
        first = []
        for impl in self._searched:
            try:
                first.append(Candidate(impl.name, impl.config(None, self.problem, self.target)))
            except ValueError as error:  # outside its own space: a row, and the search goes on
                reason = f"its prior is not valid: {error}"
                self._tell(Candidate(impl.name), Outcome("unsupported", reason))
        rows = self.store.measurements(self.op.name, self.bucket.key, self.target.key)
        stored = best_known(rows, self._searched, self.problem, self.target, self._versions)
        first += list(islice((c for c in stored if c not in first), STORED))
        return first

    def _best_us(self) -> float | None:
        times = [
            o.device_us for o in self.result.outcomes.values() if o.ok and o.device_us is not None
        ]
        return min(times, default=None)

    def _tell(self, candidate: Candidate, outcome: Outcome) -> None:
        self.result.outcomes[candidate] = outcome
        self.result.trajectory.append(Evaluation(candidate, outcome, self._elapsed_s))
        self._strategies.tell(candidate, outcome)
        self._unsaved.append(candidate)
        self._save_measurements()  # at once: whoever kills this run loses the trial in flight
        self.observer.told(candidate, outcome, self._elapsed_s)

    def _finalists(self) -> list[Candidate]:
        """Every vendor and compiled candidate that is right so far, and the best Triton ones."""
        good = [(c, o) for c, o in self.result.outcomes.items() if o.ok]
        fixed = {i.name for i in self._fixed}
        searched = [e for e in good if e[0].implementation not in fixed]
        searched.sort(key=lambda e: e[1].time_us("graph"))
        leaders = [c for c, _ in searched[:FINALISTS]]
        return [c for c, _ in good if c.implementation in fixed] + leaders

    def _race(self) -> None:
        """The last race. Where every Triton finalist falls in it (an adversarial input, a trap),
        the next ones run another."""
        for _ in range(RACES):
            finalists = self._finalists()
            if not finalists:
                return
            self.observer.racing(len(finalists))
            outcomes, samples = self._measurer.race(finalists)
            for candidate, outcome, sample in zip(finalists, outcomes, samples, strict=True):
                self.result.outcomes[candidate] = outcome
                self.result.trajectory.append(
                    Evaluation(candidate, outcome, self._elapsed_s, "race")
                )
                self._unsaved.append(candidate)
                if outcome.ok:
                    self._verified[candidate] = sample
            self._save_measurements()
            searched = [c for c in finalists if c.implementation in self._strategies]
            if not searched or any(c in self._verified for c in searched):
                return

    def _verify_leaders(self) -> None:
        """After an interruption: check the leaders on every variant, without another timing."""
        leaders = [c for c in self._finalists() if c not in self._verified]
        if leaders:
            for candidate, outcome in zip(leaders, self._measurer.verify(leaders), strict=True):
                if outcome.ok:
                    self._verified[candidate] = {}
                else:
                    self.result.outcomes[candidate] = outcome
                    self._unsaved.append(candidate)

    def _decide(self) -> None:
        """Plans, among the candidates that are right on every value variant and no others."""
        for warning in self.result.conditions.warnings:
            self.observer.warned(warning)
        for objective in OBJECTIVES:
            plan = self._plan(list(self._verified), objective)
            if plan is not None:
                self.result.plans[objective] = plan
                family = self.bucket.family(self.op.axes(self.problem))
                self.store.save_plan(plan, family, dict(self.bucket.axes))
        run = {"problem": text_of(self.problem), "conditions": self.result.conditions.to_json()}
        keep_run(self.store.folder, (self.op.name, self.bucket.key, self.target.key), run)
        if not self.result.plans and not self.result.interrupted:
            raise no_plan(self.problem, self.result.outcomes)

    def _plan(self, pool: Sequence[Candidate], objective: Objective) -> Plan | None:
        entries = [(c, self.result.outcomes[c], self._verified[c]) for c in pool]
        known = self.store.plan(self.op.name, self.bucket.key, self.target.key, objective)
        incumbent = known.candidate if known else None
        if self.result.interrupted and known is not None and self._still_holds(known):
            return known
        slack = self.result.conditions.slack
        tied = tied_with_fastest(entries, objective, slack)
        self.result.ties[objective] = tuple(c for c, _, _ in tied)
        best = choose(self.op.name, entries, objective, incumbent, self._kind, slack)
        if best is None:
            return None
        ready = [e for e in entries if self._kind(e[0]) != "compiled"]
        fallback = choose(self.op.name, ready, objective, incumbent, self._kind, slack)
        candidate, outcome, reason = best
        if slack:
            reason += f" (a noisy machine: within {slack:.0%} is a tie)"
        return Plan(
            op=self.op.name,
            candidate=candidate,
            bucket=self.bucket.key,
            target=self.target.key,
            objective=objective,
            origin="tuned",
            source_hash=self.tunable(candidate.implementation).source_hash,
            fallback=fallback[0] if fallback else None,
            evidence=outcome,
            reason=reason + (" (interrupted: no last race)" if self.result.interrupted else ""),
            provenance=INTERRUPTED if self.result.interrupted else self._versions,
        )

    def _still_holds(self, plan: Plan) -> bool:
        """Whether a stored plan is of a whole search, of the sources as they are, and did not fail
        just now."""
        outcome = self.result.outcomes.get(plan.candidate)
        failed = outcome is not None and outcome.status not in ("ok", "slow")
        source = self.tunable(plan.candidate.implementation).source_hash
        return not (plan.revalidate or failed) and plan.source_hash == source

    def _save_measurements(self) -> None:
        rows = [
            Measurement(
                op=self.op.name,
                candidate=candidate,
                source_hash=self.tunable(candidate.implementation).source_hash,
                bucket=self.bucket.key,
                target=self.target.key,
                problem=text_of(self.problem),
                outcome=self.result.outcomes[candidate],
                provenance=self._versions,
                measured_at=self.store.now(),
            )
            for candidate in dict.fromkeys(self._unsaved)
        ]
        self._unsaved.clear()
        if rows:
            self.store.record(rows)
