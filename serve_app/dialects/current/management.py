"""What the reference's one user may do to its one process, answered by a server that many share.

Models are chosen by the scenario that the server was started with, so nothing is loaded, swapped or unloaded here: a
request for what runs already is answered as done, one for anything else is refused with what runs.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import BaseModel, Field

from serve_app.dialects.access import Access, Scope
from serve_app.dialects.current.models import loaded_lm, wrapped_models
from serve_app.dialects.desk import Desk
from serve_app.dialects.replies import envelope, failure

ABSENT = (
    ("POST", "/v1/transcribe"),
    *(("POST", f"/v1/training/{verb}") for verb in ("start", "start_lokr", "stop", "load_tensor_info", "export")),
    ("GET", "/v1/training/status"),
    *(
        ("POST", f"/v1/dataset/{verb}")
        for verb in ("scan", "load", "save", "auto_label", "auto_label_async", "preprocess", "preprocess_async")
    ),
    *(("GET", f"/v1/dataset/{what}") for what in ("samples", "sample/{index}")),
    *(("GET", f"/v1/dataset/{what}_status") for what in ("auto_label", "preprocess")),
    *(("GET", f"/v1/dataset/{what}_status/{{task}}") for what in ("auto_label", "preprocess")),
    ("PUT", "/v1/dataset/sample/{index}"),
)


class Init(BaseModel):
    """Models by name, or by a path that ends in it."""

    model: str | None = None
    slot: Annotated[int, Field(ge=1, le=3)] = 1
    init_llm: bool = False
    lm_model_path: str | None = None


def routes(desk: Desk, access: Access) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/init", dependencies=[Depends(access.asking(Scope.ADMIN))])
    async def init(request: Request, asked: Init) -> dict[str, Any]:
        """Whether a model runs here. All of them always do, so there is nothing to wait for."""
        catalogue = desk.catalogue
        names = [card.name for card in catalogue.models]
        if asked.slot > len(names):
            reason = f"ACESTEP_CONFIG_PATH{asked.slot} was not set at startup; this server runs {', '.join(names)}"
            return failure(400, f"Slot {asked.slot} is not available because {reason}")
        model = _name(asked.model) or names[asked.slot - 1]
        lm = _name(asked.lm_model_path) or loaded_lm(catalogue)
        if model not in names:
            return failure(400, f"this server does not run model {model!r}; it runs {', '.join(names)}")
        if (asked.init_llm or asked.lm_model_path) and lm not in catalogue.lm_models:
            known = ", ".join(catalogue.lm_models) or "none"
            return failure(400, f"this server does not run LM {lm or 'of any name'!r}; it runs {known}")
        data = wrapped_models(catalogue)
        told = {"message": "Model initialization completed", "slot": asked.slot, "loaded_model": model}
        return envelope(
            {
                **told,
                "loaded_lm_model": lm,
                **{name: data[name] for name in ("models", "lm_models", "llm_initialized")},
            }
        )

    @router.post("/v1/reinitialize")
    async def reinitialize(request: Request) -> dict[str, Any]:
        """Done: nothing is ever unloaded here, so there is nothing to load again."""
        access.owner_by_header(request, Scope.ADMIN)
        return envelope({"message": "✅ Service reinitialized", "reloaded": []})

    async def refuse(request: Request) -> None:
        access.owner_by_header(request, Scope.ADMIN)
        raise HTTPException(501, f"{request.url.path} is not part of this server; it makes music and trains nothing")

    for method, path in ABSENT:
        router.add_api_route(path, refuse, methods=[method], include_in_schema=False)
    return router


def _name(path: str | None) -> str | None:
    return (path or "").strip().rstrip("/").rpartition("/")[2] or None
