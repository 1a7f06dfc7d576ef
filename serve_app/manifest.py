"""Checks a RayService manifest before a cluster sees it: KubeRay's schema, its operator's rules (KubeRay v1.7,
`controllers/ray/utils/validation.go`), and whether pods, drain times and the Serve config inside fit together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator
from ray.serve.schema import DeploymentSchema, ServeDeploySchema

from serve_app.placement import cpus_of, fits, gpus_of, least_replicas, least_shares, shutdown_of

NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LONGEST_NAME = 47
DURATION = re.compile(r"([1-9]\d*)|(?=.*[1-9])(\d+(\.\d+)?(ns|us|ms|s|m|h))+")
UPGRADES = ("NewClusterWithIncrementalUpgrade", "NewCluster", "None")
RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
GPU = "nvidia.com/gpu"
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
DRAIN_UNLESS_SET_S = 30.0
NOT_BESIDE_GCS_OPTIONS = ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS")

Tree = Mapping[str, Any]


def schema_of(crd: Path, version: str) -> Any:
    """The schema of an API version, as strict as the API server is with unknown fields."""
    definition = yaml.safe_load(crd.read_text())
    for served in definition["spec"]["versions"]:
        if served["name"] == version:
            return _strict(served["schema"]["openAPIV3Schema"])
    raise ValueError(f"{crd} has no version {version}")


def schema_faults(content: object, schema: Any) -> Iterator[str]:
    for error in Draft7Validator(schema).iter_errors(content):
        where = ".".join(map(str, error.absolute_path)) or "the manifest"
        yield f"{where}: {error.message[:300]}"


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if strict.pop("x-kubernetes-int-or-string", False):
        strict.pop("type", None)
    is_open = strict.get("x-kubernetes-preserve-unknown-fields", False)
    if isinstance(strict.get("properties"), dict) and strict.get("type") == "object" and not is_open:
        strict.setdefault("additionalProperties", False)
    return strict


@dataclass(frozen=True, slots=True)
class Group:
    """The head, or a group of workers of one kind."""

    name: str
    spec: Tree

    @property
    def pod(self) -> Tree:
        return _at(self.spec, "template", "spec")

    @property
    def container(self) -> Tree:
        """The one that runs Ray."""
        return next(iter(self.pod.get("containers") or []), {})

    @property
    def environment(self) -> dict[str, Any]:
        return {entry["name"]: entry.get("value") for entry in self.container.get("env") or []}

    @property
    def start_params(self) -> Tree:
        return self.spec.get("rayStartParams") or {}

    @property
    def pods_at_most(self) -> int:
        return int(self.spec.get("maxReplicas", 1))

    @property
    def gpus(self) -> float:
        """A pod's; what Ray is told counts before what Kubernetes gives."""
        told = self.start_params.get("num-gpus") or _at(self.spec, "resources").get("GPU")
        return float(told or _at(self.container, "resources", "limits").get(GPU, 0))

    @property
    def cpus(self) -> float:
        told = self.start_params.get("num-cpus") or _at(self.spec, "resources").get("CPU")
        limit = _at(self.container, "resources", "limits").get("cpu", 0)
        return float(told) if told is not None else _cpus(limit)

    @property
    def drain_s(self) -> float:
        return float(self.environment.get(DRAIN) or DRAIN_UNLESS_SET_S)

    @property
    def grace_s(self) -> float:
        return float(self.pod.get("terminationGracePeriodSeconds", 30))


def groups_of(manifest: Tree) -> list[Group]:
    cluster = _at(manifest, "spec", "rayClusterConfig")
    workers = [Group(str(spec.get("groupName")), spec) for spec in cluster.get("workerGroupSpecs") or []]
    return [Group("head", cluster.get("headGroupSpec") or {}), *workers]


def operator_faults(manifest: Tree) -> Iterator[str]:
    """What the operator refuses, though the schema allows it."""
    metadata, spec = _at(manifest, "metadata"), _at(manifest, "spec")
    name = str(metadata.get("name", ""))
    if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        yield (
            f"metadata.name {name!r}: small letters, digits and hyphens, first a letter, at most {LONGEST_NAME} of them"
        )
    timeout = _at(metadata, "annotations").get("ray.io/initializing-timeout")
    if timeout and not DURATION.fullmatch(str(timeout)):
        yield f"annotation ray.io/initializing-timeout {timeout!r}: a duration such as 30m, or whole seconds"
    head, *workers = groups = groups_of(manifest)
    for group in groups:
        yield from _group_faults(group)
    names = [group.name for group in workers]
    yield from (f"two worker groups are called {name}" for name in sorted({n for n in names if names.count(n) > 1}))
    if _at(head.spec, "headService", "metadata").get("name"):
        yield "headGroupSpec.headService.metadata.name may not be set"
    cluster = _at(spec, "rayClusterConfig")
    yield from _gcs_faults(cluster, head, _at(metadata, "annotations"))
    yield from _autoscaler_faults(cluster, groups)
    yield from _auth_faults(cluster)
    yield from _upgrade_faults(spec, bool(cluster.get("enableInTreeAutoscaling")))


def _group_faults(group: Group) -> Iterator[str]:
    if not group.container:
        yield f"group {group.name} has no container"
    if _at(group.spec, "resources") and any(group.start_params.get(name) for name in RESOURCES):
        yield f"group {group.name}: resources are set in rayStartParams and in resources; use one of them"
    if "labels" in group.start_params:
        yield f"group {group.name}: labels go into the group's own labels, not into rayStartParams"
    if any(not isinstance(value, str) for value in group.start_params.values()):
        yield f"group {group.name}: every value of rayStartParams is a text, in quotes"
    least, most = int(group.spec.get("minReplicas", 0)), group.pods_at_most
    if not least <= int(group.spec.get("replicas", least)) <= most:
        yield f"group {group.name}: replicas {group.spec.get('replicas')} is not from {least} to {most}"


def _gcs_faults(cluster: Tree, head: Group, annotations: Tree) -> Iterator[str]:
    options = cluster.get("gcsFaultToleranceOptions")
    if options is None:
        if "RAY_REDIS_ADDRESS" in head.environment:
            yield "RAY_REDIS_ADDRESS is set without gcsFaultToleranceOptions; use redisAddress there"
        return
    if annotations.get("ray.io/ft-enabled"):
        yield "annotation ray.io/ft-enabled and gcsFaultToleranceOptions are both set; keep the second"
    if annotations.get("ray.io/external-storage-namespace"):
        yield "annotation ray.io/external-storage-namespace: use gcsFaultToleranceOptions.externalStorageNamespace"
    if head.start_params.get("redis-password"):
        yield "rayStartParams redis-password: use gcsFaultToleranceOptions.redisPassword"
    for name in NOT_BESIDE_GCS_OPTIONS:
        if name in head.environment:
            yield f"{name} is set in the head's container; use gcsFaultToleranceOptions"


def _autoscaler_faults(cluster: Tree, groups: list[Group]) -> Iterator[str]:
    version = _at(cluster, "autoscalerOptions").get("version")
    variable = groups[0].environment.get("RAY_enable_autoscaler_v2")
    if not cluster.get("enableInTreeAutoscaling"):
        if variable in ("1", "true"):
            yield "RAY_enable_autoscaler_v2 is set though enableInTreeAutoscaling is not"
        return
    if version is not None and variable is not None:
        yield "autoscalerOptions.version and RAY_enable_autoscaler_v2 are both set; keep the first"
    for group in groups:
        if group.spec.get("suspend"):
            yield f"group {group.name}: cannot be suspended while the autoscaler is on"
        if version == "v2" and group.pod.get("restartPolicy", "Never") != "Never":
            yield f"group {group.name}: restartPolicy is Never, or not set, with autoscaler v2"


def _auth_faults(cluster: Tree) -> Iterator[str]:
    if _at(cluster, "authOptions").get("mode") != "token":
        return
    version = str(cluster.get("rayVersion", ""))
    if not re.fullmatch(r"\d+\.\d+(\.\d+)?.*", version):
        yield f"authOptions.mode token needs rayVersion; seen {version!r}"
    elif tuple(map(int, version.split(".")[:2])) < (2, 52):
        yield f"authOptions.mode token needs Ray 2.52 or later, rayVersion is {version}"


def _upgrade_faults(spec: Tree, is_autoscaled: bool) -> Iterator[str]:
    strategy = _at(spec, "upgradeStrategy")
    kind, options = strategy.get("type"), _at(strategy, "clusterUpgradeOptions")
    if kind is not None and kind not in UPGRADES:
        yield f"upgradeStrategy.type {kind!r}; allowed: {', '.join(UPGRADES)}"
    if kind != UPGRADES[0]:
        return
    if not is_autoscaled:
        yield "an incremental upgrade needs enableInTreeAutoscaling"
    if not options.get("gatewayClassName"):
        yield "an incremental upgrade needs clusterUpgradeOptions.gatewayClassName"
    surge, step = options.get("maxSurgePercent", 100), options.get("stepSizePercent", 0)
    if not 0 < step <= surge <= 100:
        yield f"clusterUpgradeOptions: stepSizePercent {step} is not from 1 to maxSurgePercent {surge}"
    if options.get("intervalSeconds", 0) <= 0:
        yield "clusterUpgradeOptions.intervalSeconds is a positive number"


def fit_faults(manifest: Tree, serve: ServeDeploySchema) -> Iterator[str]:
    """Where pods, drain times and the Serve config inside do not fit together."""
    groups = groups_of(manifest)
    deployments = [one for application in serve.applications for one in application.deployments]
    yield from _drain_faults(manifest, groups, deployments)
    yield from _image_faults(manifest, groups)
    yield from _audio_faults(groups, serve)
    gpus = int(sum(group.gpus * group.pods_at_most for group in groups))
    shares = least_shares(deployments)
    if not fits(shares, gpus):
        needed = ", ".join(f"{share:g}" for share in shares)
        yield f"replicas need GPU shares {needed} at least; all pods have {gpus} GPUs at most"
    cpus = sum(group.cpus * group.pods_at_most for group in groups)
    asked = sum(cpus_of(one) * least_replicas(one) for one in deployments)
    if asked > cpus:
        yield f"replicas need {asked:g} CPUs at least; all pods together have {cpus:g} at most"


def _drain_faults(manifest: Tree, groups: list[Group], deployments: list[DeploymentSchema]) -> Iterator[str]:
    """A song that runs may end: replica before node, node before pod, pod before its cluster."""
    for group in groups:
        if group.drain_s >= group.grace_s:
            yield (
                f"group {group.name}: {DRAIN} is {group.drain_s:g} s, not shorter than "
                f"terminationGracePeriodSeconds {group.grace_s:g}"
            )
    for one in deployments:
        places = [group for group in groups[1:] if not gpus_of(one) or group.gpus]
        drain_s = min((group.drain_s for group in places), default=DRAIN_UNLESS_SET_S)
        if shutdown_of(one) > drain_s:
            yield (
                f"deployment {one.name}: graceful_shutdown_timeout_s {shutdown_of(one):g} is longer than the "
                f"{drain_s:g} s in which its node drains ({DRAIN})"
            )
    deletion = _at(manifest, "spec").get("rayClusterDeletionDelaySeconds", 60)
    longest = max((group.grace_s for group in groups), default=0.0)
    if deletion < longest:
        yield f"rayClusterDeletionDelaySeconds {deletion} is shorter than a pod's {longest:g} s to end"


def _audio_faults(groups: list[Group], serve: ServeDeploySchema) -> Iterator[str]:
    """What the server itself refuses when it starts."""
    pods = sum(group.pods_at_most for group in groups[1:])
    for args in (application.args for application in serve.applications):
        if pods > 1 and not args.get("artifacts") and not args.get("data_is_shared"):
            yield (
                f"args: audio would be in a folder of each of {pods:g} pods; set `artifacts: s3://BUCKET/PREFIX`, or "
                "`data_is_shared: true` where `data` is a volume that all of them mount"
            )


def _image_faults(manifest: Tree, groups: list[Group]) -> Iterator[str]:
    images = {str(group.container.get("image")) for group in groups if group.container}
    if len(images) > 1:
        yield f"pods run {len(images)} images; use one, so that Ray and Python are the same everywhere"
    version = str(_at(manifest, "spec", "rayClusterConfig").get("rayVersion", ""))
    yield from (f"image {image} has no tag, or the tag latest; pin it" for image in images if _is_unpinned(image))
    if not version:
        yield "rayClusterConfig.rayVersion is not set"


def _is_unpinned(image: str) -> bool:
    return "@" not in image and (":" not in image.rpartition("/")[2] or image.endswith(":latest"))


def _cpus(value: object) -> float:
    text = str(value or 0)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def _at(tree: Tree, *path: str) -> Tree:
    """What lies there, or nothing."""
    for key in path:
        tree = tree.get(key) or {}
    return tree
