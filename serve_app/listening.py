"""Who can reach the server, and whether it may be reached by them without a key."""

from __future__ import annotations

import ipaddress

import ray
from ray.serve.context import _get_global_client  # Serve's own, there is no public way to its options

from models.errors import AceError
from serve_app.settings import ApiSettings, keyring_of


class OpenToAll(AceError):
    """A server beyond this machine that nobody needs a key for, and nobody said it should be so."""

    code = "open_to_all"
    is_public = True


def listening_host() -> str | None:
    """Where Serve's proxies listen; `None` for nowhere, or where Serve does not run."""
    client = _get_global_client(raise_if_no_controller_running=False) if ray.is_initialized() else None
    return None if client is None else client.http_config.host


def is_loopback(host: str | None) -> bool:
    """Whether only this machine can reach what listens at `host`. An empty one means every address."""
    if host is None or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def refuse_open(host: str | None, settings: ApiSettings) -> None:
    """Neither at `host`, where Serve listens, nor at the v1 API's own port. Raises OpenToAll, and BadKeys."""
    hosts = {"http_options.host": host, "api.v1_host": settings.v1_host if settings.v1_port is not None else None}
    beyond = {name: where for name, where in hosts.items() if not is_loopback(where)}
    if beyond and keyring_of(settings).is_open and not settings.allow_open:
        name, where = next(iter(beyond.items()))
        raise OpenToAll(
            f"the server would listen at {where!r}, beyond this machine, and no key is set: anybody could use it. "
            f"Set ACESTEP_API_KEY or api.keys_file; or {name}: 127.0.0.1; or, if it shall be open to all, "
            "api.allow_open: true"
        )
