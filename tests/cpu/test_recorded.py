"""Recorded spaces: their files, damaged and foreign ones, and the space that strategies get."""

from __future__ import annotations

import gzip
import json

import pytest
from recorded_cases import HOPPER, PROBLEM, SMALL, recording

from gristmill.core.plan import Candidate, Outcome
from gristmill.core.space import Rejection
from gristmill.errors import ArtifactError, InvalidConfigError
from gristmill.tuning.recorded import (
    FORMAT,
    VERSION,
    Point,
    load_recording,
    save_recording,
)
from gristmill.tuning.strategies._pool import Pool


@pytest.fixture
def file(tmp_path):
    """A small recording, written."""
    path = tmp_path / "small.jsonl.gz"
    save_recording(path, recording())
    return path


# -------------------------------------------------------------------------------------- the file


def test_what_was_written_is_read(tmp_path):
    one = recording(names=("tiles", "rows"))
    first, second = list(one.points)[:2]
    one.points[first] = Point(Outcome("ok", device_us=1 / 3, repeats=9), 1.0, 20)
    one.points[second] = Point(Outcome("slow", "3.1 times", device_us=30.0, repeats=1), 1.25, 20)
    one.reference = first
    path = tmp_path / "folder" / "one.jsonl.gz"
    save_recording(path, one)
    save_recording(path, one)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    read = load_recording(path)
    assert (read.problem, read.target, read.stamp, read.seed) == (PROBLEM, HOPPER, one.stamp, 3)
    assert (read.sources, read.reference, read.planned) == (one.sources, first, one.planned)
    assert list(read.points) == list(one.points)
    for candidate, point in one.points.items():
        kept = next(c for c in read.points if c == candidate)
        assert kept.config.derived == candidate.config.derived
        assert list(map(type, kept.config.knobs.values())) == list(
            map(type, candidate.config.knobs.values())
        )
        found = read.points[candidate]
        assert (found.ratio, found.pairs) == (point.ratio, point.pairs)
        assert found.outcome.status == point.outcome.status
        if point.outcome.status == "ok":
            assert found.outcome.device_us == pytest.approx(point.outcome.device_us, rel=1e-5)
        elif point.outcome.status != "slow":
            assert found.outcome.reason == point.outcome.reason


def _lines(path):
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def _rewrite(path, lines):
    path.write_bytes(gzip.compress("\n".join(lines).encode()))


def _foreign(path, **changes):
    header, *rest = _lines(path)
    _rewrite(path, [json.dumps({**json.loads(header), **changes}), *rest])


DAMAGE = {
    "absent": lambda path: path.unlink(),
    "no gzip": lambda path: path.write_text("{}"),
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "a flipped byte": lambda path: path.write_bytes(
        path.read_bytes()[:60] + b"\xff\xfe\xfd" + path.read_bytes()[63:]
    ),
    "no lines": lambda path: _rewrite(path, []),
    "a line less": lambda path: _rewrite(path, _lines(path)[:-1]),
    "half a line": lambda path: _rewrite(path, [*_lines(path)[:-1], "[0,[1"]),
    "no target": lambda path: _foreign(path, target={"vendor": "cuda"}),
    "an unknown place": lambda path: _rewrite(
        path, [*_lines(path)[:-1], _lines(path)[-1].replace("[0,[", "[9,[")]
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(file, damage):
    DAMAGE[damage](file)
    with pytest.raises(ArtifactError, match=r"small\.jsonl\.gz cannot be read as a recorded space"):
        load_recording(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": VERSION + 1}, f"version {VERSION + 1} of the format"),
        ({"format": "gristmill tuning record"}, "of another format"),
    ],
)
def test_a_foreign_file_is_refused(file, changes, message):
    _foreign(file, **changes)
    with pytest.raises(ArtifactError, match=message) as caught:
        load_recording(file)
    assert FORMAT in str(caught.value)


def test_those_timed_in_turns_are_put_on_the_scale_of_the_others():
    """Under load the device was half as fast: that moves none of them past a config timed alone."""
    configs = list(SMALL.valid(PROBLEM, HOPPER))[:4]
    one = recording()
    alone = {configs[0]: 10.0, configs[1]: 10.2, configs[2]: 9.9, configs[3]: 15.0}
    ratios = {configs[0]: 1.0, configs[1]: 1.01, configs[2]: 1.02, configs[3]: None}
    one.points = {
        Candidate("tiles", c): Point(Outcome("ok", device_us=us), ratios[c])
        for c, us in alone.items()
    }
    times = [one.times()[Candidate("tiles", c)] for c in configs]
    assert times[:3] == pytest.approx([10.0, 10.1, 10.2], rel=5e-3)
    assert times[3] == 15.0
    assert one.near_share() == 0.75
    assert one.near_share(0.015) == 0.5


# -------------------------------------------------------------------------------- the space


def test_a_recorded_space_has_the_recorded_configs_and_no_others():
    one = recording()
    space = one.space(one.sources[0])
    live = list(SMALL.valid(PROBLEM, HOPPER))
    found = list(space.valid(PROBLEM, HOPPER))
    assert set(found) == set(live)
    assert [c.derived for c in found] == [{"AREA": c["TILE"] ** 2} for c in found]
    assert space.size == len(live)
    assert [space.at(i, PROBLEM, HOPPER) for i in range(space.size)] == found
    keys = [tuple(c.knobs.items()) for c in found]
    assert len(set(keys)) == len(keys)
    with pytest.raises(InvalidConfigError, match="it was not recorded"):
        space.config({"TILE": 128, "MODE": "a", "SPLIT": True, "PARTS": 2}, PROBLEM, HOPPER)


def test_its_neighbourhoods_are_those_of_the_space_that_was_recorded():
    one = recording()
    spaces = (SMALL, one.space(one.sources[0]))
    live, kept = (Pool(space, PROBLEM, HOPPER, 0) for space in spaces)
    for config in SMALL.valid(PROBLEM, HOPPER):
        assert set(kept.neighbours(config)) == set(live.neighbours(config))


def test_what_was_not_sampled_is_not_valid():
    one = recording()
    gone = list(one.points)[::2]
    for candidate in gone:
        del one.points[candidate]
    space = one.space(one.sources[0])
    assert space.size == len(one.points)
    first = {knob.name: knob.values[0] for knob in SMALL.knobs}
    for candidate in gone:
        values = {**first, **candidate.config.knobs}
        assert isinstance(space.point(values, PROBLEM, HOPPER), Rejection)
