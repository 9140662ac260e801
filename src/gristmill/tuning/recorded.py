"""Recorded spaces: what every config of a problem's space gave on a device, in a file.

The file is gzipped JSONL: a header (what was measured, where, under what), one line an
implementation (its knobs with their values, and the names of what it derives), then one array a
config: values as their places among the knob's, -1 where the knob is not active.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gristmill.core.config import Config, Value
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.problem import Problem
from gristmill.core.space import Knob, Rejection, Rule, Space, derive
from gristmill.core.target import Target
from gristmill.errors import ArtifactError
from gristmill.measure.statistics import median

FORMAT = "gristmill recorded space"
VERSION = 1
TIMED = ("ok", "slow")  # right, with a time
REASON_CHARS = 160
# What of an outcome is kept, in this order; then the paired ratio and its repeats.
FIELDS = ("device_us", "repeats", "error", "registers", "spills", "shared_bytes")
INACTIVE = -1


@dataclass(frozen=True)
class Point:
    """A config's outcome, and its time over the reference's, in turns with it (near the best
    only)."""

    outcome: Outcome
    ratio: float | None = None
    pairs: int = 0


@dataclass(frozen=True)
class RecordedSource:
    """An implementation as it was recorded.

    Attributes:
        knobs: names and values, in the order of the space.
        derived: names of what the space derives.
        valid: configs in its space, recorded or not.
    """

    name: str
    source_hash: str
    knobs: tuple[tuple[str, tuple[Value, ...]], ...]
    derived: tuple[str, ...]
    valid: int


@dataclass
class Recording:
    """The outcomes of one problem's configs on one device.

    Attributes:
        stamp: how it came about: versions, commit, date, command (`bench/stamp.py`).
        seed: of the inputs, and of the order in which configs are measured.
        planned: configs to be recorded: all valid ones, or so many drawn evenly from them.
        reference: the config that `Point.ratio` is over.
        points: by candidate, in the order in which they were measured.
    """

    problem: Problem
    target: Target
    stamp: Mapping[str, Any]
    seed: int
    planned: int
    sources: tuple[RecordedSource, ...]
    reference: Candidate | None = None
    points: dict[Candidate, Point] = field(default_factory=dict)

    @property
    def valid(self) -> int:
        """Configs in the spaces, recorded or not."""
        return sum(source.valid for source in self.sources)

    @property
    def missing(self) -> int:
        """Planned configs that are not recorded."""
        return self.planned - len(self.points)

    def times(self) -> dict[Candidate, float]:
        """The times in microseconds of the configs that were right.

        Those near the best were timed in turns with one of them: their times are the ratios to it,
        put on the scale of the single timings, so that a device that slows down under load moves
        none past another.
        """
        right = {c: p for c, p in self.points.items() if p.outcome.status in TIMED}
        scales = [
            p.outcome.device_us / p.ratio
            for p in right.values()
            if p.ratio and p.outcome.device_us is not None
        ]
        scale = median(scales) if scales else 1.0
        found = {c: p.ratio * scale if p.ratio else p.outcome.device_us for c, p in right.items()}
        return {c: us for c, us in found.items() if us is not None}

    def near_share(self, within: float = 0.05) -> float:
        """The share of the right configs whose time is within this of the best one's."""
        times = sorted(self.times().values())
        return sum(us <= times[0] * (1 + within) for us in times) / len(times) if times else 0.0

    def space(self, source: RecordedSource) -> RecordedSpace:
        """The space of one implementation's recorded configs."""
        return RecordedSpace(
            source, [c.config for c in self.points if c.implementation == source.name]
        )


class RecordedSpace(Space):
    """A space whose valid points are the recorded configs, and that has no others.

    It does not look at the implementation: a recording says what it said when the kernel is edited.
    """

    def __init__(self, source: RecordedSource, configs: Sequence[Config]) -> None:
        self._known = {config: config for config in configs}
        self._places = {name: {_exact(v): i for i, v in enumerate(vs)} for name, vs in source.knobs}
        self._order = sorted(self._known, key=self._place)
        super().__init__(
            *(Knob(name, values) for name, values in source.knobs),
            *(derive(name, _carried(name)) for name in source.derived),
        )

    @property
    def size(self) -> int:
        """The recorded configs."""
        return len(self._order)

    def at(self, index: int, problem: Problem, target: Target) -> Config | Rejection:
        """The recorded config of this index, in the order of the space."""
        del problem, target
        return self._order[index]

    def points(self, problem: Problem, target: Target) -> Iterator[Config | Rejection]:
        """Every recorded config."""
        del problem, target
        return iter(self._order)

    def _judge(
        self, values: Mapping[str, Value], problem: Problem, target: Target, strict: bool = False
    ) -> Config | Rejection:
        del problem, target, strict
        chosen: dict[str, Value] = {}
        for name in self._places:
            before = tuple(_exact(value) for value in chosen.values())
            if (name, before) in self._active and name in values:
                chosen[name] = values[name]
        config = Config(chosen)
        return self._known.get(config) or Rejection(config, "it was not recorded")

    @cached_property
    def _active(self) -> set[tuple[str, tuple[Any, ...]]]:
        """Knobs, with the values before them under which they are active."""
        found: set[tuple[str, tuple[Any, ...]]] = set()
        for config in self._known:
            before: tuple[Any, ...] = ()
            for name in self._places:
                if name in config.knobs:
                    found.add((name, before))
                    before += (_exact(config.knobs[name]),)
        return found

    def _place(self, config: Config) -> tuple[int, ...]:
        return tuple(
            places[_exact(config.knobs[name])] if name in config.knobs else INACTIVE
            for name, places in self._places.items()
        )


def _exact(value: Value) -> tuple[str, Value]:
    """A value that is told from one of another type (`True` from 1)."""
    return type(value).__name__, value


def _carried(name: str) -> Rule:
    """The rule of a derived value that the recorded configs carry."""
    return lambda config, problem, target: config[name]


def save_recording(path: Path, recording: Recording) -> None:
    """Write a recording; who reads meanwhile, or an end in the middle, finds the one before."""
    text = io.StringIO()
    for line in _lines(recording):
        text.write(json.dumps(line, separators=(",", ":")) + "\n")
    data = gzip.compress(text.getvalue().encode(), mtime=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _lines(recording: Recording) -> Iterator[Any]:
    order = {candidate: index for index, candidate in enumerate(recording.points)}
    yield {
        "format": FORMAT,
        "version": VERSION,
        "problem": recording.problem.to_json(),
        "target": asdict(recording.target),
        "stamp": recording.stamp,
        "seed": recording.seed,
        "valid": recording.valid,
        "planned": recording.planned,
        "recorded": len(recording.points),
        "reference": order[recording.reference] if recording.reference is not None else None,
        "columns": ["source", "places", "derived", "status", "reason", *FIELDS, "ratio", "pairs"],
    }
    for source in recording.sources:
        yield asdict(source)
    sources = {source.name: (index, source) for index, source in enumerate(recording.sources)}
    for candidate, point in recording.points.items():
        index, source = sources[candidate.implementation]
        config, outcome = candidate.config, point.outcome
        places = [_place(values, config, name) for name, values in source.knobs]
        derived = [config.derived[name] for name in source.derived]
        kept = [_short(getattr(outcome, name)) for name in FIELDS]
        # why a config is slow is in its time
        reason = "" if outcome.status in TIMED else outcome.reason[:REASON_CHARS]
        ratio = _short(point.ratio)
        yield [index, places, derived, outcome.status, reason, *kept, ratio, point.pairs]


def _short(number: float | None) -> float | None:
    """A measured number to six digits: a clock's are fewer. JSON has no infinite ones."""
    if isinstance(number, float):
        return float(f"{number:.6g}") if math.isfinite(number) else None
    return number


def _place(values: Sequence[Value], config: Config, name: str) -> int:
    if name not in config.knobs:
        return INACTIVE
    return [_exact(value) for value in values].index(_exact(config.knobs[name]))


def load_recording(path: Path) -> Recording:
    """The recording in a file.

    Raises:
        ArtifactError: there is none, it is damaged or cut off, or of another version.
    """
    try:
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        header = json.loads(lines[0])
        known = isinstance(header, dict) and header.get("format") == FORMAT
        if known and header.get("version") == VERSION:
            return _read(header, [json.loads(line) for line in lines[1:]])
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError) as error:
        raise ArtifactError(
            f"{path} cannot be read as a recorded space: {type(error).__name__}: {error}. It has "
            "to be a whole file of `gristmill tune OP --record FILE`. Record it again, or restore "
            "it from the repository."
        ) from error
    fault = f"version {header.get('version')} of the format" if known else "of another format"
    raise ArtifactError(
        f"{path} is {fault}; this gristmill reads version {VERSION} of '{FORMAT}'. Record it again "
        "with `gristmill tune OP --record FILE`, or read it with the gristmill that wrote it."
    )


def _read(header: Mapping[str, Any], lines: Sequence[Any]) -> Recording:
    count = next((i for i, line in enumerate(lines) if isinstance(line, list)), len(lines))
    sources = tuple(
        RecordedSource(
            line["name"],
            line["source_hash"],
            tuple((name, tuple(values)) for name, values in line["knobs"]),
            tuple(line["derived"]),
            line["valid"],
        )
        for line in lines[:count]
    )
    points: dict[Candidate, Point] = {}
    for index, places, derived, status, reason, *numbers in lines[count:]:
        source = sources[index]
        knobs = {
            name: values[place]
            for (name, values), place in zip(source.knobs, places, strict=True)
            if place != INACTIVE
        }
        config = Config(knobs, dict(zip(source.derived, derived, strict=True)))
        *kept, ratio, pairs = numbers
        outcome = replace(Outcome(status, reason), **dict(zip(FIELDS, kept, strict=True)))
        points[Candidate(source.name, config)] = Point(outcome, ratio, pairs)
    if len(points) != header["recorded"]:
        raise ValueError(f"{len(points)} configs where the header says {header['recorded']}")
    reference = header["reference"]
    return Recording(
        problem=Problem.from_json(header["problem"]),
        target=Target(**header["target"]),
        stamp=header["stamp"],
        seed=header["seed"],
        planned=header["planned"],
        sources=sources,
        reference=None if reference is None else list(points)[reference],
        points=points,
    )
