"""HTML reports of tuning runs, and the records that they are made of."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
import torch
from page_cases import H200, TINY, checked
from rich.console import Console
from typer.testing import CliRunner

from gristmill import tuning
from gristmill.bench import tuning_page
from gristmill.bench.stamp import Stamp
from gristmill.bench.tuning_record import (
    Choice,
    TuningRecord,
    load_records,
    records_json,
    save_records,
)
from gristmill.bench.tuning_text import print_record
from gristmill.cli.app import app
from gristmill.core.config import Config
from gristmill.core.plan import Candidate, Outcome
from gristmill.errors import InvalidInputError
from gristmill.ops.tune import tune
from gristmill.tuning.budget import Evaluation
from gristmill.tuning.runner import TuningRun

SHARED = "out of <shared> memory"


def evaluation(seconds, name, status, us=None, stage="search", reason="", **knobs):
    outcome = Outcome(status, reason, us, 4.0 if us else None, us, 0.5 if us else None, 25)
    return Evaluation(Candidate(name, Config(knobs)), outcome, seconds, stage)


def record(**changes):
    best, tie = ({"BLOCK": 128, "EVICT": ""}, {"BLOCK": 64, "EVICT": ""})
    evaluations = (
        evaluation(0.5, "aten", "ok", 20.0),
        evaluation(1.0, "row", "ok", 15.0, BLOCK=64, EVICT=""),
        evaluation(1.5, "row", "compile_error", None, "search", SHARED, BLOCK=512, EVICT=""),
        evaluation(2.0, "row", "ok", 14.9, BLOCK=128, EVICT=""),
        evaluation(2.5, "row", "slow", 80.0, BLOCK=32, EVICT="first"),
        evaluation(3.0, "row", "ok", 9.0, BLOCK=256, EVICT=""),
        evaluation(4.0, "aten", "ok", 20.5, "race"),
        evaluation(4.0, "row", "ok", 15.1, "race", BLOCK=64, EVICT=""),
        evaluation(4.0, "row", "ok", 15.0, "race", BLOCK=128, EVICT=""),
        evaluation(4.0, "row", "wrong", None, "race", "on 'large' inputs", BLOCK=256, EVICT=""),
    )  # fmt: skip
    choice = Choice(
        Candidate("row", Config(best)), "15.00 us, tied with 1 other(s)",
        (Candidate("row", Config(best)), Candidate("row", Config(tie))),
    )  # fmt: skip
    stamp = Stamp("A GPU", "t", {"torch": "2.11"}, None, None, "2026-11-20", "c")
    made = TuningRecord(
        "rms_norm", "w", "rms_norm(x)", stamp, 4.0, False, evaluations, {"eager": choice},
        {"row": {"more than 64 values": 12}}, {"multi_row": "needs sm_90"},
    )  # fmt: skip
    return replace(made, **changes)


def test_every_candidate_has_its_fate_and_reason():
    found = [(str(c.candidate), c.fate, c.note) for c in record().contenders("eager")]
    assert found == [
        ("row BLOCK=128 EVICT=", "chosen", "15.00 us, tied with 1 other(s)"),
        ("row BLOCK=64 EVICT=", "tie", "1.01x the choice's time"),
        ("aten", "slower", "1.37x the choice's time"),
        ("row BLOCK=32 EVICT=first", "given up", "5.33x the choice's time"),
        ("row BLOCK=512 EVICT=", "failed", "out of <shared> memory"),
        ("row BLOCK=256 EVICT=", "failed", "on 'large' inputs"),
    ]


def test_a_tuning_page_has_the_curve_the_knobs_the_candidates_and_the_choice():
    page = tuning_page([record(), record(workload="again")])
    tree = checked(page)
    figures = [one.get("id") for one in tree.iter("figure")]
    assert figures == ["run1-anytime", "run1-row", "run2-anytime", "run2-row"]
    assert "out of &lt;shared&gt; memory" in page
    text = "".join(tree.itertext())
    assert "more than 64 values" in text
    assert "needs sm_90" in text
    assert "BLOCK=128 EVICT=; 15.00 us, tied with 1 other(s)" in text
    first = next(iter(tree.iter("section")))
    rows = [["".join(c.itertext()) for c in row] for row in first.iter("tr")]
    table = rows[: 1 + 6]
    assert [row[0] for row in table[1:]] == ["4", "2", "1", "5", "3", "6"]
    assert table[1][-1].startswith("chosen")
    assert table[5][-1].startswith("compile error")


def test_a_candidate_that_falls_in_the_race_is_not_the_best_so_far():
    page = tuning_page([record()])
    assert "<title>row BLOCK=256 EVICT=: 9.00 us, fell later</title>" in page


def test_a_run_that_was_interrupted_or_measured_nothing_has_a_page():
    text = tuning_page([record(interrupted=True, choices={})])
    checked(text)
    assert "was interrupted" in text
    assert "There is no plan" in text
    empty = record(evaluations=(), choices={}, rejections={}, unsupported={})
    assert not list(checked(tuning_page([empty])).iter("figure"))


def test_a_record_survives_a_file(tmp_path):
    save_records(tmp_path / "x.json", [record()])
    assert load_records(tmp_path / "x.json") == (record(),)
    (tmp_path / "x.json").write_text(json.dumps({**records_json([record()]), "records": [{}]}))
    with pytest.raises(InvalidInputError, match="no tuning record"):
        load_records(tmp_path / "x.json")
    out = Console(width=140, file=io.StringIO(), record=True)
    print_record(out, record())
    assert "given up" in out.export_text()


@pytest.fixture
def only_aten(monkeypatch, fresh_store):
    """Tuning without Inductor, which takes seconds to compile for a CPU."""
    original = TuningRun.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self._fixed = [i for i in self._fixed if i.kind == "vendor"]

    monkeypatch.setattr(TuningRun, "__init__", init)


@pytest.mark.usefixtures("only_aten")
def test_a_run_records_its_trajectory_and_its_ties():
    result = tune("rms_norm", (torch.ones(4, 64), torch.ones(64)), budget_s=20.0)
    stages = [(str(e.candidate), e.stage) for e in result.trajectory]
    assert stages == [("aten", "search"), ("aten", "race")]
    times = [e.elapsed_s for e in result.trajectory]
    assert 0 < times[0] <= times[1] <= result.seconds
    assert result.trajectory[-1].outcome == result.outcomes[Candidate("aten")]
    assert result.ties == {"eager": (Candidate("aten"),), "graph": (Candidate("aten"),)}


@pytest.mark.usefixtures("only_aten")
def test_an_interruption_hands_over_what_was_measured(monkeypatch):
    original = TuningRun._tell

    def tell(self, candidate, outcome):
        original(self, candidate, outcome)
        raise KeyboardInterrupt

    monkeypatch.setattr(TuningRun, "_tell", tell)
    with pytest.raises(tuning.TuningInterrupted) as caught:
        tune("rms_norm", (torch.ones(4, 64), torch.ones(64)), budget_s=20.0)
    assert caught.value.result.interrupted
    assert [str(e.candidate) for e in caught.value.result.trajectory] == ["aten"]


@pytest.mark.usefixtures("only_aten")
def test_tune_writes_a_page_and_a_record_that_report_reads(tmp_path):
    out, html, again = (tmp_path / name for name in ("t.json", "t.html", "again.html"))
    arguments = ["tune", *TINY, "--budget", "20", "--out", str(out), "--html", str(html)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    page = html.read_text()
    assert [one.get("id") for one in checked(page).iter("figure")] == ["run1-anytime"]
    (stored,) = load_records(out)
    assert stored.op == "rms_norm"
    assert "Triton kernels need a GPU" in stored.unsupported["row"]
    done = CliRunner().invoke(app, ["report", str(out), "--html", str(again)])
    assert done.exit_code == 0, done.output
    assert "chosen" in done.stdout
    assert again.read_text() == page
    data = json.loads(CliRunner().invoke(app, ["report", str(out), "--json"]).stdout)
    assert data["records"][0]["problem"] == str(stored.problem)
    mixed = CliRunner().invoke(app, ["report", str(out), str(H200)])
    assert mixed.exit_code == 2
    assert "Give it alone" in mixed.stderr
