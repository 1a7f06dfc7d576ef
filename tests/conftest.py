"""What every test runs under: no network, no telemetry, none of the caller's settings, a Ray nobody else can join."""

from __future__ import annotations

import gc
import os
import secrets

import pytest

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; vLLM would otherwise take a share of the whole machine
    "RAY_USAGE_STATS_ENABLED": "0",
    # Said outright: whether Ray wants a token depends otherwise on what was ever run in this home folder.
    "RAY_AUTH_MODE": "token",
}


def pytest_configure(config: pytest.Config) -> None:
    """Set before any test module is imported, since engines read these at import, and inherited by every process."""
    for name in [name for name in os.environ if name.startswith("ACESTEP_")]:
        del os.environ[name]
    os.environ.update(ENVIRONMENT)
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def pytest_collection_finish() -> None:
    """What was imported and collected stays: looking through it for garbage takes most of a second each time."""
    gc.collect()
    gc.freeze()
