"""What this server runs, as the list that OpenAI's and OpenRouter's clients read."""

from __future__ import annotations

from typing import Any

from models.music import MAX_SECONDS
from serve_app.dialects.desk import Catalogue

PROVIDER = "acestep"
CREATED = 1_770_508_800  # 8 February 2026, since when ACE-Step's own API has such a list


def listed_models(catalogue: Catalogue) -> dict[str, Any]:
    """The default first."""
    nothing = dict.fromkeys(("prompt", "completion", "request", "image"), "0")
    entries = [
        {
            "id": f"{PROVIDER}/{card.name}",
            "object": "model",
            "owned_by": PROVIDER,
            "name": f"ACE-Step {card.name}",
            "created": CREATED,
            "input_modalities": ["text", "audio"],
            "output_modalities": ["audio", "text"],
            "context_length": 4096,
            "max_output_length": int(MAX_SECONDS),
            "pricing": nothing,
            "description": "AI music generation model",
            "architecture": None,
        }
        for card in catalogue.models
    ]
    return {"object": "list", "data": entries}
