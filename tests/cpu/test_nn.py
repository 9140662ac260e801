"""The modules: torch's arguments and state dicts, training, copies, and what people wrap around
modules."""

from __future__ import annotations

import copy

import pytest
import torch

import gristmill as gm
from data_parallel import WRAPPERS, gradients_agree
from gristmill import nn

pytestmark = pytest.mark.usefixtures("fresh_store")


def test_rms_norm_is_torchs_with_the_same_state():
    theirs, ours = torch.nn.RMSNorm(32, eps=1e-5), nn.RMSNorm(32, eps=1e-5)
    torch.nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 32, requires_grad=True)
    torch.testing.assert_close(ours(x), theirs(x))
    upstream = torch.randn_like(x)
    torch.testing.assert_close(
        torch.autograd.grad(ours(x), (x, ours.weight), upstream),
        torch.autograd.grad(theirs(x), (x, theirs.weight), upstream),
    )
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"elementwise_affine": False}])
def test_layer_norm_is_torchs_with_the_same_state(options):
    theirs, ours = torch.nn.LayerNorm(32, **options), nn.LayerNorm(32, **options)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 32, requires_grad=True)
    torch.testing.assert_close(ours(x), theirs(x))
    upstream = torch.randn_like(x)
    got, want = (
        torch.autograd.grad(module(x), (x, *module.parameters()), upstream)
        for module in (ours, theirs)
    )
    torch.testing.assert_close(got, want)
    assert repr(ours) == repr(theirs)


def test_add_layer_norm_is_a_sum_and_torchs_layer_norm():
    theirs, ours = torch.nn.LayerNorm(32), nn.AddLayerNorm(32)
    torch.nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    x, residual = (torch.randn(4, 3, 32, requires_grad=True) for _ in range(2))
    upstream = torch.randn(4, 3, 32), torch.randn(4, 3, 32)
    total = x + residual
    results = (ours, ours(x, residual)), (theirs, (theirs(total), total))
    torch.testing.assert_close(results[0][1], results[1][1])
    got, want = (
        torch.autograd.grad(out, (x, residual, *module.parameters()), upstream)
        for module, out in results
    )
    torch.testing.assert_close(got, want)
    with pytest.raises(gm.InvalidInputError, match=r"rows of 32"):
        ours(torch.randn(4, 16), torch.randn(4, 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_without_weight_or_epsilon(dtype):
    x = torch.randn(4, 32, dtype=dtype)
    theirs, ours = (m.RMSNorm(32, elementwise_affine=False) for m in (torch.nn, nn))
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
def test_a_module_is_copied_converted_and_compiled(norm):
    module = copy.deepcopy(norm(32)).to(torch.bfloat16)
    x = torch.randn(4, 32, dtype=torch.bfloat16)
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(32)(x).dtype is torch.bfloat16


def test_silu_and_mul_takes_both_halves_at_once():
    module, x = nn.SiluAndMul(), torch.randn(2, 3, 40, requires_grad=True)
    want = torch.nn.functional.silu(x[..., :20]) * x[..., 20:]
    torch.testing.assert_close(module(x), want)
    torch.testing.assert_close(module(x), gm.silu_and_mul(x[..., :20], x[..., 20:]))
    upstream = torch.randn_like(want)
    got = torch.autograd.grad(module(x), x, upstream)
    torch.testing.assert_close(got, torch.autograd.grad(want, x, upstream))


def _relu2(z):
    return torch.relu(z).square()


@pytest.mark.parametrize(
    ("module", "activation"),
    [
        (nn.GeluAndMul(), torch.nn.GELU()),
        (nn.GeluAndMul("tanh"), torch.nn.GELU("tanh")),
        (nn.Relu2AndMul(), _relu2),
    ],
)
def test_gates_take_both_halves_at_once(module, activation):
    x = torch.randn(2, 3, 40, requires_grad=True)
    want = activation(x[..., :20]) * x[..., 20:]
    torch.testing.assert_close(module(x), want)
    upstream = torch.randn_like(want)
    got = torch.autograd.grad(module(x), x, upstream)
    torch.testing.assert_close(got, torch.autograd.grad(want, x, upstream))
    with pytest.raises(gm.InvalidInputError, match="columns"):
        module(x[..., 1:])


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_torchs_of_any_shape(approximate):
    theirs, ours = torch.nn.GELU(approximate), nn.GELU(approximate)
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(theirs.state_dict())
    for x in (torch.randn(()), torch.randn(3, 5).t(), torch.randn(2, 3, 8)[..., ::2]):
        leaf = x.detach().requires_grad_()
        torch.testing.assert_close(ours(leaf), theirs(leaf))
        got, want = (torch.autograd.grad(m(leaf).sum(), leaf) for m in (ours, theirs))
        torch.testing.assert_close(got, want)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(leaf), theirs(leaf))


def test_what_a_module_refuses():
    for norm in (nn.RMSNorm, nn.LayerNorm):
        with pytest.raises(gm.InvalidInputError, match="normalized_shape"):
            norm((4, 32))
        with pytest.raises(gm.InvalidInputError, match=r"rows of 32"):
            norm(32)(torch.randn(4, 16))
        with pytest.raises(gm.InvalidInputError, match=r"`x` has dtype torch.int64"):
            norm(32)(torch.ones(4, 32, dtype=torch.int64))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_data_parallel_training(wrapper):
    assert gradients_agree("cpu", wrapper) == {0: True, 1: True}
