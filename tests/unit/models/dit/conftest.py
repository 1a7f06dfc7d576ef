import warnings
from pathlib import Path

import pytest
import torch

from models.tiny import write_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("checkpoints") / "tiny"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers' VAE builds itself with a deprecated weight_norm
        write_tiny(root)
    return root
