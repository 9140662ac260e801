"""A report against its baseline: verdicts both ways, what cannot be judged, exit codes."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from gristmill.bench.comparison import compare, compare_all
from gristmill.bench.comparison_text import print_comparison, summary
from gristmill.bench.results import Report, Result, Row, save_reports
from gristmill.bench.stamp import Stamp
from gristmill.cli.app import app
from gristmill.errors import InvalidInputError
from gristmill.measure.statistics import Ratio, median_interval, ratio_of_medians

STAMP = Stamp(
    "A GPU", "cuda:sm_90", {"torch": "2.11", "triton": "3.6"}, "0" * 40, False, "2026-11-20", "c"
)
SPREAD = 0.005  # of the made intervals, to both sides


def row(name, role, eager, graph=None, spread=SPREAD, what="row A=1 [tuned]", **changes):
    def interval(time_us):
        return None if time_us is None else (time_us * (1 - spread), time_us * (1 + spread))

    made = Row(
        name, role, "ok", what, device_us=eager, eager_us=eager, graph_us=graph,
        eager_interval_us=interval(eager), graph_interval_us=interval(graph),
    )  # fmt: skip
    return replace(made, **changes)


def report(*rows, pairs=60, stamp=STAMP, workload="w", **changes):
    result = replace(Result(workload, "rms_norm(x)", 1, 1, rows, pairs=pairs), **changes)
    return Report("rms_norm", stamp, {"copy_bytes_per_s": 1e12, "flops_per_s": {}}, (result,))


def plan(eager, graph=None, **options):
    return row("gristmill", "selected", eager, graph, **options)


def aten(eager, graph=None, **options):
    return row("aten", "other", eager, graph, what="vendor", **options)


def change(before, now, **options):
    return compare(now, before, **options).changes[0]


@pytest.mark.parametrize(
    ("before_us", "now_us", "spread", "verdict"),
    [
        (100.0, 110.0, 0.005, "slower"),
        (110.0, 100.0, 0.005, "faster"),
        (100.0, 101.0, 0.001, "same"),  # within 2%
        (100.0, 103.0, 0.02, "same"),  # the interval reaches 0.98
        (100.0, 103.0, 0.002, "slower"),
        (3.0, 3.29, 0.0, "same"),  # within 0.3 us
        (3.0, 3.31, 0.0, "slower"),
    ],
)
def test_the_verdict_is_by_the_interval_and_the_resolution(before_us, now_us, spread, verdict):
    found = change(report(plan(before_us, spread=spread)), report(plan(now_us, spread=spread)))
    assert found.verdict == verdict
    assert found.ratio == pytest.approx(before_us / now_us)
    assert found.low <= found.ratio <= found.high
    assert found.regression == (verdict == "slower")


def test_each_objective_is_compared():
    comparison = compare(report(plan(100.0, 60.0)), report(plan(100.0, 50.0)))
    assert [(c.objective, c.verdict) for c in comparison.changes] == [
        ("eager", "same"),
        ("graph", "slower"),
    ]
    assert [c.objective for c in comparison.regressions] == ["graph"]


def test_the_threshold_moves_the_verdict():
    before, now = report(plan(100.0, spread=0.001)), report(plan(104.0, spread=0.001))
    assert change(before, now).verdict == "slower"
    assert change(before, now, threshold=0.05).verdict == "same"
    for wrong in (-0.1, 1.0):
        with pytest.raises(InvalidInputError, match="share of time"):
            compare(now, before, wrong)


def test_a_device_that_slowed_down_is_drift_and_what_slowed_beside_it_is_not():
    before = report(plan(100.0), aten(100.0))
    drifted = compare(report(plan(130.0), aten(131.0)), before)
    assert [c.verdict for c in drifted.changes] == ["drifted", "slower"]
    assert not drifted.regressions
    assert drifted.judged
    assert drifted.drift == pytest.approx(100 / 131)
    assert drifted.changes[0].beside == pytest.approx(131 / 130)
    worse = compare(report(plan(150.0), aten(130.0)), before)
    assert [c.provider for c in worse.regressions] == ["gristmill"]
    lucky = compare(report(plan(80.0), aten(80.0)), before)
    assert [c.verdict for c in lucky.changes] == ["drifted", "faster"]


def test_where_versions_differ_the_copy_is_the_control():
    newer = replace(STAMP, versions={"torch": "2.12", "triton": "3.6"})
    copy = [row("copy", "ceiling", us, what="copy_ of as many bytes") for us in (50.0, 50.0)]
    before = report(plan(100.0), aten(100.0), copy[0])
    now = report(plan(130.0), aten(130.0), copy[1], stamp=newer)
    comparison = compare(now, before)
    assert [c.provider for c in comparison.regressions] == ["gristmill"]
    assert comparison.differences == ("torch: 2.11 before, 2.12 now",)
    same = compare(report(plan(130.0), aten(130.0), copy[1]), before)
    assert not same.regressions


def test_another_version_of_ours_alone_leaves_the_others_as_control():
    stamps = [replace(STAMP, versions={**STAMP.versions, "gristmill": v}) for v in ("1", "2")]
    before = report(plan(100.0), aten(100.0), stamp=stamps[0])
    comparison = compare(report(plan(130.0), aten(130.0), stamp=stamps[1]), before)
    assert comparison.differences == ("gristmill: 1 before, 2 now",)
    assert not comparison.regressions


def test_anothers_slowdown_is_no_regression():
    comparison = compare(report(plan(100.0), aten(130.0)), report(plan(100.0), aten(100.0)))
    assert comparison.changes[1].verdict == "slower"
    assert not comparison.regressions


def test_what_stops_to_run_or_to_be_right_is_a_regression():
    ok, wrong = (
        report(plan(100.0)),
        report(Row("gristmill", "selected", "wrong", reason="wrong in 3")),
    )
    broke = change(ok, wrong)
    assert (broke.verdict, broke.reason, broke.regression) == ("broke", "wrong in 3", True)
    mended = change(wrong, ok)
    assert (mended.verdict, mended.regression) == ("mended", False)
    raised = report(Row("gristmill", "", "failed", reason="RuntimeError: x"))
    assert change(ok, raised).regression
    whole = report(reason="out of memory")
    assert change(ok, whole).reason == "out of memory"
    assert change(ok, whole).regression
    gone = report(Row("gristmill", "selected", "unsupported", reason="needs a GPU"))
    assert change(ok, gone).verdict == "not judged"


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (report(plan(150.0), stamp=replace(STAMP, target="cuda:sm_100")), "another device"),
        (report(plan(150.0), pairs=49), "fewer than 50 pairs"),
        (report(plan(150.0), problem="rms_norm(y)"), "another problem"),
    ],
)
def test_what_cannot_be_judged_says_why_and_has_its_ratio(now, reason):
    comparison = compare(now, report(plan(100.0)))
    (found,) = comparison.changes
    assert found.verdict == "not judged"
    assert reason in found.reason
    assert found.ratio == pytest.approx(100 / 150)
    assert not comparison.judged
    assert not comparison.regressions
    assert "Nothing of ours could be judged" in summary(comparison)


def test_a_report_older_than_the_intervals_counts_with_its_medians():
    old = report(plan(100.0, eager_interval_us=None))
    found = change(old, report(plan(110.0)))
    assert found.verdict == "slower"
    assert found.low == pytest.approx(100 / (110 * (1 + SPREAD)))


def test_a_plan_that_is_no_longer_tuned_is_said():
    found = change(report(plan(100.0)), report(plan(150.0, what="row A=1 [prior]")))
    assert found.note == "was row A=1 [tuned], is row A=1 [prior]"
    assert not change(report(plan(100.0)), report(plan(150.0))).note


def test_of_several_baselines_the_one_of_the_device_is_taken():
    elsewhere = report(plan(10.0), stamp=replace(STAMP, target="other"))
    (found,) = compare_all([report(plan(100.0))], [elsewhere, report(plan(99.0))])
    assert found.judged
    (found,) = compare_all([report(plan(100.0))], [elsewhere])
    assert not found.judged


def test_workloads_of_one_side_only_are_named():
    comparison = compare(report(plan(1.0), workload="new"), report(plan(1.0), workload="old"))
    assert (comparison.only_before, comparison.only_now) == (("old",), ("new",))
    assert not comparison.judged


def test_only_reports_of_one_op_compare():
    other = replace(report(plan(1.0)), op="matmul")
    with pytest.raises(InvalidInputError, match=r"`matmul`.*`rms_norm`"):
        compare(report(plan(1.0)), other)
    with pytest.raises(InvalidInputError, match="baseline has matmul"):
        compare_all([report(plan(1.0))], [other])
    both = compare_all([report(plan(1.0)), other], [other])
    assert [one.op for one in both] == ["matmul"]


def test_the_text_has_both_runs_the_differences_and_the_regressions():
    newer = replace(STAMP, commit="1" * 40, dirty=True, versions={"torch": "2.12"}, tree="ab" * 32)
    now = report(plan(150.0, what="multi_row B=2 [tuned]"), aten(100.0), stamp=newer)
    out = Console(width=160, file=io.StringIO(), record=True)
    print_comparison(out, compare(now, report(plan(100.0), aten(100.0))))
    text = " ".join(out.export_text().split())
    assert "before: 2026-11-20, 000000000000" in text
    assert "now: 2026-11-20, 111111111111 with local changes, sources abababababab" in text
    assert "torch: 2.11 before, 2.12 now" in text
    assert "triton: 3.6 before, ? now" in text
    assert "1 regression; what is not ours runs at 1.000x" in text
    assert "150.00 now: 0.667x; was row A=1 [tuned], is multi_row B=2 [tuned]" in text


# ------------------------------------------------------------------------------------ statistics


def test_intervals_of_medians_and_of_their_ratio_cover_the_truth():
    """Of 200 pairs of runs, about 95% of the intervals hold the true ratio."""
    generator = np.random.default_rng(0)
    held = wide = 0
    for _ in range(200):
        a, b = (median * generator.lognormal(0, 0.05, 60) for median in (110.0, 100.0))
        one, other = (Ratio(float(np.median(s)), *median_interval(s)) for s in (a, b))
        assert one.low <= one.value <= one.high
        ratio = ratio_of_medians(one, other)
        held += ratio.low <= 1.1 <= ratio.high
        wide += ratio.low <= 1.0
    assert 0.88 <= held / 200 <= 1
    assert wide / 200 < 0.05


def test_a_ratio_of_exact_medians_is_exact():
    assert ratio_of_medians(Ratio(4.0, 4.0, 4.0), Ratio(2.0, 2.0, 2.0)) == Ratio(2.0, 2.0, 2.0)


# ---------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("now_us", "code"), [(150.0, 3), (100.0, 0), (60.0, 0)], ids=["slower", "same", "faster"]
)
def test_the_exit_code_says_whether_there_is_a_regression(tmp_path, now_us, code):
    paths = [tmp_path / "before.json", tmp_path / "now.json"]
    save_reports(paths[0], [report(plan(100.0), aten(100.0))])
    save_reports(paths[1], [report(plan(now_us), aten(100.0))])
    arguments = ["report", str(paths[1]), "--compare", str(paths[0])]
    assert CliRunner().invoke(app, arguments).exit_code == code
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == code
    (comparison,) = json.loads(done.stdout)["comparisons"]
    assert bool(comparison["regressions"]) == (code == 3)
    assert CliRunner().invoke(app, [*arguments, "--threshold", "0.5"]).exit_code == 0


def test_a_plan_that_broke_is_a_regression_before_it_is_a_failure(tmp_path):
    paths = [tmp_path / "before.json", tmp_path / "now.json"]
    save_reports(paths[0], [report(plan(100.0))])
    save_reports(paths[1], [report(Row("gristmill", "selected", "wrong", reason="wrong in 3"))])
    assert CliRunner().invoke(app, ["report", str(paths[1])]).exit_code == 1
    arguments = ["report", str(paths[1]), "--compare", str(paths[0])]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 3
    assert "broke, wrong in 3" in done.stdout


def test_a_comparison_that_judges_nothing_fails(tmp_path):
    paths = [tmp_path / "before.json", tmp_path / "now.json"]
    save_reports(paths[0], [report(plan(100.0), stamp=replace(STAMP, target="other"))])
    save_reports(paths[1], [report(plan(100.0))])
    done = CliRunner().invoke(app, ["report", str(paths[1]), "--compare", str(paths[0])])
    assert done.exit_code == 1
    assert "target: other before, cuda:sm_90 now" in done.stdout


@pytest.mark.usefixtures("fresh_store")
def test_bench_compares_with_what_it_measured_before(tmp_path):
    """A baseline whose plan is said to have taken a fiftieth: a regression, whatever the noise."""
    path = tmp_path / "before.json"
    arguments = ["bench", "rms_norm", "--shape", "x=4x64", "--device", "cpu", "--pairs", "50"]
    arguments += ["-p", "gristmill", "-p", "copy", "-p", "aten"]
    assert CliRunner().invoke(app, [*arguments, "--out", str(path)]).exit_code == 0
    data = json.loads(path.read_text())
    for one in data["results"][0]["rows"]:
        if one["provider"] == "gristmill":
            one["eager_us"] /= 50
            one["eager_interval_us"] = [t / 50 for t in one["eager_interval_us"]]
    path.write_text(json.dumps(data))
    done = CliRunner().invoke(app, [*arguments, "--compare", str(path), "--json"])
    assert done.exit_code == 3, done.output
    (comparison,) = json.loads(done.stdout)["comparisons"]
    assert {c["provider"] for c in comparison["regressions"]} == {"gristmill"}
