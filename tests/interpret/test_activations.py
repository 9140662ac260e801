"""What the kernels' forms of the activations promise beyond the contracts' bounds: the digits of a
left tail, and values at the ends of float32."""

import pytest
import torch

from gristmill.core import registry

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def tiles(name):
    return registry.implementation(name, "tiles")


def test_the_left_tail_of_gelu_keeps_its_digits():
    """ATen's is zero past -5.5."""
    x = torch.linspace(-9, -0.01, 4096)
    exact = x.double() * torch.special.erfc(-x.double() / 2**0.5) / 2
    assert ((tiles("gelu")(x).double() - exact) / exact).abs().max() < 2**-13
    far = torch.linspace(-60, -9, 512)
    assert tiles("gelu")(far).abs().max() < 1e-17


def test_the_left_tail_of_the_tanh_form_keeps_its_digits():
    x = torch.linspace(-9, -0.01, 4096)
    u = 2 * (2 / torch.pi) ** 0.5 * (x.double() + 0.044715 * x.double() ** 3)
    exact = x.double() * torch.sigmoid(u)
    error = ((tiles("gelu")(x, "tanh").double() - exact) / exact).abs()
    assert (error / (1 + u.abs())).max() < 8 * 2**-24  # an exponent's rounding is as many times


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_at_the_ends_of_float32(approximate):
    inf, huge = torch.inf, 3e38
    x = torch.tensor([inf, -inf, torch.nan, huge, -huge, 1e13, -1e13, 1e-38, 0.0])
    out = tiles("gelu")(x, approximate)
    want = torch.tensor([inf, torch.nan, torch.nan, huge, 0, 1e13, 0, 5e-39, 0])
    torch.testing.assert_close(out, want, equal_nan=True, atol=1e-42, rtol=1e-6)
    slope = tiles("gelu_backward")(torch.ones_like(x), x, approximate)
    assert slope[:3].isnan().all()
    torch.testing.assert_close(slope[3:], torch.tensor([1, 0, 1, 0, 0.5, 0.5]))


def test_relu2_keeps_a_nan():
    x = torch.tensor([torch.nan, -torch.inf, torch.inf, -1.0, 2.0])
    out = tiles("relu2_and_mul")(x, torch.ones_like(x))
    want = torch.tensor([torch.nan, 0, torch.inf, 0, 4])
    torch.testing.assert_close(out, want, equal_nan=True)
    grad, grad_up = tiles("relu2_and_mul_backward")(torch.ones_like(x), x, torch.ones_like(x))
    want_grad = torch.tensor([torch.nan, 0, torch.inf, 0, 4])
    torch.testing.assert_close(grad, want_grad, equal_nan=True)
    torch.testing.assert_close(grad_up, want, equal_nan=True)
