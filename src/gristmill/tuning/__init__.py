"""Search: strategies, trials in isolation, the race and the choice; spaces recorded and replayed.

The face is lazy: a process that only uses plans does not import the tuner.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gristmill.tuning.background import idle_tuner, stop_idle_tuner
    from gristmill.tuning.begin import adopt, lease_key
    from gristmill.tuning.budget import Budget, TuningInterrupted, TuningResult
    from gristmill.tuning.occasion import refusal
    from gristmill.tuning.progress import observer
    from gristmill.tuning.recorded import load_recording
    from gristmill.tuning.recorder import Recorder
    from gristmill.tuning.replay import Replay
    from gristmill.tuning.runner import TuningRun
    from gristmill.tuning.strategies import Strategy, StrategyLike, check_strategy

_HOMES = {
    "idle_tuner": "background",
    "stop_idle_tuner": "background",
    "Budget": "budget",
    "Strategy": "strategies",
    "StrategyLike": "strategies",
    "TuningInterrupted": "budget",
    "TuningResult": "budget",
    "TuningRun": "runner",
    "Recorder": "recorder",
    "Replay": "replay",
    "load_recording": "recorded",
    "adopt": "begin",
    "check_strategy": "strategies",
    "lease_key": "begin",
    "observer": "progress",
    "refusal": "occasion",
}

__all__ = [
    "Budget",
    "Recorder",
    "Replay",
    "Strategy",
    "StrategyLike",
    "TuningInterrupted",
    "TuningResult",
    "TuningRun",
    "adopt",
    "check_strategy",
    "idle_tuner",
    "lease_key",
    "load_recording",
    "observer",
    "refusal",
    "stop_idle_tuner",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gristmill.tuning' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gristmill.tuning.{_HOMES[name]}"), name)
