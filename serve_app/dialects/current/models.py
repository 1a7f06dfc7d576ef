"""What this server runs, in the shapes of the current API, and its standing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request

from serve_app.dialects.access import Access, Scope
from serve_app.dialects.catalogue_list import listed_models
from serve_app.dialects.desk import Catalogue, Desk
from serve_app.dialects.replies import envelope

ModelsFormat = Literal["wrapped", "openrouter"]


def routes(desk: Desk, access: Access, models_format: ModelsFormat) -> APIRouter:
    """`models_format`: the shape of `/v1/models` unless a request says."""
    router = APIRouter()

    @router.get("/v1/models", dependencies=[Depends(access.asking(Scope.READ))])
    async def models(
        request: Request, shape: Annotated[ModelsFormat | None, Query(alias="format")] = None
    ) -> dict[str, Any]:
        """What this server runs, its default first; in ACE-Step's envelope, or as the list that OpenRouter sends."""
        data = wrapped_models(desk.catalogue)
        is_list = (shape or models_format) == "openrouter"
        reply = listed_models(desk.catalogue) if is_list else envelope(data)
        return {**reply, "models": data["models"], "default_model": data["default_model"]}

    @router.get("/v1/model_inventory")
    async def model_inventory(request: Request) -> dict[str, Any]:
        """As `/v1/models`, always in the envelope."""
        access.owner_by_header(request, Scope.READ)
        return envelope(wrapped_models(desk.catalogue))

    @router.get("/v1/stats")
    async def stats(request: Request) -> dict[str, Any]:
        """The queue in numbers."""
        access.owner_by_header(request, Scope.READ)
        seen = await desk.stats()
        names = ("total", "queued", "running", "succeeded", "failed", "cancelled")
        numbers = {
            "jobs": {name: getattr(seen, name) for name in names},
            "queue_size": seen.queued,
            "queue_maxsize": seen.queue_limit,
            "avg_job_seconds": round(seen.avg_job_seconds, 3),
        }
        return envelope(numbers)

    @router.get("/health")
    async def health() -> dict[str, Any]:
        """Alive, and able to take jobs; `/readyz` tells part by part whether all models are up."""
        told = {"status": "ok", "service": "ACE-Step API", "version": "1.0"}
        return {**envelope(told | _loaded(desk.catalogue)), **told, "healthy": True, "pipeline_loaded": True}

    return router


def wrapped_models(catalogue: Catalogue) -> dict[str, Any]:
    cards = [
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
        "loaded_lm_model": loaded_lm(catalogue),
        "llm_initialized": bool(catalogue.lm_models),
    }


def loaded_lm(catalogue: Catalogue) -> str | None:
    return catalogue.lm_models[0] if catalogue.lm_models else None


def _loaded(catalogue: Catalogue) -> dict[str, Any]:
    """For clients that ask whether to load models first: they need not, jobs are taken and wait for what starts."""
    return {
        "models_initialized": True,
        "llm_initialized": bool(catalogue.lm_models),
        "loaded_model": catalogue.default_model.name,
        "loaded_lm_model": loaded_lm(catalogue),
    }
