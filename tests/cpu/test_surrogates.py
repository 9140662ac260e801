"""What the surrogates expect, on functions that are known. How well they search:
`test_landscapes.py`, `test_replay.py`."""

from __future__ import annotations

import numpy as np
import pytest

from gristmill.tuning.strategies._gaussian import _loss, _prior, gaussian_process
from gristmill.tuning.strategies._surrogates import forest, improvement

COLUMNS = 6


def smooth(rows: np.ndarray) -> np.ndarray:
    """A bowl along two columns and a slope along a third; the others say nothing."""
    first, second, third = rows[:, :3].T.astype(np.float64)
    return (first - 0.6) ** 2 * 4 + first * second + 0.5 * third


def rows_of(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((count, COLUMNS), np.float32)


def test_a_process_s_gradient_is_that_of_its_loss():
    rows = rows_of(12, 0).astype(np.float64)
    values = smooth(rows) - smooth(rows).mean()
    at = _prior(COLUMNS)[0] + np.random.default_rng(1).normal(0, 0.5, COLUMNS + 2)
    gradient = _loss(at, rows, values)[1]
    steps = 1e-6 * np.eye(len(at))
    slopes = [
        (_loss(at + step, rows, values)[0] - _loss(at - step, rows, values)[0]) / 2e-6
        for step in steps
    ]
    assert gradient == pytest.approx(slopes, rel=1e-4, abs=1e-6)


def test_a_process_knows_what_is_smooth_from_fewer_outcomes_than_a_forest():
    asked = rows_of(400, 99)
    for seed in range(3):
        known = rows_of(24, seed)
        goal = smooth(known)
        expected = gaussian_process(known, goal, asked)
        error = np.abs(expected.mean - smooth(asked)).mean()
        trees, _ = forest(known, goal, asked, seed)
        assert error < 0.4 * np.abs(trees - smooth(asked)).mean()
        assert error < 0.3 * smooth(asked).std()


def test_a_process_is_sure_where_it_was_told_and_unsure_far_away():
    rows = rows_of(40, 0)
    known, far = rows[:20].copy(), rows[20:].copy()
    known[:, 0] *= 0.5
    far[:, 0] = 0.9 + 0.1 * far[:, 0]
    goal = smooth(known)
    expected = gaussian_process(known, goal, np.concatenate([known, far]))
    assert expected.mean[:20] == pytest.approx(goal, abs=0.15 * goal.std())
    assert expected.spread[:20].max() < expected.spread[20:].min()


def test_a_process_starts_at_what_it_found_before():
    known, asked = rows_of(40, 0), rows_of(100, 1)
    goal = smooth(known)
    first = gaussian_process(known[:32], goal[:32], asked)
    again, whole = (gaussian_process(known, goal, asked, s) for s in (first.scales, None))
    assert again.mean == pytest.approx(whole.mean, abs=0.1 * goal.std())
    same = gaussian_process(known, goal, asked, first.scales)
    assert (same.mean == again.mean).all()
    assert (same.scales == again.scales).all()


@pytest.mark.parametrize(
    ("known", "goal"),
    [
        (np.ones((8, 3)), np.arange(8.0)),
        (rows_of(8, 0)[:, :3], np.full(8, 2.5)),
        (np.repeat(rows_of(2, 0)[:, :3], 4, 0), np.array([0.0, 50, 0, 50, 0, 50, 0, 50])),
        (rows_of(8, 0)[:, :3] * 1e6, np.array([0.0] * 7 + [1e6])),
    ],
    ids=["one config", "one time", "at odds with itself", "far apart"],
)
def test_what_says_little_gives_numbers(known, goal):
    expected = gaussian_process(known, goal, np.concatenate([known, known + 1]))
    scores = improvement(goal, expected.mean, expected.spread)
    for found in (expected.mean, expected.spread, expected.scales, scores):
        assert np.isfinite(found).all()
    assert (scores >= 0).all()
