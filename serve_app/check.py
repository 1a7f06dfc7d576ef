"""Checks Serve config files and RayService manifests more strictly than Serve, which lets unknown keys pass."""

from __future__ import annotations

import argparse
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from models.errors import AceError
from serve_app.manifest import fit_faults, operator_faults, schema_faults, schema_of
from serve_app.placement import fits, least_shares, placement_faults
from serve_app.settings import AppSettings

IMPORT_PATH = "serve_app.app:build_app"


class BadConfig(AceError):
    """A config file that would not do what it says."""

    code = "bad_config"
    is_public = True


@dataclass(frozen=True, slots=True)
class Given:
    """What is known of where a file is to run. `crd`: KubeRay's definition of a RayService; `gpus`: of all hosts."""

    crd: Path | None = None
    gpus: int | None = None


def check_file(path: Path, given: Given = Given()) -> None:
    """Raises BadConfig with every fault: unknown keys anywhere, values out of range, deployments that do not exist,
    shares that fit nowhere; of a RayService, also what KubeRay refuses."""
    faults = list(faults_of(path, given))
    if faults:
        raise BadConfig("\n".join(f"{path}: {fault}" for fault in faults))


def faults_of(path: Path, given: Given) -> Iterator[str]:
    try:
        content = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    except (OSError, yaml.YAMLError) as error:
        yield str(error)
        return
    if isinstance(content, dict) and content.get("kind") == "RayService":
        yield from manifest_faults(content, given)
    else:
        yield from config_faults(content, given)


def manifest_faults(content: dict[str, Any], given: Given) -> Iterator[str]:
    if given.crd is not None:
        version = str(content.get("apiVersion", "")).rpartition("/")[2]
        faults = list(schema_faults(content, schema_of(given.crd, version)))
        if faults:
            yield from faults
            return  # the rest reads what the schema promises
    yield from operator_faults(content)
    try:
        inner = yaml.safe_load(content["spec"]["serveConfigV2"])
    except (KeyError, TypeError, yaml.YAMLError) as error:
        yield f"spec.serveConfigV2 cannot be read: {error!r}"
        return
    faults = list(config_faults(inner, given))
    yield from (f"serveConfigV2: {fault}" for fault in faults)
    if not faults:
        yield from fit_faults(content, ServeDeploySchema.model_validate(inner))


def config_faults(content: object, given: Given) -> Iterator[str]:
    try:
        schema = ServeDeploySchema.model_validate(content)
    except ValidationError as error:
        yield from told(error)
        return
    yield from unknown_keys(content, ServeDeploySchema)
    for application in schema.applications:
        yield from application_faults(application)
    shares = least_shares([one for application in schema.applications for one in application.deployments])
    if given.gpus is not None and not fits(shares, given.gpus):
        yield f"replicas with GPU shares {', '.join(f'{share:g}' for share in shares)} do not fit on {given.gpus} GPUs"


def application_faults(application: ServeApplicationSchema) -> Iterator[str]:
    if application.import_path != IMPORT_PATH:
        yield f"import_path is {application.import_path!r}; this project's is {IMPORT_PATH!r}"
        return
    try:
        settings = AppSettings.model_validate(application.args)
    except ValidationError as error:
        yield from (f"args: {fault}" for fault in told(error))
        return
    except AceError as error:
        yield f"args: {error}"
        return
    for one in application.deployments:
        if one.name not in settings.deployments:
            allowed = ", ".join(settings.deployments)
            yield f"deployments: {one.name!r} is not in the graph of these args: {allowed}"
    yield from placement_faults(application.deployments, settings)


def unknown_keys(content: object, model: type[BaseModel], where: str = "") -> Iterator[str]:
    """Keys of a document that the pydantic model it is read into does not have."""
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        field = model.model_fields.get(key) or next((f for f in model.model_fields.values() if f.alias == key), None)
        if field is None:
            yield f"unknown key {where}{key}; allowed: {', '.join(model.model_fields)}"
            continue
        inner = next(models_in(field.annotation), None)
        if inner is None:
            continue
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            at = f"{where}{key}[{index}]." if isinstance(value, list) else f"{where}{key}."
            yield from unknown_keys(item, inner, at)


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """Pydantic models inside an annotation such as `list[X] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, list, tuple):
        for part in typing.get_args(annotation):
            yield from models_in(part)


def told(error: ValidationError) -> Iterator[str]:
    for fault in error.errors():
        yield f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}, seen {fault['input']!r}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serve_app.check", description=__doc__)
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="a Serve config file or RayService manifest"
    )
    parser.add_argument("--crd", type=Path, help="KubeRay's ray.io_rayservices.yaml, which a RayService must follow")
    parser.add_argument("--gpus", type=int, help="how many GPUs there are; all replicas must find room on them")
    told = parser.parse_args(arguments)
    status = 0
    for path in told.files:
        try:
            check_file(path, Given(told.crd, told.gpus))
        except BadConfig as error:
            sys.stderr.write(f"{error}\n")
            status = 1
        else:
            sys.stdout.write(f"{path}: good\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
