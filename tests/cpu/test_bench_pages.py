"""HTML reports of benchmarks: whole, self-contained, with the figures and the numbers; from runs
and from stored JSON."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from page_cases import H200, ROOT, TINY, checked
from typer.testing import CliRunner

from gristmill.bench import bench_page
from gristmill.bench.comparison import compare_all
from gristmill.bench.figures import SERIES, binary, drawing, si, svg
from gristmill.bench.page import TEMPLATES, check_extra
from gristmill.bench.results import load_reports
from gristmill.cli.app import app
from gristmill.core.registry import load
from gristmill.errors import MissingExtraError


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


def test_reports_of_one_op_from_two_devices_are_two_sections(h200):
    (report,), _ = h200
    other = replace(report, stamp=replace(report.stamp, device="Another GPU"))
    tree = checked(bench_page([report, other]))
    assert [one.get("id") for one in tree.iter("section")] == ["rms_norm", "rms_norm-2"]
    assert [one.text for one in tree.iter("h2")][1] == "rms_norm, Another GPU"


def test_a_comparison_comes_first_on_the_page(h200):
    (report,), _ = h200
    slower = [
        replace(
            row,
            eager_us=row.eager_us * 2,
            eager_interval_us=[2 * us for us in row.eager_interval_us],
        )
        if row.role == "selected"
        else row
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


SNIPPETS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs" / "reports.md").read_text(), re.MULTILINE | re.DOTALL
)


@pytest.mark.parametrize("code", SNIPPETS, ids=lambda code: code.split()[1])
def test_the_snippets_of_the_documentation_run(code, tmp_path):
    paths = {"PYTHONPATH": str(ROOT / "src"), "GRISTMILL_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **paths}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.glob("*.html"))
    assert len(pages) == code.count(".html")
    for page in pages:
        checked(page.read_text())


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
