"""What a Serve config asks of its nodes, deployment by deployment, and where that cannot work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import DeploymentSchema

from serve_app.settings import AppSettings

CPUS_UNLESS_SET = 1.0
SHUTDOWN_UNLESS_SET_S = 20.0
ONGOING_UNLESS_SET = 5


def placement_faults(deployments: Sequence[DeploymentSchema], settings: AppSettings) -> Iterator[str]:
    names = [one.name for one in deployments]
    yield from (f"deployment {name} is there twice" for name in sorted({n for n in names if names.count(n) > 1}))
    for one in deployments:
        yield from (f"deployment {one.name}: {fault}" for fault in _own_faults(one))
    yield from _device_faults(deployments, settings)
    yield from _batch_faults(deployments, settings)


def _own_faults(one: DeploymentSchema) -> Iterator[str]:
    gpus = gpus_of(one)
    if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
        yield f"num_gpus {gpus:g}: a share of one GPU, 0 to 1, or a whole number of them"
    given = autoscaling_of(one)
    if given is None:
        return
    unknown = sorted(set(given) - set(AutoscalingConfig.model_fields))
    if unknown:
        allowed = ", ".join(AutoscalingConfig.model_fields)
        yield f"unknown key autoscaling_config.{unknown[0]}; allowed: {allowed}"
        return
    try:
        scaling = AutoscalingConfig.model_validate(given)
    except ValidationError as error:
        yield from (f"autoscaling_config: {fault['msg']}" for fault in error.errors())
        return
    if isinstance(one.num_replicas, int):
        yield "num_replicas and autoscaling_config are both set; keep one"
    if scaling.downscale_delay_s < scaling.look_back_period_s:
        yield (
            f"autoscaling_config: downscale_delay_s {scaling.downscale_delay_s:g} is shorter than the "
            f"look_back_period_s {scaling.look_back_period_s:g} it decides by"
        )
    ongoing, target = _number(one.max_ongoing_requests, ONGOING_UNLESS_SET), scaling.get_target_ongoing_requests()
    if target > ongoing:
        yield (
            f"autoscaling_config: target_ongoing_requests {target:g} is never reached, "
            f"max_ongoing_requests is {ongoing:g}"
        )


def _device_faults(deployments: Sequence[DeploymentSchema], settings: AppSettings) -> Iterator[str]:
    """Ray shows a replica only those GPUs that it asked for."""
    listed = {one.name: one for one in deployments}
    for name in settings.models:
        gpus = gpus_of(listed[name]) if name in listed else 0.0
        if settings.device == "cuda" and not gpus:
            yield f"deployment {name} has no num_gpus, so it sees no GPU, and args.device is cuda"
        if settings.device == "cpu" and gpus:
            yield f"deployment {name} holds {gpus:g} GPUs that it does not use, args.device is cpu"


def _batch_faults(deployments: Sequence[DeploymentSchema], settings: AppSettings) -> Iterator[str]:
    listed = {one.name: one for one in deployments}
    songs = {lm.deployment: lm.songs for lm in settings.lm} | {dit.deployment: dit.songs for dit in settings.dit}
    for name, together in songs.items():
        ongoing = listed[name].max_ongoing_requests if name in listed else None
        if isinstance(ongoing, int) and ongoing < together:
            yield f"deployment {name}: max_ongoing_requests {ongoing} never fills a batch of {together} songs"


def fits(shares: Sequence[float], gpus: int) -> bool:
    """Whether replicas with these shares find room: the largest first, each on the first GPU that has it."""
    free = [1.0] * gpus
    for share in sorted(shares, reverse=True):
        need, part = max(1, int(share)), min(1.0, share)
        places = [index for index, left in enumerate(free) if left + 1e-6 >= part][:need]
        if len(places) < need and share:
            return False
        for index in places:
            free[index] -= part
    return True


def least_shares(deployments: Sequence[DeploymentSchema]) -> list[float]:
    """GPU shares of all replicas there are at least."""
    return [gpus_of(one) for one in deployments for _ in range(least_replicas(one)) if gpus_of(one)]


def least_replicas(one: DeploymentSchema) -> int:
    """At rest; one of what scales to zero, or it would never run."""
    scaling = autoscaling_of(one)
    if scaling is not None:
        return max(1, int(scaling.get("min_replicas", 1)))
    return one.num_replicas if isinstance(one.num_replicas, int) else 1


def gpus_of(one: DeploymentSchema) -> float:
    return float(_actor_options(one).get("num_gpus") or 0)


def cpus_of(one: DeploymentSchema) -> float:
    given = _actor_options(one).get("num_cpus")
    return CPUS_UNLESS_SET if given is None else float(given)


def shutdown_of(one: DeploymentSchema) -> float:
    """Seconds that running calls get to end."""
    return _number(one.graceful_shutdown_timeout_s, SHUTDOWN_UNLESS_SET_S)


def autoscaling_of(one: DeploymentSchema) -> Mapping[str, Any] | None:
    return one.autoscaling_config if isinstance(one.autoscaling_config, dict) else None


def _actor_options(one: DeploymentSchema) -> Mapping[str, Any]:
    options = one.ray_actor_options
    return options.model_dump(exclude_unset=True) if hasattr(options, "model_dump") else {}


def _number(given: object, otherwise: float) -> float:
    return float(given) if isinstance(given, (int, float)) else otherwise
