"""Two versions of the library on one store: one that commit 61c3e96 wrote gives its plans here.

`tests/data/store-61c3e96.sqlite3` is what that commit's `gristmill.tune` left on a CPU: rms_norm of
16x256 (then once more in Triton's interpreter, two trials) and 64x256, silu_and_mul of 16x512, all
float32.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from store_cases import FAMILY, KEY, plan, warns

from gristmill.cache.database import FILE_NAME
from gristmill.cache.exchange import bring, collect
from gristmill.cache.store import PlanStore
from gristmill.core.plan import Candidate

WRITTEN = Path(__file__).parents[1] / "data" / "store-61c3e96.sqlite3"
TARGET = "cpu:x86_64:2:AMD EPYC"
BUCKET = "rows=16,N=256|x:float32:r,weight:float32:r"
FAMILY_THERE = "rows=*,N=256|x:float32:r,weight:float32:r"


@pytest.fixture
def old(tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    shutil.copy(WRITTEN, folder / FILE_NAME)
    return PlanStore(folder)


def test_it_opens_without_a_word_and_gives_its_plans(old):
    with warns():
        summary = old.summary()
        kept = old.plan("rms_norm", BUCKET, TARGET, "eager")
        siblings = old.family("rms_norm", FAMILY_THERE, TARGET, "graph")
    assert (summary.state, summary.plans, summary.measurements) == ("ok", 6, 10)
    assert kept.candidate == kept.fallback == Candidate("aten")
    assert (kept.origin, kept.source_hash) == ("tuned", "b3c3ddc3f18aa50f")
    assert kept.evidence.device_us == kept.evidence.host_us == 18.982998881256208
    assert sorted(sizes["rows"] for sizes, _ in siblings) == [16, 64]


def test_its_measurements_come_with_their_configs(old):
    found = {m.candidate.implementation: m for m in old.measurements("rms_norm", BUCKET, TARGET)}
    assert set(found) == {"aten", "inductor", "row", "multi_row"}
    assert found["multi_row"].candidate.config["BLOCK_M"] == 4
    assert found["row"].outcome.status == "slow"


def test_it_takes_rows_of_this_version_beside_its_own(old):
    old.save_plan(plan(), FAMILY, {"M": 16})
    with warns():
        again = PlanStore(old.folder)
        assert again.plan(*KEY, "eager") == plan()
        assert len(again.plans()) == 7


def test_it_goes_into_a_pack_and_from_there_into_a_store_of_this_version(old, tmp_path):
    pack = collect(old).pack
    new = PlanStore(tmp_path / "new")
    done = bring(new, pack)
    # Of two measurements of one candidate under the same versions a pack has the later.
    assert (done.plans, done.measurements) == (6, len(pack.measurements))
    key = lambda p: (p.op, p.bucket, p.objective)  # noqa: E731
    assert sorted(new.plans(), key=key) == sorted(old.plans(), key=key)
    bare = lambda ms: {dataclasses.replace(m, measured_at=0.0) for m in ms}  # noqa: E731
    assert bare(new.measurements("rms_norm", BUCKET, TARGET)) == bare(
        old.measurements("rms_norm", BUCKET, TARGET)
    )
