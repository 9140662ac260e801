"""What `make demo` runs, on its first problem alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from gristmill import settings

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.mark.usefixtures("fresh_store")
def test_the_demo_tunes_checks_times_and_says_where_the_plan_is(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    monkeypatch.setattr(demo, "PROBLEMS", demo.PROBLEMS[:1])
    monkeypatch.setattr(demo, "BUDGET_S", 20.0)
    for _ in range(2):
        demo.main()
    text = capsys.readouterr().out
    assert text.count("against float64: right") == 2
    assert text.count("against torch.nn.functional.rms_norm: ") == 2
    assert "known from an earlier run" in text
    assert str(settings.current().cache_dir) in text.replace("\n", "")
