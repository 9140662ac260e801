"""Tables of rotary embeddings by the published formulas, and what `rope_tables` refuses."""

from __future__ import annotations

import math

import pytest
import torch

import gristmill as gm
from gristmill.errors import InvalidInputError

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}


def angles_of(cos, sin):
    """The angles, between -pi and pi, of one position's table."""
    return torch.atan2(sin.double(), cos.double())


# What the papers' formulas give in 40 digits: theta ** (-2i / D), and what a scaling makes of it.
EXPECTED = {
    "plain": (128, 500_000.0, None, 1.0, {0: 1.0, 32: 500_000.0**-0.5, 16: 500_000.0**-0.25}),
    "linear": (128, 10_000.0, {"rope_type": "linear", "factor": 4.0}, 1.0, {0: 0.25, 32: 0.0025}),
    "llama3": (
        *(128, 500_000.0, LLAMA3, 1.0),
        {
            0: 1.0,
            20: 0.016560440080994446,
            28: 0.003211445994752591,
            29: 0.0021665707635033587,
            30: 0.0013718935677611381,
            32: 0.0005248461609929547,
            34: 0.0001785078127679964,
            35: 9.556212353964683e-05,
            63: 3.068925988914511e-07,
        },
    ),
    "yarn-deepseek": (
        *(64, 10_000.0, YARN, 1.3688879454113936),
        {
            0: 1.0,
            10: 0.05623413252, 15: 0.008334508951020775, 16: 0.0055,
            20: 0.0007905694150420948, 23: 3.33380358040831e-05, 31: 3.33380358040831e-06,
        },
    ),
    "yarn-qwen": (
        *(128, 1e6, {**YARN, "factor": 4, "original_max_position_embeddings": 32768}),
        1.138629436111989,
        {0: 1.0, 16: 0.03162277660168379, 31: 0.0008029597275452303},
    ),
    "yarn-untruncated": (
        *(64, 10_000.0, {**YARN, "factor": 32, "truncate": False}, 0.1 * math.log(32) + 1),
        {16: 0.005552754881458853},
    ),
    "yarn-mscale": (
        *(64, 10_000.0, {**YARN, "mscale": 0.707, "mscale_all_dim": 1.0}),
        1.2608037774058554 / 1.3688879454113936,
        {16: 0.0055},
    ),
    "yarn-attention-factor": (64, 10_000.0, {**YARN, "attention_factor": 0.5}, 0.5, {16: 0.0055}),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_tables_are_those_of_the_published_formulas(name):
    head_dim, theta, scaling, factor, expected = EXPECTED[name]
    cos, sin = gm.rope_tables(torch.tensor([1]), head_dim, theta, scaling)
    assert cos.dtype == sin.dtype == torch.float32
    assert cos.shape == (1, head_dim)
    size = torch.hypot(cos.double(), sin.double())
    torch.testing.assert_close(size, torch.full_like(size, factor), rtol=1e-6, atol=0)
    for pair, frequency in expected.items():
        for column in (pair, pair + head_dim // 2):
            angle = angles_of(cos, sin)[0, column].item()
            assert math.isclose(angle, frequency, rel_tol=3e-7), (pair, angle)


def test_tables_far_out_are_as_right_as_at_the_start():
    positions = torch.tensor([[0, 7], [131_071, 1_000_003]])
    cos, sin = gm.rope_tables(positions, 8, 500_000.0)
    assert cos.shape == (2, 2, 8)
    exact = positions.double()[..., None] * 500_000.0 ** (-torch.arange(4).double() / 4)
    torch.testing.assert_close(cos[..., :4].double(), exact.cos(), rtol=0, atol=6e-8)
    torch.testing.assert_close(sin[..., 4:].double(), exact.sin(), rtol=0, atol=6e-8)
    for kind in (torch.int32, torch.float32):
        again = gm.rope_tables(positions.to(kind), 8, 500_000.0)
        assert torch.equal(again[0], cos)
    paired, _ = gm.rope_tables(positions, 8, 500_000.0, interleaved=True)
    assert torch.equal(paired[..., ::2], cos[..., :4])
    assert torch.equal(paired[..., 1::2], cos[..., :4])


def test_tables_compile():
    positions = torch.arange(5)
    compiled = torch.compile(lambda p: gm.rope_tables(p, 16, scaling=YARN), fullgraph=True)
    torch.testing.assert_close(compiled(positions), gm.rope_tables(positions, 16, scaling=YARN))


@pytest.mark.parametrize(
    ("head_dim", "theta", "scaling", "words"),
    [
        (7, 1e4, None, ["`head_dim`", "7", "even"]),
        (8, 0.0, None, ["`theta`", "0.0", "above 0"]),
        (8, math.inf, None, ["`theta`", "inf"]),
        (8, 1e4, "yarn", ["`scaling`", "str", "mapping"]),
        (8, 1e4, {"rope_type": "yarm"}, ["'yarm'", "yarn", "Did you mean"]),
        (8, 1e4, {"factor": 2.0}, ["rope_type", "None", "linear"]),
        (8, 1e4, {"rope_type": "linear"}, ["'factor'", "linear", "Add it"]),
        (8, 1e4, {"rope_type": "linear", "factor": 0}, ["'factor'", "0", "more than 0"]),
        (8, 1e4, {"rope_type": "linear", "factor": "2"}, ["'factor'", "'2'", "number"]),
        (8, 1e4, {**YARN, "beta": 3}, ["'beta'", "beta_fast", "Remove"]),
        (8, 1e4, {**LLAMA3, "high_freq_factor": 1.0}, ["high_freq_factor", "larger"]),
        (8, 1.0, YARN, ["`theta`", "yarn"]),
    ],
)
def test_tables_refuse(head_dim, theta, scaling, words):
    with pytest.raises(InvalidInputError) as caught:
        gm.rope_tables(torch.arange(3), head_dim, theta, scaling)
    for word in words:
        assert word in str(caught.value)


def test_tables_refuse_what_is_no_position():
    for positions in ([0, 1], torch.tensor([True]), torch.tensor([1j])):
        with pytest.raises(InvalidInputError, match="positions"):
            gm.rope_tables(positions, 8)
    with pytest.raises(InvalidInputError, match="linear"):
        gm.rope_tables(torch.arange(2), 8, scaling={"type": "linear"})  # its older name


def test_a_base_in_the_scaling_has_to_be_the_one_that_is_given():
    positions, scaling = torch.arange(4), {"rope_type": "linear", "factor": 2.0}
    expected = gm.rope_tables(positions, 8, 5e5, scaling)
    torch.testing.assert_close(
        gm.rope_tables(positions, 8, 5e5, {**scaling, "rope_theta": 5e5}), expected
    )
    with pytest.raises(gm.InvalidInputError, match=r"rope_theta 500000.0 and `theta` is 10000.0"):
        gm.rope_tables(positions, 8, scaling={**scaling, "rope_theta": 5e5})
