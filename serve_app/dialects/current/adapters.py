"""`/v1/lora/*`: the reference loads an adapter for all that follows; here each request names its own.

See docs/decisions/0020. What would change other requests is refused with what to send instead.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import BaseModel, Field

from serve_app.dialects.access import Access, Scope
from serve_app.dialects.desk import Desk
from serve_app.dialects.replies import envelope, failure


class Load(BaseModel):
    """`lora_path`: an adapter's name, or a path that ends in it."""

    lora_path: Annotated[str, Field(min_length=1)]
    adapter_name: str | None = None


class Toggle(BaseModel):
    use_lora: bool


class Scale(BaseModel):
    scale: Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
    adapter_name: str | None = None


def routes(desk: Desk, access: Access) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/lora/load", dependencies=[Depends(access.asking(Scope.ADMIN))])
    async def load(request: Request, asked: Load) -> None:
        """Refused: tells how a request names the adapter, or which there are."""
        name = asked.lora_path.rstrip("/").rpartition("/")[2].removesuffix(".safetensors")
        known = await desk.adapters()
        if name not in known:
            raise HTTPException(400, f"no adapter is called {name!r}; known are {', '.join(known) or 'none'}")
        raise HTTPException(400, f"adapter {name!r} is here already. {_how(name)}")

    @router.post("/v1/lora/unload")
    async def unload(request: Request) -> dict[str, Any]:
        """Done: none is ever loaded for all."""
        access.owner_by_header(request, Scope.ADMIN)
        return envelope({"message": "⚠️ No LoRA adapter loaded."})

    @router.post("/v1/lora/toggle", dependencies=[Depends(access.asking(Scope.ADMIN))])
    async def toggle(request: Request, asked: Toggle) -> dict[str, Any]:
        """Off is how it is; on is refused, as code 400."""
        if asked.use_lora:
            return failure(400, _how("NAME"))
        return envelope({"message": "✅ LoRA disabled", "use_lora": False})

    @router.post("/v1/lora/scale", dependencies=[Depends(access.asking(Scope.ADMIN))])
    async def scale(request: Request, asked: Scale) -> dict[str, Any]:
        """Refused, as code 400: a request that names an adapter gives its scale."""
        return failure(400, _how(asked.adapter_name or "NAME", asked.scale))

    @router.get("/v1/lora/status")
    async def status(request: Request) -> dict[str, Any]:
        """None is loaded for all; `adapters` are those that a request may name."""
        access.owner_by_header(request, Scope.READ)
        return envelope(
            {
                "lora_loaded": False,
                "use_lora": False,
                "lora_scale": 1.0,
                "adapter_type": None,
                "scales": {},
                "active_adapter": None,
                "adapters": list(await desk.adapters()),
                "synthetic_default_mode": False,
            }
        )

    return router


def _how(name: str, scale: float = 1.0) -> str:
    sent = f'"loras": [{{"name": "{name}", "scale": {scale:g}}}]'
    return f"Many share this server, so no adapter is set for all of them: send {sent} with each request"
