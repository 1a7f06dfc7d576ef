"""What this server runs, in the shapes of the current API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve_app.dialects.desk import Catalogue


def wrapped_models(catalogue: Catalogue) -> dict[str, Any]:
    cards: Sequence[dict[str, Any]] = [
        {
            "name": card.name,
            "is_default": card.is_default,
            "is_loaded": True,
            "supported_task_types": list(card.tasks),
            "default_inference_steps": card.default_steps,
            "max_inference_steps": card.max_steps,
        }
        for card in catalogue.models
    ]
    return {
        "models": cards,
        "default_model": catalogue.default_model.name,
        "lm_models": [{"name": name, "is_loaded": True} for name in catalogue.lm_models],
        "loaded_lm_model": catalogue.lm_models[0] if catalogue.lm_models else None,
        "llm_initialized": bool(catalogue.lm_models),
    }
