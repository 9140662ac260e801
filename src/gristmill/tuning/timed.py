"""The timing half of a trial, whatever is tried: repeats that are given up early, finalists in
turns, and failures as outcomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from gristmill import settings
from gristmill.core.plan import Outcome, Status
from gristmill.errors import CompileError
from gristmill.measure.conditions import Watch
from gristmill.measure.isolation import REASON_CHARS
from gristmill.measure.statistics import median
from gristmill.measure.timing import timer

ABANDON_AFTER_1 = 3.0  # a first repeat this many times the best ends the race for a candidate
ABANDON_AFTER_5 = 1.25  # the same for the median of five
HOST_ROUNDS = 5
RACE_ANCHORS = 4  # at either end of a race: of a search that was short there are few
HOST_BOUND_US = 60.0  # no call of ours or of ATen keeps the host longer


class ContextLost(Exception):
    """The device context is unusable: an earlier kernel trapped. The worker has to be replaced."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much timing a candidate gets.

    Attributes:
        repeats: timed repeats at most, of which at least five whatever `timed_us` says.
        timed_us: device time to spend on a candidate's repeats.
        pairs: repeats in the last race.
        warmup_runs, warmup_us: untimed calls before the first timed one, as many as either asks.
        give_up: end a candidate's timing early where it trails the best.
        host, graph: also time the host's side of a call (0.1 s a candidate), and a replayed graph
            in the last race.
    """

    repeats: int = 25
    timed_us: float = 30_000.0
    pairs: int = 60
    warmup_runs: int = 1
    warmup_us: float = 0.0
    give_up: bool = True
    host: bool = True
    graph: bool = True

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Effort:
        return cls(**data)


Samples = dict[str, "list[float] | None"]


class Timed:
    """Times calls on one device and turns what they raise into outcomes."""

    def __init__(self, device: torch.device, effort: Effort | None = None) -> None:
        self.device = device
        self.effort = effort or Effort()
        self.timer = timer(device, settings.current().l2)
        self.watch = Watch(device)

    def race_calls(
        self,
        calls: Sequence[tuple[int, Callable[[], Any]]],
        outcomes: list[Outcome],
        samples: list[Samples],
    ) -> None:
        """Time calls in turns, and write the outcome and the samples of each at its index."""
        functions = [call for _, call in calls]
        warm = [median(times) for times in self.timer.device_us(functions, 3)]
        hosts = self._host_us(functions, warm) if self.effort.host else warm
        self._observe()
        pairs = self.effort.pairs
        if self.device.type != "cuda":
            pairs = int(min(pairs, max(5, 2e6 / sum(warm))))
        devices = self.timer.device_us(functions, pairs, max(hosts))
        graphs: Sequence[list[float] | None] = [None] * len(functions)
        if self.effort.graph:
            graphs = self.timer.graph_us(functions, pairs)
        self._observe()
        for (index, _), host, device, graph in zip(calls, hosts, devices, graphs, strict=True):
            samples[index] = {"device": device, "graph": graph}
            outcomes[index] = replace(
                outcomes[index],
                device_us=median(device),
                host_us=self._host_side(host, device),
                graph_us=None if graph is None else median(graph),
                repeats=len(device),
            )

    def _observe(self) -> None:
        """What the device is like at one end of a race."""
        for _ in range(RACE_ANCHORS):
            self.watch.anchor(self.timer)
        self.watch.look()

    def _host_side(self, host_us: float, device_us: Sequence[float]) -> float | None:
        """The host time to report of a call that was timed."""
        if not self.effort.host:
            return None
        return median(device_us) if self.device.type == "cpu" else host_us  # one clock

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

    def time_call(self, call: Callable[[], Any], best_us: float | None) -> Outcome:
        """How fast a call is, given up early where it trails `best_us`."""
        for _ in range(self.effort.warmup_runs):
            if self.timer.prepare is not None:
                self.timer.prepare()
            call()
        self.timer.synchronize()
        self.watch.anchor(self.timer)
        best = float("inf") if best_us is None or not self.effort.give_up else best_us
        first = self.timer.device_us([call], 1)[0][0]
        if slow := trailing(first, 1, best):
            return slow
        few = median(self.timer.device_us([call], 5)[0])
        if slow := trailing(few, 5, best):
            return slow
        if self.effort.warmup_us:
            self.timer.device_us([call], int(self.effort.warmup_us / max(few, 1.0)))
        repeats = int(min(self.effort.repeats, max(5, self.effort.timed_us / max(few, 1.0))))
        device_us = median(self.timer.device_us([call], repeats)[0])
        host_us = self.timer.host_us(call, device_us) if self.effort.host else None
        return Outcome("ok", device_us=device_us, host_us=host_us, repeats=repeats)

    def outcome_of(self, trial: Callable[[], Outcome]) -> Outcome:
        """The outcome of a trial, whatever it raises: a candidate's failure is a row.

        Raises:
            ContextLost: the device does not answer any more.
        """
        try:
            outcome = trial()
        except CompileError as error:
            outcome = Outcome("compile_error", reason_of(error))
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            outcome = Outcome("launch_error", reason_of(error))
        except Exception as error:  # a candidate may raise anything
            status: Status = (
                "compile_error" if type(error).__module__.startswith("triton") else "launch_error"
            )
            outcome = Outcome(status, reason_of(error))
        try:
            self.timer.synchronize()
        except RuntimeError as error:
            raise ContextLost(outcome.reason or reason_of(error)) from error
        return outcome


def trailing(device_us: float, repeats: int, best_us: float) -> Outcome | None:
    """`slow` where a candidate that takes this after so many repeats is given up, else `None`."""
    if device_us <= (ABANDON_AFTER_1 if repeats == 1 else ABANDON_AFTER_5) * best_us:
        return None
    after = "at the first repeat" if repeats == 1 else f"after {repeats} repeats"
    reason = f"{device_us / best_us:.2f} times the best {after}"
    return Outcome("slow", reason, device_us=device_us, repeats=repeats)


def reason_of(error: BaseException) -> str:
    """An exception as an outcome's reason."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:REASON_CHARS]
