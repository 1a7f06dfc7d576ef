from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """These tensors are so small that a second thread mostly waits."""
    torch.set_num_threads(1)
