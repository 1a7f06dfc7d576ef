from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.tiny import write_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every tiny checkpoint."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_tiny(root)
    return root
