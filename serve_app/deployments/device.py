"""Which device a replica works on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from serve_app.settings import AppSettings


def device_of(settings: AppSettings) -> torch.device:
    """The GPU that Ray gave this replica, where there is one and the settings allow it; the CPU otherwise."""
    import torch

    if settings.device != "auto":
        return torch.device(settings.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
