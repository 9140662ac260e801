"""Under what conditions something was measured: the noise and drift of a launch that is always the
same, the device's clocks, temperature and power, and who else was on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from gristmill.measure.sensors import Reading, sensor
from gristmill.measure.statistics import median
from gristmill.measure.timing import Timer
from gristmill.record import record

ANCHOR_BYTES = {"cuda": 32 << 20, "cpu": 1 << 20}  # read and written by the anchor's `copy_`
ANCHOR_REPEATS = 3
FEWEST = 8  # anchors that say something
MOST = 200  # anchors that a slope is worked out of
# The 10th to the 90th percentile of the anchors, half of it over the median: beyond this the
# machine is noisy.
NOISY = 0.05
DRIFTING = 0.05  # change of the anchor from the beginning of a run to its end
SURE = 8.0  # times noise / sqrt(anchors): three standard errors of a slope under normal noise
WIDEST = 0.10  # the most that ties are widened by: more noise than this is no reason to choose

Range = tuple[float, float]


@record
class Conditions:
    """What the device was like throughout a run.

    Attributes:
        anchors: how often the anchor, a small copy, was timed.
        noise: half the span of the middle 80% of those times, over their median, without the drift;
            `None` for fewer than eight.
        drift: how much longer the anchor took at the end than at the beginning, as a share.
        sm_mhz, memory_mhz, temperature_c, power_w: the least and the most that was read.
        held_by: what held the clocks down at a look. others: other processes on the device.
    """

    anchors: int = 0
    noise: float | None = None
    drift: float | None = None
    sm_mhz: Range | None = None
    memory_mhz: Range | None = None
    temperature_c: Range | None = None
    power_w: Range | None = None
    held_by: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @classmethod
    def of(cls, anchors_us: Sequence[float], readings: Sequence[Reading]) -> Conditions:
        """The conditions in the anchors' times, in their order, and looks at the device."""
        noise, drift = spread(anchors_us)
        return cls(
            anchors=len(anchors_us),
            noise=noise,
            drift=drift,
            sm_mhz=_range([reading.sm_mhz for reading in readings]),
            memory_mhz=_range([reading.memory_mhz for reading in readings]),
            temperature_c=_range([reading.temperature_c for reading in readings]),
            power_w=_range([reading.power_w for reading in readings]),
            held_by=tuple(dict.fromkeys(h for reading in readings for h in reading.held_by)),
            others=tuple(dict.fromkeys(o for reading in readings for o in reading.others)),
        )

    @property
    def noisy(self) -> bool:
        """Whether times vary more than what a choice can be built on."""
        return self.noise is not None and self.noise > NOISY

    @property
    def drifting(self) -> bool:
        """Whether the anchor changed from the beginning to the end by more than it varies."""
        if self.drift is None or self.noise is None:
            return False
        return abs(self.drift) > max(DRIFTING, SURE * self.noise / math.sqrt(self.anchors))

    @property
    def slack(self) -> float:
        """The share by which ties are widened: the noise of a noisy machine, else nothing."""
        return min(self.noise or 0.0, WIDEST) if self.noisy else 0.0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is to be said of a run that was measured under these, a sentence each."""
        found = []
        if self.noisy:
            found.append(
                f"the machine is noisy: one small copy took up to {self.noise:.0%} more or less "
                f"from trial to trial ({NOISY:.0%} is quiet); measure again when nothing else runs"
            )
        if self.drift is not None and self.drifting:
            slower = "longer" if self.drift > 0 else "less long"
            found.append(
                f"the machine drifts: the same copy took {abs(self.drift):.0%} {slower} at the end "
                "than at the beginning"
            )
        if self.held_by:
            clocks = f" ({_text(self.sm_mhz)} MHz)" if self.sm_mhz else ""
            found.append(f"the clocks{clocks} were held down: {', '.join(self.held_by)}")
        if self.others:
            found.append(f"other processes are on the device: {', '.join(self.others)}")
        return tuple(found)

    def __str__(self) -> str:
        """The figures in one line; empty where there are none."""
        parts = []
        if self.noise is not None:
            parts.append(f"noise {self.noise:.1%}, drift {self.drift or 0.0:+.1%}")
        for value, unit in (
            (self.sm_mhz, "MHz"),
            (self.memory_mhz, "MHz memory"),
            (self.temperature_c, "C"),
            (self.power_w, "W"),
        ):
            if value is not None:
                parts.append(f"{_text(value)} {unit}")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {**fields, "warnings": list(self.warnings)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Conditions:
        """What `to_json` gave.

        Raises:
            TypeError, ValueError: it is of a version that this one does not know.
        """
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "warnings"
        }
        return cls(**fields)


class Watch:
    """Times the anchor and looks at the device, between the trials of one process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.anchors_us: list[float] = []
        self.readings: list[Reading] = []
        self._copy: tuple[torch.Tensor, torch.Tensor] | None = None

    def anchor(self, timer: Timer) -> None:
        """Time the anchor: a launch that is always the same."""
        if self._copy is None:
            source = torch.zeros(ANCHOR_BYTES[self.device.type] // 8, device=self.device)
            self._copy = source, torch.empty_like(source)
            self._copy[1].copy_(source)
        source, target = self._copy
        prepare, timer.prepare = timer.prepare, None  # what the candidates' calls need
        try:
            (times,) = timer.device_us([lambda: target.copy_(source)], ANCHOR_REPEATS)
        finally:
            timer.prepare = prepare
        self.anchors_us.append(median(times))

    def look(self) -> None:
        """Read the device's sensors; takes milliseconds: around a race, not between launches."""
        if (reading := sensor(self.device).read()) is not None:
            self.readings.append(reading)

    def drain(self) -> dict[str, Any]:
        """What was seen since the last time, as JSON."""
        seen = {"anchors_us": self.anchors_us, "readings": [asdict(r) for r in self.readings]}
        self.anchors_us, self.readings = [], []
        return seen


class Sightings:
    """What watches saw in the course of a run, in order: several, where a worker was replaced."""

    def __init__(self) -> None:
        self._anchors_us: list[float] = []
        self._readings: list[Reading] = []

    def add(self, seen: Mapping[str, Any]) -> None:
        """Take over what `Watch.drain` gave."""
        self._anchors_us += seen.get("anchors_us", ())
        self._readings += map(Reading.from_json, seen.get("readings", ()))

    def conditions(self) -> Conditions:
        """All of it together."""
        return Conditions.of(self._anchors_us, self._readings)


def conditions_of(watch: Watch) -> Conditions:
    """What one watch saw."""
    sightings = Sightings()
    sightings.add(watch.drain())
    return sightings.conditions()


def spread(times_us: Sequence[float]) -> tuple[float | None, float | None]:
    """Noise and drift of repeated times of one launch, as shares of their median.

    The drift is the median of the slopes between all pairs (Theil, 1950; Sen, 1968), which a few
    outliers do not move, times the length of the run.
    """
    times = np.asarray(times_us, dtype=np.float64)
    middle = float(np.median(times)) if len(times) else 0.0
    if len(times) < FEWEST or middle <= 0.0:
        return None, None
    at = np.linspace(0.0, 1.0, len(times))
    some = np.unique(np.linspace(0, len(times) - 1, min(len(times), MOST)).astype(int))
    first, second = np.triu_indices(len(some), 1)
    x, y = at[some], times[some]
    drift = float(np.median((y[second] - y[first]) / (x[second] - x[first])))
    low, high = np.percentile(times - drift * at, [10, 90])
    return float(high - low) / 2 / middle, drift / middle


def _range(values: Sequence[float | None]) -> Range | None:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None


def _text(bounds: Range | None) -> str:
    low, high = bounds or (0.0, 0.0)
    return f"{low:,.0f}" if round(low) == round(high) else f"{low:,.0f} to {high:,.0f}"
