"""Replay of recorded spaces: its mechanics on made-up recordings; and what the portfolio has to
reach on the committed ones, which were measured on a GPU."""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache

import numpy as np
import pytest
from recorded_cases import HOPPER, PROBLEM, WIDE, recording, wide_us
from typer.testing import CliRunner

from gristmill.bench.replay_result import SPACES, committed_spaces, replay_page, replayed
from gristmill.cli.app import app
from gristmill.cli.replay import SHOWN
from gristmill.core.config import Config
from gristmill.core.plan import Candidate, Outcome
from gristmill.errors import GristmillError, InvalidInputError
from gristmill.tuning import replay as replay_room
from gristmill.tuning.recorded import Point, Recording, load_recording, save_recording
from gristmill.tuning.replay import Curve, Replay
from gristmill.tuning.searches import FIRST
from gristmill.tuning.strategies import STRATEGIES


@pytest.fixture
def file(tmp_path):
    """A small recording, written."""
    path = tmp_path / "small.jsonl.gz"
    save_recording(path, recording())
    return path


# -------------------------------------------------------------------------------- the search


class Spy:
    """Proposes the space in order, and remembers everything that it was given."""

    made: list[Spy] = []  # noqa: RUF012 (cleared by the fixture)

    def __init__(self, space, problem, target, seed, *rest):
        self.given = (problem, target, seed, *rest)
        self.space, self.heard, self.before_first_ask = space, [], None
        self.configs = iter(space.valid(problem, target))
        Spy.made.append(self)

    def ask(self, count):
        if self.before_first_ask is None:
            self.before_first_ask = len(self.heard)
        return [c for c, _ in zip(self.configs, range(count), strict=False)]

    def tell(self, config, outcome):
        self.heard.append((config, outcome))


@pytest.fixture
def spies(monkeypatch):
    """The strategy `random` is a spy."""
    Spy.made = []
    monkeypatch.setitem(STRATEGIES, "random", Spy)
    return Spy.made


def test_a_strategy_is_told_nothing_but_what_it_asked(spies):
    one = recording(names=("tiles", "rows"))
    search = Replay(one).search("random", 5, 64, batch=8)
    assert [spy.before_first_ask for spy in spies] == [0, 0]
    assert all(spy.given[:3] == (PROBLEM, HOPPER, 5) for spy in spies)
    heard = [config for spy in spies for config, _ in spy.heard]
    assert sorted(c.key for c in heard) == sorted(c.config.key for c in search.candidates)
    # a batch at a time; first of all, so many of each as a verdict takes
    order = [c.implementation for c in search.candidates]
    assert order[: 2 * FIRST] == ["tiles"] * FIRST + ["rows"] * FIRST
    assert all(len(set(order[i : i + 8])) == 1 for i in range(2 * FIRST, 56, 8))


def test_failures_count_and_answers_are_the_worker_s(spies):
    one = recording()
    replay = Replay(one)
    search = replay.search("random", 0, 40)
    (spy,) = spies
    times, best = one.times(), math.inf
    for (config, outcome), share in zip(spy.heard, search.shares, strict=True):
        candidate = Candidate("tiles", config)
        if candidate not in times:
            assert outcome.status in ("wrong", "crash")
            assert outcome.device_us is None
        else:
            assert outcome.device_us == times[candidate]
            assert outcome.status == ("slow" if times[candidate] > 1.25 * best else "ok")
            best = min(best, times[candidate])
        assert share == (replay.optimum_us / best if best < math.inf else 0.0)
    assert {o.status for _, o in spy.heard} >= {"ok", "slow", "wrong"}


def test_a_space_that_ends_keeps_its_last_share():
    one = recording()
    search = Replay(one).search("exhaustive", 0, len(one.points) + 50)
    assert len(search.candidates) == len(one.points)
    assert len(search.shares) == len(one.points) + 50
    assert search.shares[-1] == 1.0
    assert search.shares == sorted(search.shares)


@pytest.mark.parametrize("name", ["exhaustive", *SHOWN])
def test_the_same_seed_replays_the_same_search(name):
    replay = Replay(recording())
    first, second = (replay.search(name, 1, 48) for _ in range(2))
    assert (first.candidates, first.shares) == (second.candidates, second.shares)


def test_a_strategy_that_repeats_itself_is_refused(monkeypatch):
    class Repeats(Spy):
        def ask(self, count):
            return [next(self.space.valid(PROBLEM, HOPPER))]

    class Invents(Spy):
        def ask(self, count):
            return [Config({"TILE": 3})]

    for cls, message in ((Repeats, "before|again"), (Invents, "not in the recorded|not valid")):
        monkeypatch.setitem(STRATEGIES, "random", cls)
        with pytest.raises(GristmillError, match=message):
            Replay(recording()).search("random", 0, 20)


def test_a_recording_in_which_nothing_was_right_cannot_be_replayed():
    one = recording(time_us=lambda config: 1.0)
    one.points = dict.fromkeys(one.points, Point(Outcome("crash", "it died")))
    with pytest.raises(InvalidInputError, match="none was right"):
        Replay(one)


def test_curves_are_means_and_worsts_of_the_seeds():
    curve = Curve("random", ((0.0, 0.5, 1.0), (0.5, 0.5, 0.7)))
    assert curve.mean == pytest.approx((0.25, 0.5, 0.85))
    assert (curve.worst, curve.best) == ((0.0, 0.5, 0.7), (0.5, 0.5, 1.0))


@pytest.mark.parametrize("names", [("tiles",), ("tiles", "rows")])
def test_chance_is_what_uniform_draws_reach_on_average(names):
    one = recording(names=names)
    replay, count = Replay(one), len(one.points)
    times = np.array([replay.times.get(candidate, math.inf) for candidate in one.points])
    assert np.isinf(times).any()
    rng = np.random.default_rng(0)
    runs = [np.minimum.accumulate(times[rng.permutation(count)]) for _ in range(2000)]
    shares = replay.optimum_us / np.array(runs)
    chance = np.array(replay.chance(count + 3))
    error = 4 * shares.std(0) / math.sqrt(len(runs)) + 1e-9
    assert (np.abs(shares.mean(0) - chance[:count]) < error).all()
    assert chance[0] == pytest.approx((replay.optimum_us / times).mean())
    assert chance[-4:] == pytest.approx(1.0)


def test_those_that_learn_beat_chance_on_a_space_with_structure():
    replay = Replay(recording(WIDE, wide_us))
    chance = replay.chance(100)[-1]
    learned = replay.race("portfolio", range(3), 100).mean[-1]
    assert learned > chance + 0.03
    assert replay.race("evolutionary", range(3), 100).mean[-1] > chance
    assert replay_room.MILESTONES == (25, 50, 100, 200)


# ------------------------------------------------------------------------------- the command


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["replay", *arguments], env={"COLUMNS": "160"})
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_the_command_prints_a_table_or_json_and_draws(file, tmp_path):
    page = tmp_path / "replay.html"
    options = (str(file), "--strategy", "random", "--strategy", "exhaustive", "--seeds", "2")
    text = run(*options, "--evaluations", "60", "--html", str(page))
    assert "small: op(x=float16[64x64]" in text
    assert all(name in text for name in ("random", "exhaustive", "25", "50", "Withheld"))
    data = json.loads(run(*options, "--evaluations", "60", "--json"))
    (space,) = data["spaces"]
    assert [s["strategy"] for s in space["strategies"]] == ["random", "exhaustive"]
    first = space["strategies"][0]
    assert set(first["mean"]) == {"25", "50"}
    assert len(first["mean_curve"]) == 60
    assert first["mean_curve"][49] == first["mean"]["50"]
    assert f"{first['mean']['50']:.3f}" in text
    assert space["chance"]["mean"]["50"] == space["chance"]["mean_curve"][49]
    assert re.search(rf"chance\W+{space['chance']['mean']['25']:.3f}", text)
    html = page.read_text()
    assert "<svg" in html
    assert "Share of the optimum" in html
    assert f"{first['worst']['50']:.3f}" in html
    assert html.count(f"chance: {space['chance']['mean']['25']:.3f} after 25") == 1
    assert "<td>chance</td>" in html


def test_a_page_of_a_recording_that_is_not_complete_says_so(file):
    one = load_recording(file)
    one.planned += 7
    save_recording(file, one)
    assert "7 planned configs are not recorded yet" in replay_page(
        [replayed(file, ["random"], 1, 8)]
    )


def test_mistakes_are_named(file, monkeypatch):
    assert "can be exhaustive" in run(str(file), "--strategy", "rando", code=2)
    assert "cannot be read" in run(str(file) + ".no", "--strategy", "random", code=1)
    monkeypatch.setattr("gristmill.cli.replay.committed_spaces", list)
    assert "no FILE is given" in run("--strategy", "random", code=2)


# ------------------------------------------------------------------------ the committed spaces

LEAST = {50: 0.90, 100: 0.95, 200: 0.98}  # of the optimum, by the portfolio, mean of 10 seeds
ABOVE_CHANCE = 0.05  # at 50
SEEDS = 10
COMMITTED = committed_spaces()
NAMES = [f"{path.parent.name}/{path.name.partition('.')[0]}" for path in COMMITTED]


@lru_cache(maxsize=1)
def committed(path) -> Recording:
    return load_recording(path)


@pytest.mark.skipif(not SPACES.exists(), reason="needs recorded spaces; benchmarks/spaces is none")
def test_there_are_enough_spaces():
    ops = [committed(path).problem.op for path in COMMITTED]
    assert len(ops) >= 4
    assert len({committed(p).problem for p in COMMITTED if committed(p).problem.op == "matmul"}) > 1
    assert "rms_norm_backward" in ops
    assert sum(path.stat().st_size for path in COMMITTED) < 8 << 20


@pytest.mark.parametrize("path", COMMITTED, ids=NAMES)
def test_a_committed_space_is_whole_and_worth_a_search(path):
    one = committed(path)
    assert one.missing == 0
    assert "H200" in one.target.name
    assert one.stamp["commit"]
    assert len(one.times()) >= 1000
    assert one.near_share(0.05) <= 0.02


@pytest.mark.usefixtures("one_pool")
@pytest.mark.parametrize("path", COMMITTED, ids=NAMES)
def test_the_portfolio_reaches_the_optimum(path):
    replay = Replay(committed(path))
    portfolio = replay.race("portfolio", range(SEEDS), max(LEAST))
    chance = replay.chance(50)[-1]
    reached = {count: portfolio.mean[count - 1] for count in LEAST}
    assert all(reached[count] >= share for count, share in LEAST.items()), reached
    assert reached[50] >= chance + ABOVE_CHANCE, (reached, chance)
