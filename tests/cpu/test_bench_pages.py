"""HTML reports: whole, self-contained, with the figures and the numbers; from runs and from stored
JSON."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from gristmill import tuning
from gristmill.bench import bench_page, tuning_page
from gristmill.bench.comparison import compare_all
from gristmill.bench.figures import SERIES, binary, drawing, si, svg
from gristmill.bench.page import TEMPLATES, check_extra
from gristmill.bench.results import load_reports
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
from gristmill.core.registry import load
from gristmill.errors import InvalidInputError, MissingExtraError
from gristmill.ops.get_op import tune
from gristmill.tuning.budget import Evaluation
from gristmill.tuning.runner import TuningRun

H200 = Path(__file__).parents[2] / "benchmarks" / "results" / "nvidia-h200" / "rms_norm.json"
SHARED = "out of <shared> memory"
TINY = ("rms_norm", "--shape", "x=4x64", "--shape", "weight=64", "--device", "cpu")


def checked(page):
    """The page as a tree, after what every page has to be: well-formed, one file, ids unique."""
    assert page.startswith("<!DOCTYPE html>\n")
    tree = ET.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    assert "http" not in re.sub(r">[^<]*<", "><", page)  # in text, but in no tag
    assert "@import" not in page
    assert not [one for one in tree.iter() if one.get("src") or one.tag in ("link", "iframe")]
    assert all(link.startswith("#") for one in tree.iter() if (link := one.get("href")))
    assert not re.findall(r"url\((?!#)", page)
    ids = [one.get("id") for one in tree.iter() if one.get("id")]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', page)
    assert {a or b for a, b in targets} <= set(ids)
    assert not re.findall(r"#0101[0-9a-f]{2}", page)  # every stand-in colour became the page's
    variables = set(re.findall(r"var\(--([\w-]+)\)", page))
    assert variables <= set(re.findall(r"--([\w-]+):", page))
    return tree


def titles(tree):
    return [one.text for one in tree.iter("h3")]


def cells(tree, title):
    """The rows of the table under this heading."""
    sections = [one for one in tree.iter() if title in [c.text for c in one if c.tag == "h3"]]
    (section,) = sections
    at = [c.text for c in section].index(title)
    return [["".join(c.itertext()) for c in row] for row in section[at + 1].iter("tr")]


@pytest.fixture(scope="module")
def h200():
    """The committed report, and its page."""
    reports = load_reports(H200)
    return reports, bench_page(reports)


def test_a_benchmarks_page_has_its_figures_tables_and_provenance(h200):
    (report,), page = h200
    tree = checked(page)
    figures = [one.get("id") for one in tree.iter("figure")]
    assert figures == ["rms_norm-speedups", "rms_norm-roofline", "rms_norm-rates"]
    assert all(figure.find(".//svg[@role='img']") is not None for figure in tree.iter("figure"))
    assert titles(tree)[-1] == "How this came about"
    rows = cells(tree, "Results")
    assert [row[0] for row in rows[1:]] == [result.workload for result in report.results]
    assert "never slower" in rows[1][-1]
    facts = {
        one.find("dt").text: one.find("dd").text
        for one in tree.iter("div")
        if one.find("dt") is not None
    }
    assert facts["device"] == "NVIDIA H200"
    assert facts["commit"].startswith(report.stamp.commit)
    assert facts["torch"] == report.stamp.versions["torch"]


def test_every_mark_says_what_it_is(h200):
    (report,), page = h200
    versus = report.results[0].versus[0]
    text = f"{report.results[0].workload}, eager: {versus.speedup:.2f}x {versus.provider}"
    assert f"<title>{text}" in page
    timed = sum(row.role != "ceiling" and row.device_us is not None
                for result in report.results for row in result.rows)  # fmt: skip
    assert len(re.findall(r"<title>\w+, [\w-]+: [\d.,]+ us", page)) == 2 * timed  # two figures


def test_the_page_shows_failures_and_what_was_left_out(h200):
    (report,), _ = h200
    first = report.results[0]
    wrong = replace(first.rows[2], status="wrong", reason="wrong <in> 3", device_us=None)
    rows = (*first.rows[:2], wrong, *first.rows[3:])
    broken = replace(report.results[1], rows=(), versus=(), reason="out of memory")
    changed = replace(
        report, results=(replace(first, rows=rows), broken), skipped=("later",), matrix=True
    )
    page = bench_page([changed])
    tree = checked(page)
    assert "wrong &lt;in&gt; 3" in page
    warnings = [one.text for one in tree.iter("p") if one.get("class") == "warning"]
    assert any("later" in text for text in warnings)
    assert any("out of memory" in text for text in warnings)


def test_a_report_without_a_single_time_still_has_a_page(h200):
    (report,), _ = h200
    empty = replace(report, results=tuple(
        replace(r, rows=(), versus=(), reason="no device") for r in report.results[:2]
    ))  # fmt: skip
    assert not list(checked(bench_page([empty])).iter("figure"))


def test_several_ops_are_sections_with_links_and_their_own_ids(h200):
    (report,), _ = h200
    rates = {"bfloat16": 7e14, "float16": 7.1e14}
    ceilings = {**report.ceilings, "flops_per_s": rates}
    other = replace(report, op="matmul", matrix=True, ceilings=ceilings)
    tree = checked(bench_page([report, other]))
    assert [one.get("id") for one in tree.iter("section")] == ["rms_norm", "matmul"]
    assert [one.get("href") for one in tree.iter("a")] == ["#rms_norm", "#matmul"]
    assert "bfloat16 matmul, 700 TFLOP/s" in "".join(tree.itertext())


def test_a_comparison_comes_first_on_the_page(h200):
    (report,), _ = h200
    slower = [
        replace(row, eager_us=row.eager_us * 2) if row.role == "selected" else row
        for row in report.results[0].rows
    ]
    now = replace(report, results=(replace(report.results[0], rows=tuple(slower)),))
    tree = checked(bench_page([now], compare_all([now], [report])))
    assert titles(tree)[0] == "Against the baseline"
    rows = cells(tree, "Against the baseline")
    assert [row[-1] for row in rows if row[1:3] == ["gristmill", "eager"]] == ["slower"]
    assert "1 regression" in "".join(tree.itertext())


def test_the_colours_are_readable_in_light_and_in_dark():
    """Text at 4.5:1, marks at 3:1 against the paper (WCAG 2.1); print is the light one."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    schemes = re.findall(r":root \{(.*?)\}", (TEMPLATES / "page.css").read_text(), re.DOTALL)
    assert len(schemes) == 3
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", scheme))
        assert {f"series-{i}" for i in range(1, len(SERIES) + 1)} <= colours.keys()
        for name, colour in colours.items():
            if name in ("paper", "panel", "grid"):
                continue
            for ground in ("paper", "panel"):
                pair = sorted((luminance(colour), luminance(colours[ground])))
                ratio = (pair[1] + 0.05) / (pair[0] + 0.05)
                least = 3.0 if name.startswith("series") else 4.5
                assert ratio >= least, (name, colour, ground, ratio)


def test_a_drawing_is_the_same_twice_and_keeps_its_ids_apart():
    def draw(name):
        with drawing(3, 2) as canvas:
            axis = canvas.figure.subplots()
            (mark,) = axis.plot([1, 2], [3, 4], color=SERIES[0])
            canvas.tip(mark, "a < b")
            return svg(canvas, name, "a & b")

    assert draw("one") == draw("one")
    one, two = (set(re.findall(r'id="([^"]*)"', draw(name))) for name in ("one", "two"))
    assert one
    assert not one & two
    assert "<title>a &lt; b</title>" in draw("one")
    assert "<title>a &amp; b</title>" in draw("one")


@pytest.mark.parametrize(
    ("value", "text"), [(4.28e12, "4.28 T"), (999.96e9, "1 T"), (1500, "1.5 k"), (0.5, "0.5")]
)
def test_numbers_have_si_prefixes(value, text):
    assert si(value) == text


def test_sizes_have_binary_prefixes():
    assert [binary(2**i) for i in (4, 10, 24, 30)] == ["16 B", "1 KiB", "16 MiB", "1 GiB"]


def test_a_missing_extra_is_said_before_anything_is_measured(monkeypatch):
    original = importlib.util.find_spec
    monkeypatch.setattr(
        "gristmill.bench.page.importlib.util.find_spec",
        lambda name: None if name == "jinja2" else original(name),
    )
    with pytest.raises(MissingExtraError, match=r"jinja2.*pip install 'gristmill\[bench\]'"):
        check_extra()
    for command in ("bench", "tune"):
        done = CliRunner().invoke(app, [command, *TINY, "--html", "x.html"])
        assert done.exit_code == 1
        assert "gristmill[bench]" in done.stderr
        assert not Path("x.html").exists()


# ---------------------------------------------------------------------------------------- tuning


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


@pytest.mark.usefixtures("fresh_store")
def test_bench_and_report_write_the_same_page(tmp_path):
    out, html, again = (tmp_path / name for name in ("b.json", "b.html", "again.html"))
    providers = ("-p", "gristmill", "-p", "copy", "-p", "aten", "--pairs", "50")
    arguments = ["bench", *TINY, *providers, "--out", str(out), "--html", str(html), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "wrote" in done.stderr
    checked(html.read_text())
    assert json.loads(done.stdout)["op"] == load("rms_norm").name
    assert CliRunner().invoke(app, ["report", str(out), "--html", str(again)]).exit_code == 0
    assert again.read_text() == html.read_text()
