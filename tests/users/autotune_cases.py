"""What the tests of `gristmill.autotune` share, in the interpreter and on a GPU."""

from __future__ import annotations

import pytest
import triton

import gristmill as gm
from gristmill.tuners.run import KernelRun

MARKS = [
    pytest.mark.usefixtures("fresh_store"),
    # Triton's interpreter takes one element of an array in a way that numpy gives up.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]
CONFIGS = [triton.Config({"BLOCK": b}, num_warps=4) for b in (32, 64, 128)]
N = 100


def grid(meta):
    return (triton.cdiv(meta["n"], meta["BLOCK"]),)


def tuned(kernel, configs=CONFIGS, key=("n",), **options):
    return gm.autotune(configs=configs, key=list(key), **options)(kernel)


def faulty(*faults):
    return [triton.Config({"BLOCK": 64, "FAULT": fault}) for fault in faults]


def statuses(tuner_call, monkeypatch):
    """The outcomes of the runs that a call makes, by config."""
    seen = {}
    real = KernelRun._tell

    def tell(self, candidate, outcome):
        seen[candidate.config] = outcome
        real(self, candidate, outcome)

    monkeypatch.setattr(KernelRun, "_tell", tell)
    tuner_call()
    return seen


@pytest.fixture
def no_runs(monkeypatch):
    """Once called, nothing may be measured any more."""

    def forbid():
        monkeypatch.setattr(KernelRun, "run", lambda self: pytest.fail("it was tuned again"))

    return forbid
