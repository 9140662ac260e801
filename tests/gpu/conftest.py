"""GPU tests run where there is a GPU, and are skipped with that reason elsewhere."""

from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "/gpu/" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def cuda():
    return torch.device("cuda", 0)
