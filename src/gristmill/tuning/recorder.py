"""Records a space: compiles and measures every config of a problem, or an even sample, in a seeded
order, and goes on where it was ended.

Compilers and the device work at the same time: several times as many configs as there are compilers
are on their way, and the worker measures whichever is ready. Almost all configs are far from the
best and cost it one repeat or a few. Those near the best are checked on every value variant at the
end and timed in turns with one of them.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gristmill import settings
from gristmill.core.implementation import Implementation
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.problem import Problem
from gristmill.core.registry import implementations
from gristmill.core.target import device_target
from gristmill.errors import InvalidInputError, TuningError, UnsupportedProblemError
from gristmill.measure.lease import device_lease
from gristmill.measure.statistics import paired_ratio
from gristmill.tuning.compiler import CompilePool
from gristmill.tuning.measurer import Measurer
from gristmill.tuning.progress import Observer, Silent, counted
from gristmill.tuning.recorded import (
    TIMED,
    Point,
    RecordedSource,
    Recording,
    load_recording,
    save_recording,
)
from gristmill.tuning.timed import Effort

EFFORT = Effort(repeats=9, timed_us=3_000.0, pairs=20, host=False, graph=False)
AHEAD = 4  # configs on their way for each compiler: a slow one does not keep the device waiting
SPARE_CORES = 2  # of the compilers', for the worker and this process
SAVE_EVERY_S = 20.0
NEAR = 1.10  # times the best: timed in turns at the end
MOST_NEAR = 240
TOGETHER = 15  # in turns, beside the reference
HICCUP_US = 200.0  # what a first repeat may be late by where the host was busy: once more
DEVICE_WAIT_S = 10.0
LOST = ("crash", "timeout")


@dataclass(frozen=True)
class Recorded:
    """What one session of recording did.

    Attributes:
        measured: configs measured in it. near: configs timed in turns in it.
        seconds: its length; of it `device_s` in the worker, `compiler_s` waiting for compilers.
        interrupted: Ctrl-C ended it.
    """

    recording: Recording
    measured: int
    near: int
    seconds: float
    device_s: float
    compiler_s: float
    interrupted: bool

    @property
    def complete(self) -> bool:
        """Whether every planned config is recorded, and those near the best are timed in turns."""
        return not self.recording.missing and not unpaired(self.recording)

    def to_json(self) -> dict[str, Any]:
        """The session in numbers."""
        recording, times = self.recording, self.recording.times()
        return {
            "problem": str(recording.problem),
            "recorded": len(recording.points),
            "planned": recording.planned,
            "valid_space": recording.valid,
            "right": len(times),
            "best_us": min(times.values(), default=None),
            "within_5_percent": recording.near_share(),
            "statuses": dict(Counter(p.outcome.status for p in recording.points.values())),
            "complete": self.complete,
            "interrupted": self.interrupted,
            "measured_now": self.measured,
            "in_turns_now": self.near,
            "seconds": self.seconds,
            "device_s": self.device_s,
            "compiler_s": self.compiler_s,
        }


def unpaired(recording: Recording) -> list[Candidate]:
    """The configs near the best that were not timed in turns yet, fastest first."""
    times = recording.times()
    ranked = sorted(times, key=lambda c: times[c])
    near = [c for c in ranked if times[c] <= NEAR * times[ranked[0]]]
    return [c for c in near[:MOST_NEAR] if recording.points[c].ratio is None]


class Recorder:
    """Records the space of one problem on one device into one file."""

    def __init__(
        self,
        problem: Problem,
        device: torch.device,
        path: Path,
        stamp: Mapping[str, Any],
        *,
        points: int | None = None,
        names: Sequence[str] = (),
        seed: int = 0,
        observer: Observer | None = None,
    ) -> None:
        """A recorder that goes on with `path` where there is such a file.

        Args:
            stamp: how the recording comes about (`bench/stamp.py`), kept with it.
            points: configs to record, an even sample of the valid ones; `None`: all.
            names: Triton implementations to record; none: all that can run the problem.

        Raises:
            InvalidInputError: an unknown name; a number of points below 1; a file of another
                problem, device, seed, set of sources or versions.
            UnsupportedProblemError: no Triton implementation with a space runs the problem here.
            ArtifactError: the file is damaged, or of another version.
        """
        if points is not None and points < 1:
            raise InvalidInputError(
                f"`points` is {points}; it needs at least 1, or None for every config. Raise it."
            )
        self.problem, self.device, self.path = problem, device, path
        self.target = device_target(device)
        self.observer: Observer = observer or Silent()
        order, sources = self._order(names, seed)
        self._plan = order[:points]
        self.recording = Recording(problem, self.target, stamp, seed, len(self._plan), sources)
        if path.exists():
            self.recording = self._continued(load_recording(path))
        self._started = self._saved = time.monotonic()
        self._device_s = self._compiler_s = 0.0
        self._measured = self._near = 0

    def _order(
        self, names: Sequence[str], seed: int
    ) -> tuple[list[Candidate], tuple[RecordedSource, ...]]:
        """Every valid config of the implementations in a random order, and what they are."""
        candidates: list[Candidate] = []
        sources: list[RecordedSource] = []
        for impl in self._chosen(names):
            found = [Candidate(impl.name, c) for c in impl.space.valid(self.problem, self.target)]
            candidates += found
            sources.append(
                RecordedSource(
                    impl.name,
                    impl.source_hash,
                    tuple((knob.name, knob.values) for knob in impl.space.knobs),
                    tuple(rule.name for rule in impl.space.derived),
                    len(found),
                )
            )
        random.Random(seed).shuffle(candidates)
        return candidates, tuple(sources)

    def _chosen(self, names: Sequence[str]) -> list[Implementation]:
        found = [i for i in implementations(self.problem.op) if i.kind == "triton"]
        known = [i.name for i in found]
        for name in names:
            if name not in known:
                raise InvalidInputError(
                    f"`implementation` is {name!r}; the Triton implementations of "
                    f"`{self.problem.op}` are {', '.join(known) or 'none'}. Choose of them."
                )
        asked = [i for i in found if (not names or i.name in names) and i.space.knobs]
        reasons = {i.name: i.why_not(self.problem, self.target) for i in asked}
        able = [i for i in asked if reasons[i.name] is None]
        if not able:
            raise UnsupportedProblemError(
                f"{self.problem} has no space to record on {self.target.name}: no Triton "
                f"implementation with a space runs it ({reasons}). Record another problem."
            )
        return able

    def _continued(self, kept: Recording) -> Recording:
        """A recording of the file's, to be gone on with."""
        new = self.recording
        facts: dict[str, Callable[[Recording], Any]] = {
            "problem": lambda r: r.problem,
            "device": lambda r: r.target.key,
            "seed": lambda r: r.seed,
            "sources": lambda r: [(s.name, s.source_hash, s.valid) for s in r.sources],
            "versions": lambda r: r.stamp.get("versions"),
        }
        for fact, of in facts.items():
            if of(kept) != of(new):
                raise InvalidInputError(
                    f"{self.path} was recorded with other {fact} ({of(kept)}); a recording goes on "
                    f"with the same ({of(new)}). Name another file, or remove this one."
                )
        return replace(kept, planned=max(len(self._plan), len(kept.points)))

    def run(self, seconds: float) -> Recorded:
        """Record until every planned config is there, or the time has passed. Ctrl-C ends it
        early; what was measured is kept.

        Raises:
            TuningError: another process measures on the device, or the problem itself cannot be
                measured.
        """
        left = [c for c in self._plan if c not in self.recording.points]
        self.observer.started(f"{self.problem}, to be recorded", seconds, max(len(left), 1))
        interrupted = False
        try:
            with device_lease(self.device, settings.current().lock_dir, DEVICE_WAIT_S) as mine:
                if not mine:
                    raise TuningError(
                        f"{self.problem} was not recorded: another process is measuring on "
                        f"{self.device}. Wait for it to end."
                    )
                self._started = self._saved = time.monotonic()
                deadline = self._started + seconds
                seed = self.recording.seed
                with Measurer(self.problem, self.device, seed, EFFORT) as measurer:
                    self._measure_all(measurer, left, deadline)
                    self._time_near(measurer, deadline)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            if self.recording.points:
                save_recording(self.path, self.recording)
            done = self._session(interrupted)
            self.observer.ended(f"{counted(done.measured, 'config')} in {done.seconds:.1f} s")
        return done

    def _session(self, interrupted: bool) -> Recorded:
        return Recorded(
            self.recording,
            self._measured,
            self._near,
            time.monotonic() - self._started,
            self._device_s,
            self._compiler_s,
            interrupted,
        )

    def _measure_all(self, measurer: Measurer, left: Sequence[Candidate], deadline: float) -> None:
        jobs = max(1, settings.current().compile_jobs - SPARE_CORES)
        waiting, known = iter(left), len(self.recording.points)
        again: set[Candidate] = set()
        best = min(self.recording.times().values(), default=None)
        with CompilePool(self.problem, self.target, jobs) as pool:
            while len(self.recording.points) < known + len(left) and time.monotonic() < deadline:
                while pool.pending < AHEAD * jobs and (one := next(waiting, None)) is not None:
                    pool.submit(one)
                asked = time.monotonic()
                candidate, outcome = pool.collect()
                self._compiler_s += time.monotonic() - asked
                if outcome.status in LOST and candidate not in again:
                    again.add(candidate)  # a compile server that ends takes others' along
                    pool.submit(candidate)
                    continue
                if outcome.ok:
                    outcome = self._measure(measurer, candidate, best)
                if outcome.ok and outcome.device_us is not None:
                    best = min(best or outcome.device_us, outcome.device_us)
                self._keep(candidate, outcome)

    def _measure(self, measurer: Measurer, candidate: Candidate, best: float | None) -> Outcome:
        began = time.monotonic()
        outcome = measurer.measure(candidate, best)
        first_us = outcome.device_us
        late = outcome.status == "slow" and outcome.repeats == 1
        if late and first_us is not None and first_us < (best or 0.0) + HICCUP_US:
            again = measurer.measure(candidate, best)
            outcome = again if (again.device_us or first_us) < first_us else outcome
        self._device_s += time.monotonic() - began
        return outcome

    def _keep(self, candidate: Candidate, outcome: Outcome) -> None:
        self.recording.points[candidate] = Point(outcome)
        self._measured += 1
        now = time.monotonic()
        self.observer.told(candidate, outcome, now - self._started)
        if now - self._saved >= SAVE_EVERY_S:
            save_recording(self.path, self.recording)
            self._saved = now

    def _time_near(self, measurer: Measurer, deadline: float) -> None:
        """Check those near the best on every value variant, and time them in turns with a
        reference; one that falls gives its place to others."""
        if self.recording.missing:
            return
        while (near := unpaired(self.recording)) and time.monotonic() < deadline:
            self.observer.racing(len(near))
            reference = self.recording.reference
            if reference is None:
                reference = self.recording.reference = near[0]
                self._race(measurer, reference, [])
                if self.recording.points[reference].outcome.status not in TIMED:
                    self.recording.reference = None
            elif not self._race(measurer, reference, near[:TOGETHER]):
                return  # another session may have more luck

    def _race(self, measurer: Measurer, reference: Candidate, others: Sequence[Candidate]) -> bool:
        """Whether the reference and these were timed in turns; what was not right is a row."""
        began = time.monotonic()
        together = [reference, *others]
        outcomes, samples = measurer.race(together)
        self._device_s += time.monotonic() - began
        base = samples[0].get("device")
        if others and not base:
            return False
        for candidate, outcome, sample in zip(together, outcomes, samples, strict=True):
            times = sample.get("device")
            if base and times:
                point = self.recording.points[candidate]
                kept = replace(point.outcome, error=outcome.error)
                ratio = paired_ratio(times, base).value
                self.recording.points[candidate] = Point(kept, ratio, len(times))
                self._near += candidate != reference
            else:
                self.recording.points[candidate] = Point(outcome)
        return True
