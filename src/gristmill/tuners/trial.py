"""What happens to a candidate of a user's kernel: run it on copies of the call's arguments, look at
what it wrote, time it. In the worker, or in this process where the kernel cannot travel."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from gristmill.core.plan import Candidate, Outcome
from gristmill.measure.timing import no_garbage_collection
from gristmill.tuners.arguments import (
    Arguments,
    Copies,
    decode_values,
    encode_values,
    tensors_of,
)
from gristmill.tuners.truth import judge, returned_names
from gristmill.tuning.timed import Effort, Samples, Timed
from gristmill.verify import Verdict, poison, same_bits

Check = Literal["reference", "agree", "none"]
AGREED = "agreed"  # the file of outputs that later candidates are compared with
QUANTILES = (0.5, 0.2, 0.8)  # what Triton asks a `do_bench` for
FILLINGS = (-1.5, 1.5)
IN_PLACE = (
    "; what it was given was right before: an output that is read too belongs in `restore_value`"
)


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
        outputs: the arguments that are written; nothing else may change, where it is not empty,
            but for what the next two have.
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
        self._agreements: dict[bool, Mapping[str, torch.Tensor]] = {}
        prepared = terms.reset_to_zero or terms.restore_value
        if prepared:
            self.timer.prepare = functools.partial(_prepare, copies, terms)  # no cycle with `self`

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

    def _verified(self, candidate: Candidate) -> Outcome:
        """A candidate's guarded run, judged; on poisoned outputs, then on those of the call, where
        these are not right already: the kernel may work in place."""
        outcome = self._run_once(candidate, poison)
        if self.terms.check == "agree" and self.terms.outputs and outcome.ok:
            return self._run_once(candidate)  # in place, NaN agrees with NaN
        if outcome.status != "wrong" or self.terms.check != "reference":
            return outcome
        before = tensors_of(self.copies.named(self.terms.names, fresh=True))
        right = judge(before, self.truth, self.terms.rtol, self.terms.atol).ok
        if right and not self._writes_all(candidate):
            return replace(outcome, reason=outcome.reason + IN_PLACE)
        again = self._run_once(candidate)
        return again if again.ok else outcome

    def _writes_all(self, candidate: Candidate) -> bool:
        """Whether a kernel changes every element of its outputs for one of two fillings: its result
        depends on what was there, and is not what was there."""
        kept: dict[str, torch.Tensor] = {}
        for value in FILLINGS:
            if self._run_once(candidate, lambda t, v=value: t.fill_(v)).status != "wrong":
                continue
            for name, tensor in tensors_of(self.copies.named(self.terms.names)).items():
                if name in self.truth:
                    same = tensor.double() == torch.full_like(tensor, value).double()
                    kept[name] = same & kept.get(name, same)
        return not any(bool(same.any()) for same in kept.values())

    def _run_once(
        self, candidate: Candidate, fill: Callable[[torch.Tensor], Any] | None = None
    ) -> Outcome:
        """A guarded run, on outputs that were filled (`None`: as in the call), judged."""
        self.copies.restore()
        _prepare(self.copies, self.terms)
        read_too = {*self.terms.reset_to_zero, *self.terms.restore_value}
        tensors = tensors_of(self.copies.named(self.terms.names))
        for name, tensor in tensors.items():
            if fill and _among(name, self.terms.outputs) and not _among(name, read_too):
                fill(tensor)
        result = self._bound(candidate)()
        self.timer.synchronize()
        if not self.copies.intact():
            return Outcome("wrong", "it wrote outside its arguments' memory", error=float("inf"))
        verdict = self._judged(tensors, result, fill is not None)
        if not verdict.ok:
            return Outcome("wrong", verdict.reason, error=verdict.error)
        checked = self.terms.check != "none"
        ok = Outcome("ok", error=verdict.error if checked else None)
        return ok if self.calls[candidate].grid is None else replace(ok, **_resources(result))

    def _judged(self, tensors: Mapping[str, torch.Tensor], result: Any, poisoned: bool) -> Verdict:
        outputs = self.terms.outputs
        if outputs:
            fresh = tensors_of(self.copies.named(self.terms.names, fresh=True))
            written = {*outputs, *self.terms.reset_to_zero, *self.terms.restore_value}
            changed = self._changed(tensors, fresh, written)
            if changed:
                return Verdict(False, float("inf"), f"it changed its argument `{changed}`")
        if self.terms.check == "none":
            return Verdict(True, 0.0)
        got = {n: v for n, v in tensors.items() if not outputs or _among(n, outputs)}
        got.update(_returned(result))
        if self.terms.check == "reference":
            return judge({**tensors, **got}, self.truth, self.terms.rtol, self.terms.atol)
        truth = self._agreed(got, poisoned)
        verdict = judge(got, truth, self.terms.rtol, self.terms.atol)
        if verdict.ok:
            return verdict
        return replace(verdict, reason=f"unlike the first candidate that ran: {verdict.reason}")

    @staticmethod
    def _changed(
        tensors: Mapping[str, torch.Tensor],
        fresh: Mapping[str, torch.Tensor],
        written: Collection[str],
    ) -> str | None:
        """An argument that is not to be written and is not what it was; memory that an output
        shares is the output's."""
        theirs = {t.untyped_storage().data_ptr() for n, t in tensors.items() if _among(n, written)}
        for name, value in tensors.items():
            mine = value.untyped_storage().data_ptr() not in theirs
            if mine and not same_bits(value, fresh[name]):
                return name
        return None

    def _agreed(
        self, got: Mapping[str, torch.Tensor], poisoned: bool
    ) -> Mapping[str, torch.Tensor]:
        """The outputs of the first candidate that ran; these, if it is this one. In a file, for a
        worker that comes after this one."""
        if poisoned not in self._agreements:
            name = f"{AGREED}-{poisoned}"
            file = self.folder / f"{name}.json"
            if not file.exists():
                alone = Arguments.of((), {n: v.clone() for n, v in got.items()})
                file.write_text(json.dumps(alone.save(self.folder, name)))
            self._agreements[poisoned] = load_truth(self.folder, json.loads(file.read_text()))
        return self._agreements[poisoned]

    def _benched(self, call: Callable[[], Any]) -> Outcome:
        """Timed by the user's own `do_bench`, which gives milliseconds."""
        assert self.hooks.do_bench is not None

        def prepared() -> Any:
            _prepare(self.copies, self.terms)
            return call()

        with no_garbage_collection():
            times = self.hooks.do_bench(prepared, quantiles=QUANTILES)
        first = times[0] if isinstance(times, Sequence) else times
        return Outcome("ok", device_us=float(first) * 1e3, host_us=0.0, repeats=1)


def _prepare(copies: Copies, terms: Terms) -> None:
    """What every launch has to find."""
    if not (terms.reset_to_zero or terms.restore_value):
        return
    fresh = tensors_of(copies.named(terms.names, fresh=True))
    for name, tensor in tensors_of(copies.named(terms.names)).items():
        if _among(name, terms.restore_value):
            tensor.copy_(fresh[name])
        if _among(name, terms.reset_to_zero):
            tensor.zero_()


def _among(name: str, arguments: Collection[str]) -> bool:
    """Whether a tensor is one of these arguments, or in one."""
    return name in arguments or name.partition("[")[0] in arguments


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
