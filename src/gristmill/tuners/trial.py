"""What happens to a candidate of a user's kernel: run it on copies of the call's arguments, look at
what it wrote, time it. In the worker, or in this process where the kernel cannot travel."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from gristmill.core.plan import Candidate, Outcome
from gristmill.measure.timing import no_garbage_collection
from gristmill.tuners.arguments import Arguments, Copies, decode_values, encode_values
from gristmill.tuners.truth import judge, returned_names
from gristmill.tuning.timed import Effort, Samples, Timed
from gristmill.verify import Verdict, poison, same_bits

Check = Literal["reference", "agree", "none"]
AGREED = "agreed"  # the file of outputs that later candidates are compared with
QUANTILES = (0.5, 0.2, 0.8)  # what Triton asks a `do_bench` for


@dataclass(frozen=True)
class Call:
    """How one candidate is called: a kernel's grid (`None`: a Python function), and the keywords
    that its config adds to the arguments."""

    grid: tuple[int, ...] | None
    keywords: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As JSON.

        Raises:
            CannotTravelError: a keyword has no description.
        """
        return {"grid": self.grid, "keywords": encode_values(self.keywords)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Call:
        grid = data["grid"]
        return cls(None if grid is None else tuple(grid), decode_values(data["keywords"]))


@dataclass(frozen=True)
class Terms:
    """What is asked of every candidate.

    Attributes:
        names: the parameters' names, of the positional arguments.
        check: `reference` (outputs against the truth), `agree` (against the first candidate that
            ran), or `none`.
        outputs: the arguments that are written; nothing else may change, where it is not empty.
        reset_to_zero, restore_value: arguments that every launch has to find at zero, or as they
            were in the call.
        rtol, atol: how far from the truth (`truth.judge`).
    """

    names: tuple[str, ...]
    check: Check = "none"
    outputs: tuple[str, ...] = ()
    reset_to_zero: tuple[str, ...] = ()
    restore_value: tuple[str, ...] = ()
    rtol: float | None = None
    atol: float = 0.0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Terms:
        given: dict[str, Any] = {k: tuple(v) if type(v) is list else v for k, v in data.items()}
        return cls(**given)


@dataclass(frozen=True)
class Hooks:
    """What a user's own functions do around a launch; these never travel."""

    before: Callable[[Candidate, dict[str, Any]], None] | None = None
    after: Callable[[dict[str, Any], Exception | None], None] | None = None
    do_bench: Callable[..., Any] | None = None

    def __bool__(self) -> bool:
        return any((self.before, self.after, self.do_bench))


NO_HOOKS = Hooks()


class KernelTrials(Timed):
    """Candidates of one kernel on one call's values."""

    def __init__(
        self,
        function: Any,
        copies: Copies,
        truth: Mapping[str, torch.Tensor],
        terms: Terms,
        device: torch.device,
        effort: Effort,
        folder: Path,
        hooks: Hooks = NO_HOOKS,
    ) -> None:
        super().__init__(device, effort)
        self.function, self.copies, self.truth, self.terms = function, copies, truth, terms
        self.folder, self.hooks = folder, hooks
        self.calls: dict[Candidate, Call] = {}  # how each candidate is called
        prepared = terms.reset_to_zero or terms.restore_value
        if prepared:
            self.timer.prepare = self._prepare

    def measure(self, candidate: Candidate, best_us: float | None) -> Outcome:
        """One candidate: right, as far as it is checked? then how fast, given up early where it
        trails `best_us`."""

        def trial() -> Outcome:
            outcome = self._verified(candidate)
            if not outcome.ok:
                return outcome
            call = self._bound(candidate)
            timed = self._benched(call) if self.hooks.do_bench else self.time_call(call, best_us)
            facts = (outcome.error, outcome.registers, outcome.spills, outcome.shared_bytes)
            names = ("error", "registers", "spills", "shared_bytes")
            return replace(timed, **dict(zip(names, facts, strict=True)))

        return self.outcome_of(trial)

    def verify(self, candidates: Sequence[Candidate]) -> list[Outcome]:
        """Which candidates run and are right, untimed."""
        return [self.outcome_of(lambda c=c: self._verified(c)) for c in candidates]

    def race(self, candidates: Sequence[Candidate]) -> tuple[list[Outcome], list[Samples]]:
        """Finalists: right? then timed in turns."""
        if self.hooks.do_bench:
            outcomes = [self.measure(candidate, None) for candidate in candidates]
            return outcomes, [{"device": [o.device_us]} if o.device_us else {} for o in outcomes]
        outcomes = self.verify(candidates)
        calls = [(i, self._bound(c)) for i, c in enumerate(candidates) if outcomes[i].ok]
        samples: list[Samples] = [{} for _ in candidates]
        if calls:
            self.copies.restore()
            self.race_calls(calls, outcomes, samples)
        return outcomes, samples

    def _bound(self, candidate: Candidate) -> Callable[[], Any]:
        """A function that calls the candidate on the copies."""
        call, copies = self.calls[candidate], self.copies
        launch = self.function if call.grid is None else self.function[call.grid]
        before, after = self.hooks.before, self.hooks.after
        keywords = {**copies.kwargs, **call.keywords}

        def run() -> Any:
            return launch(*copies.args, **keywords)

        def run_between_hooks() -> Any:
            named = {**copies.named(self.terms.names), **call.keywords}
            if before is not None:
                before(candidate, named)
            try:
                result = run()
            except Exception as error:
                if after is not None:
                    after(named, error)
                raise
            if after is not None:
                after(named, None)
            return result

        return run_between_hooks if before or after else run

    def _prepare(self) -> None:
        """What every launch has to find."""
        named = self.copies.named(self.terms.names)
        fresh = self.copies.named(self.terms.names, fresh=True)
        for name in self.terms.reset_to_zero:
            if named.get(name) is not None:
                named[name].zero_()
        for name in self.terms.restore_value:
            if named.get(name) is not None:
                named[name].copy_(fresh[name])

    def _verified(self, candidate: Candidate) -> Outcome:
        """A candidate's guarded run, judged; on poisoned outputs, then on those of the call, where
        these are not right already: the kernel may work in place."""
        outcome = self._run_once(candidate, poisoned=True)
        if outcome.status != "wrong" or self.terms.check != "reference":
            return outcome
        before = self.copies.named(self.terms.names, fresh=True)
        if judge(before, self.truth, self.terms.rtol, self.terms.atol).ok:
            return outcome
        again = self._run_once(candidate, poisoned=False)
        return again if again.ok else outcome

    def _run_once(self, candidate: Candidate, poisoned: bool) -> Outcome:
        self.copies.restore()
        self._prepare()
        read_too = {*self.terms.reset_to_zero, *self.terms.restore_value}
        named = self.copies.named(self.terms.names)
        for name in self.terms.outputs if poisoned else ():
            if name not in read_too and isinstance(named.get(name), torch.Tensor):
                poison(named[name])
        result = self._bound(candidate)()
        self.timer.synchronize()
        if not self.copies.intact():
            return Outcome("wrong", "it wrote outside its arguments' memory", error=float("inf"))
        verdict = self._judged(named, result)
        if not verdict.ok:
            return Outcome("wrong", verdict.reason, error=verdict.error)
        checked = self.terms.check != "none"
        ok = Outcome("ok", error=verdict.error if checked else None)
        return ok if self.calls[candidate].grid is None else replace(ok, **_resources(result))

    def _judged(self, named: Mapping[str, Any], result: Any) -> Verdict:
        outputs = self.terms.outputs
        if outputs:
            fresh = self.copies.named(self.terms.names, fresh=True)
            changed = self._changed(named, fresh, outputs)
            if changed:
                return Verdict(False, float("inf"), f"it changed its argument `{changed}`")
        if self.terms.check == "none":
            return Verdict(True, 0.0)
        got = {n: v for n, v in named.items() if isinstance(v, torch.Tensor)}
        if outputs:
            got = {n: v for n, v in got.items() if n in outputs}
        got.update(_returned(result))
        if self.terms.check == "reference":
            return judge({**named, **got}, self.truth, self.terms.rtol, self.terms.atol)
        truth = self._agreed(got)
        verdict = judge(got, truth, self.terms.rtol, self.terms.atol)
        if verdict.ok:
            return verdict
        return replace(verdict, reason=f"unlike the first candidate that ran: {verdict.reason}")

    @staticmethod
    def _changed(
        named: Mapping[str, Any], fresh: Mapping[str, Any], outputs: Sequence[str]
    ) -> str | None:
        """An argument that is no output and is not what it was; memory that an output shares is
        the output's."""
        written = {
            named[n].untyped_storage().data_ptr()
            for n in outputs
            if isinstance(named.get(n), torch.Tensor)
        }
        for name, value in named.items():
            if not isinstance(value, torch.Tensor) or name in outputs:
                continue
            mine = value.untyped_storage().data_ptr() not in written
            if mine and not same_bits(value, fresh[name]):
                return name
        return None

    def _agreed(self, got: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The outputs of the first candidate that ran; these, if it is this one. In a file, for a
        worker that comes after this one."""
        if not self.truth:
            file = self.folder / f"{AGREED}.json"
            if not file.exists():
                alone = Arguments.of((), {n: v.clone() for n, v in got.items()})
                file.write_text(json.dumps(alone.save(self.folder, AGREED)))
            self.truth = load_truth(self.folder, json.loads(file.read_text()))
        return self.truth

    def _benched(self, call: Callable[[], Any]) -> Outcome:
        """Timed by the user's own `do_bench`, which gives milliseconds."""
        assert self.hooks.do_bench is not None
        with no_garbage_collection():
            times = self.hooks.do_bench(call, quantiles=QUANTILES)
        first = times[0] if isinstance(times, Sequence) else times
        return Outcome("ok", device_us=float(first) * 1e3, host_us=0.0, repeats=1)


def _returned(result: Any) -> dict[str, torch.Tensor]:
    """The tensors that a Python function returned, by position."""
    values = result if isinstance(result, tuple) else (result,)
    named = zip(returned_names(len(values)), values, strict=True)
    return {name: value for name, value in named if isinstance(value, torch.Tensor)}


def _resources(result: Any) -> dict[str, Any]:
    """What the compiler says of the kernel that a launch returned."""
    found = {
        "registers": getattr(result, "n_regs", None),
        "spills": getattr(result, "n_spills", None),
        "shared_bytes": getattr(getattr(result, "metadata", None), "shared", None),
    }
    return {name: value for name, value in found.items() if isinstance(value, int)}


def load_truth(folder: Path, data: Mapping[str, Any] | None) -> dict[str, torch.Tensor]:
    """The truth that crossed with a task."""
    return {} if data is None else Copies(Arguments.load(folder, data), owned=True).kwargs
