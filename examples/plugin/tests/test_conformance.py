"""gristmill's conformance suite on this package's op. With a GPU it runs there; without one the
kernel runs under TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch

from gristmill.core import registry
from gristmill.core.target import device_target, named_target
from gristmill.testing import cases, judge

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TARGET = device_target(DEVICE) if DEVICE.type == "cuda" else named_target("sm_90")
DTYPES = None if DEVICE.type == "cuda" else (torch.float16, torch.float32)
IMPLEMENTATIONS = [i for i in registry.implementations("squared_relu") if i.kind != "compiled"]


@pytest.mark.parametrize("case", list(cases(IMPLEMENTATIONS, TARGET, dtypes=DTYPES)), ids=str)
def test_conforms(case):
    verdict = judge(case, DEVICE, TARGET)
    assert verdict.ok, verdict.reason
