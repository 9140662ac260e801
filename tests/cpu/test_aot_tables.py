"""Grids as expressions, and tuned choices: what an artifact's tables say."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aot_cases import add_kernel, example
from gristmill import aot
from gristmill.aot import grid, tuned
from gristmill.aot import kernel as kernels
from gristmill.aot.expand import Expansion
from gristmill.aot.manifest import Choice
from gristmill.errors import InvalidInputError

sizes = st.recursive(
    st.sampled_from(["n", "BLOCK"]) | st.integers(1, 100).map(str),
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from(["+", "*"]), inner)
        | st.builds("{}({}, {})".format, st.sampled_from(["cdiv", "min", "max"]), inner, inner)
    ),
    max_leaves=6,
)


@given(sizes, st.integers(1, 10**6), st.sampled_from([32, 64]))
def test_a_grid_in_c_says_what_it_says(text, n, block):
    """Its C text, which is Python's too but for the division, has the same value."""
    functions = {"cdiv": lambda a, b: -(-a // b), "min": min, "max": max}
    names = {"n": n, "BLOCK": block, **functions}
    written = grid.to_c(text, ["n", "BLOCK"])
    assert eval(written.replace("/", "//"), names) == eval(text, names)
    assert re.fullmatch(r"[\w\s()+*/,%-]+", written)


def test_a_quotient_is_cs():
    assert grid.to_c("n // BLOCK % 3 - 1", ["n", "BLOCK"]) == "(((n / BLOCK) % 3) - 1)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cdiv(nn, 64)", "Did you mean 'n'"),
        ("n / 2", "none of them"),
        ("n if n else 1", "none of them"),
        ("__import__('os')", "none of them"),
        ("cdiv(n)", "`cdiv` of 1"),
        ("n.real", "none of them"),
        ("n +", "does not parse"),
        ("3.5", "none of them"),
        ("-1", "none of them"),
        ("(" * 300 + "n" + ")" * 300, "is not understood"),
        ("+".join(["n"] * 40), "levels deep"),
        ("n\x00", "is not understood"),
    ],
)
def test_a_grid_of_something_else_is_refused(text, message):
    with pytest.raises(InvalidInputError, match=message):
        grid.to_c(text, ["n"])


# -------------------------------------------------------------------------------------- choices


def rows(kernel):
    expansion = Expansion(kernel, ("sm_80", "sm_90"))
    return tuned.rows(kernel, expansion.parameters, expansion.combinations)


TUNED = add_kernel(BLOCK_SIZE=[64, 128], num_warps=[4, 8]).types(T=["fp16", "bf16"])


def test_a_choice_is_filled_in_where_there_is_one_value():
    kernel = TUNED.choose(
        "sm_90", {"n_elements": (0, 9)}, {"T": "bf16"}, BLOCK_SIZE=64, num_warps=8
    )
    kernel = kernel.choose("gfx942", BLOCK_SIZE=64, num_warps=4)  # not built for
    limits_ = (("n_elements", 0, 9),)
    assert rows(kernel) == (Choice("sm_90", ("bf16",), limits_, {"BLOCK_SIZE": 64}, 8, 3),)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"arch": "sm_90", "BLOCK_SIZE": 64}, "leaves `num_warps` open, of which there are 4, 8"),
        ({"arch": "sm_90", "BLOCK_SIZE": 256, "num_warps": 4}, "of which no variant is compiled"),
        ({"arch": "sm_90", "BLOCKSIZE": 64}, "Did you mean 'BLOCK_SIZE'"),
        ({"arch": "sm_90", "when": {"n": (0, 1)}}, "not an integer parameter"),
        ({"arch": "sm_90", "when": {"n_elements": (2, 1)}}, "smallest and the largest"),
        ({"arch": "sm_90", "types": {"U": "fp16"}}, "not a type variable"),
        ({"arch": "sm_9"}, "a target is 'sm_9'"),
    ],
)
def test_a_choice_of_what_is_not_compiled_is_refused(row, message):
    with pytest.raises(InvalidInputError, match=message):
        rows(TUNED.choose(**row))


def unused(kernel):
    """What is said of choices that no call takes."""
    expansion = Expansion(kernel, ("sm_80", "sm_90"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tuned.warn_of_unused(kernel, expansion.combinations)
    assert {one.category for one in caught} <= {aot.UnusedChoiceWarning}
    return [str(one.message) for one in caught]


def test_choices_that_no_call_takes_are_said():
    row = {"BLOCK_SIZE": 64, "num_warps": 4}
    whole = TUNED.grid("cdiv(n_elements, BLOCK_SIZE)")
    assert unused(TUNED) == unused(whole) == unused(whole.choose("sm_90", **row)) == []
    (said,) = unused(whole.choose("sm_86", **row).choose("sm_90", **row).choose("gfx942", **row))
    assert said == (
        "add_kernel has tuned choices for sm_86, gfx942, and is compiled for sm_80, sm_90: no call "
        "will take them. Add the target, or leave them out."
    )
    (said,) = unused(TUNED.choose("sm_90", **row))
    assert "no grid, so there is no `add_kernel_tuned` that decides BLOCK_SIZE: " in said
    (said,) = unused(TUNED.choose("sm_100", **row))  # not both: no grid would mend it
    assert "for sm_100, and is compiled for sm_80, sm_90" in said
    alone = add_kernel(BLOCK_SIZE=[64], num_warps=[4, 8]).types(T=["fp16"])
    assert unused(alone.choose("sm_90", num_warps=4)) == []  # decides the warps, grid or none


# ----------------------------------------------------------------------------------------- docs


def test_the_example_of_the_documentation_says_how_many_variants_it_has(monkeypatch):
    text = Path(__file__).parents[2].joinpath("docs", "aot.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    monkeypatch.setitem(sys.modules, "kernel", example("vector_add"))
    expansions = []

    class Report:
        variants = binaries = 0

    def build(out, kernel, targets, **how):
        expansions.append(Expansion(kernel, targets))
        assert len(rows(kernel)) == 1
        return Report()

    monkeypatch.setattr(kernels, "build", build)
    exec(code, {})
    assert f"That is {len(expansions[0].combinations)}." in text
