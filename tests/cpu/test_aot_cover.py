"""What the rows of an operator cover: every size and layout of the problems it was built for."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gristmill import aot
from gristmill.aot.functions import Condition
from gristmill.aot.op_forms import LARGEST, Line, lines
from gristmill.aot.row_choice import holds, opposite, unmet
from gristmill.aot.spec import Descriptor, Int
from gristmill.aot.symbolic import dynamic_dims, sizes_of
from gristmill.core.problem import Problem
from gristmill.core.registry import implementation
from gristmill.core.target import named_target
from gristmill.specs import matmul, rms_norm_backward

SIZES = (0, 1, 2, 5, 9, 33, 100, 1500, 4095, 4097, 70_001, 1 << 24, 1 << 30, (1 << 30) + 7)


def off(problem, *names):
    args = tuple(
        (n, dataclasses.replace(v, aligned=False) if n in names else v) for n, v in problem.args
    )
    return Problem(problem.op, args)


@pytest.fixture(scope="module")
def products():
    made = aot.op_kernels(
        "matmul", "sm_90", problems=[matmul.problem_of(m, 4096, 512) for m in (1, 512)]
    )
    (form,) = made.function.forms
    return made, form


@pytest.mark.parametrize("names", [(), ("a",), ("b",), ("a", "b")], ids="-".join)
def test_every_size_has_a_row_that_takes_it(products, names):
    _, form = products
    for m in SIZES:
        problem = off(matmul.problem_of(m, 4096, 512), *names)
        row = aot.row_of(form, "sm_90", sizes_of(problem.tensors))
        assert row is not None, m
        impl = implementation("matmul", row.implementation)
        assert impl.why_not(problem, named_target("sm_90")) is None, (m, row)


def test_a_row_for_a_gap_leaves_the_others_what_they_had(products):
    """Beyond the last plan, its row serves for as long as it holds."""
    _, form = products
    rows = [
        aot.row_of(form, "sm_90", sizes_of(matmul.problem_of(m, 4096, 512).tensors))
        for m in (5000, 1 << 20, 1 << 30)
    ]
    assert [row.implementation for row in rows] == ["persistent_tma", "persistent_tma", "tiled"]


def test_sizes_between_powers_of_two_have_rows():
    """Of 4 rows and of 16 there are other kernels than of 5 to 15."""
    made = aot.op_kernels(
        "rms_norm_backward", "sm_90", problems=[rms_norm_backward.problem_of((4096, 65536))]
    )
    (form,) = made.function.forms
    for m in range(2, 20):
        problem = rms_norm_backward.problem_of((m, 65536))
        assert aot.row_of(form, "sm_90", sizes_of(problem.tensors)) is not None, m


def test_a_size_that_is_a_stride_may_be_odd():
    made = aot.op_kernels(
        "matmul", "sm_90", problems=[matmul.problem_of(512, 256, 512, weight=False, along_m=True)]
    )
    (form,) = made.function.forms
    for m in (496, 504, 508, 510, 511):
        problem = matmul.problem_of(m, 256, 512, weight=False, along_m=True)
        assert aot.row_of(form, "sm_90", sizes_of(problem.tensors)) is not None, m


def test_kernels_with_descriptors_are_made_for_32_bits_alone():
    """Triton does not compile them for 64, and their rows say so."""
    heads = matmul.problem_of(128, 4096, 128, batch=32)
    made = aot.op_kernels("matmul", "sm_90", problems=[heads])
    given = [k.given for k in made.kernels]
    given = [g for g in given if any(isinstance(spec, Descriptor) for spec in g.values())]
    integers = [spec for g in given for spec in g.values() if isinstance(spec, Int)]
    assert integers
    assert all(tuple(spec.widths or ()) == (32,) for spec in integers)


def test_launchers_multiply_sizes_by_numbers_alone(monkeypatch):
    """torch 2.11 takes no bool times a symbol, torch 2.13 does."""

    def refusing(times):
        def product(self, other):
            if isinstance(other, bool):
                raise TypeError("a bool times a size")
            return times(self, other)

        return product

    for name in ("__mul__", "__rmul__"):
        monkeypatch.setattr(torch.SymInt, name, refusing(getattr(torch.SymInt, name)))
    problems = [matmul.problem_of(512, 4096, 512), matmul.problem_of(512, 4096, 511)]
    made = aot.op_kernels("matmul", "sm_90", problems=problems)
    assert not [note for note in made.notes if "for these sizes alone" in note]


def test_a_line_has_every_size_up_to_32_bits():
    problem = matmul.problem_of(512, 4096, 512)
    found = list(lines(problem, dynamic_dims(matmul.OP, problem)))
    assert all(isinstance(line, Line) for line in found)
    for line in found:
        assert line.at(len(line) - 1)["a"].shape[0] == LARGEST
        assert line.at(0)["a"].shape[0] == 0


@pytest.mark.parametrize("relation", ["==", "!=", "<", "<="])
def test_the_opposite_holds_where_a_condition_does_not(relation):
    one = Condition("n", relation, "4")
    for n in (3, 4, 5):
        assert holds(one, {"n": n}) is not holds(opposite(one), {"n": n})


def test_the_first_condition_that_fails_is_named(products):
    _, form = products
    row = next(r for r in form.rows if r.implementation == "gemv")
    met = sizes_of(matmul.problem_of(1, 4096, 512).tensors)
    assert unmet(row, met) is None
    assert unmet(row, {**met, "a_size_0": 2}) == Condition("a_size_0", "==", "1")
