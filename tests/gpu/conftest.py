"""GPU tests run where there is a GPU, and are skipped with that reason elsewhere."""

from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "/gpu/" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def _give_memory_back():
    """Several test processes share the device, and a case that reaches past 2**31 elements takes
    8.6 GB of it."""
    yield
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@pytest.fixture
def cuda():
    return torch.device("cuda", 0)
