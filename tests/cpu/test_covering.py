"""The conformance suite's choice of cases: few, and every pair of choices among them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.core import registry
from gristmill.core.target import named_target
from gristmill.testing import cases
from gristmill.testing.cases import _arranged
from gristmill.testing.covering import covering

SM_90 = named_target("sm_90")
ON_ROWS = ("rms_norm/row", "rms_norm_backward/strips", "silu_and_mul/tiles")
DTYPES = ("float16", "bfloat16", "float32")


def pairs(row):
    return set(itertools.combinations(enumerate(row), 2))


def pairs_of(rows):
    return set().union(*map(pairs, rows))


@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=5).flatmap(
        lambda sizes: st.lists(st.tuples(*(st.integers(0, n - 1) for n in sizes)), max_size=40)
    )
)
def test_every_pair_that_any_row_has_is_kept(rows):
    """Whatever combinations are left out of the product, as what a contract forbids is."""
    chosen = covering(rows)
    assert chosen == sorted(set(chosen))
    assert pairs_of([rows[n] for n in chosen]) == pairs_of(rows)
    assert covering(rows) == chosen


def test_a_further_column_adds_few_rows():
    """Of six columns of three there are 729 rows; two columns of three need nine."""
    counts = [len(covering(list(itertools.product(range(3), repeat=n)))) for n in (2, 3, 4, 5, 6)]
    assert counts[0] == 9
    assert counts[-1] <= 20


@pytest.mark.parametrize("name", ON_ROWS)
def test_every_layout_meets_every_form_and_dtype_and_every_variant_a_drawn_config(name):
    implementation = registry.implementation(*name.split("/"))
    op = implementation.op
    found = list(cases([implementation], SM_90, count=6, largest=257))
    assert len(found) == len(set(found))
    labels = {c.label for c in found}
    forms = ["", *op.forms(op.workloads[0].problem)]

    def met(dtypes, forms, kind):
        words = itertools.product(("even", "odd"), dtypes, forms, (kind,))
        return not labels.isdisjoint("-".join(filter(None, w)) for w in words)

    for dtype in DTYPES:
        base = op.sized({"rows": 37, "N": 131}, dtype)
        for form, kind, problem in _arranged(op, base):
            if implementation.why_not(problem, SM_90) is None:
                assert met(DTYPES, [form], kind), (form, kind)
                assert met([dtype], forms, kind), (dtype, kind)
        here = {c.variant for c in found if dtype in c.label}
        assert here == set(op.variants)
    for variant in op.variants:
        assert {c.config is None for c in found if c.variant == variant} == {False, True}
