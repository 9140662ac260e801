"""Two GPUs: gradients on the device that is not current, and the wrappers of data-parallel training
over NCCL."""

from __future__ import annotations

import pytest
import torch

import gristmill as gm
from data_parallel import WRAPPERS, gradients_agree

pytestmark = [
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
    pytest.mark.usefixtures("fresh_store"),
]


def test_gradients_on_the_device_that_is_not_current():
    device = torch.device("cuda", 1)
    x = torch.randn(64, 512, device=device, requires_grad=True)
    weight = torch.randn(512, device=device, requires_grad=True)
    upstream = torch.randn_like(x)
    with torch.cuda.device(0):
        got = torch.autograd.grad(gm.rms_norm(x, weight), (x, weight), upstream)
        assert torch.cuda.current_device() == 0
    want = torch.autograd.grad(torch.rms_norm(x, (512,), weight, 1e-6), (x, weight), upstream)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_data_parallel_training_over_nccl(wrapper):
    assert gradients_agree("cuda", wrapper) == {0: True, 1: True}
