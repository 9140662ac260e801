"""A pack whose choice is a Triton kernel, which runs here under the interpreter."""

from __future__ import annotations

import dataclasses

import torch

from gristmill.cache.store import store
from gristmill.core.plan import Candidate
from gristmill.core.registry import implementation
from gristmill.tuning.begin import adopt
from gristmill.tuning.budget import Budget
from gristmill.tuning.runner import TuningRun
from pack_cases import OP, TARGET, beside, chosen, kept, problem, ship

OTHER = '{"torch":"1.0"}'  # the provenance of other versions


def test_get_op_measures_the_packs_choice_though_a_search_was_killed(pack_dir):
    """The pack's choice is no prior: nothing but the pack proposes it."""
    impl = implementation("rms_norm", "row")
    prior = impl.config(None, problem(), TARGET)
    config = next(c for c in impl.space.valid(problem(), TARGET) if c != prior)
    choice = Candidate("row", config)
    entry = kept(name="row", candidate=choice, fallback=choice, provenance=OTHER)
    packed = dataclasses.replace(beside(entry, "row"), candidate=choice, provenance=OTHER)
    ship(pack_dir, entry, measurements=[packed])
    store().record([beside(entry)])
    assert chosen().revalidate
    adopt(store(), "rms_norm", entry.plan.bucket, TARGET.key)
    run = TuningRun(
        OP, problem(), torch.device("cpu"), store(), Budget(1.0), "auto", 0, None, explore=False
    )
    assert choice in run._first_candidates()
