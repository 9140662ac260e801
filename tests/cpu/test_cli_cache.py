"""`gristmill cache` on plans of what is no op here, and without a place for a store; variables that
are no settings."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from gristmill import settings
from gristmill.cache.store import store
from gristmill.cli import doctor
from gristmill.cli.app import app
from gristmill.core.config import Config
from gristmill.core.plan import Candidate, Plan


@pytest.fixture
def run(fresh_store):
    """Run `gristmill cache` in this process, with a plan store of its own."""

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, ["cache", *arguments], env={"COLUMNS": "140"})
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return run


def json_of(run, *arguments):
    return json.loads(run(*arguments, "--json").stdout)


def test_the_store_of_a_users_kernel_is_shown_and_pruned_by_its_name(run):
    name, key = "kernel:mine.silu", "|n=2000,x_ptr:torch.float32,check=none,None,0.0,source=ab"
    plan = Plan(
        name,
        Candidate(name, Config({"BLOCK": 256})),
        key,
        "cpu",
        "graph",
        "tuned",
        source_hash="ab",
    )
    store().save_plan(plan, key, {})
    shown = run("show", "--op", name).stdout
    assert "n=2000 x_ptr:float32" in shown
    assert "check" not in shown
    assert json_of(run, "prune", "--op", name)["removed"] == 1
    assert "known ops are" in run("prune", "--op", name, code=2).stderr


def test_cache_show_says_that_there_is_no_place_for_a_store(run, tmp_path):
    (tmp_path / "file").touch()
    with settings.override(cache_dir=tmp_path / "file" / "cache"):
        assert "state: unavailable" in run("show").stdout
        assert json_of(run, "show")["state"] == "unavailable"


def test_doctor_sees_a_variable_that_nothing_reads(fresh_store, monkeypatch):
    monkeypatch.setenv("GRISTMILL_BUDGTE_S", "4")
    check = doctor._settings()
    assert check.status == "warn"
    assert (
        "GRISTMILL_BUDGTE_S is read by nothing (did you mean GRISTMILL_BUDGET_S?)" in check.advice
    )
