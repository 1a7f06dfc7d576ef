"""Checks Serve config files more strictly than Serve, which lets unknown keys pass: `python -m serve_app.check FILE`"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve import Application
from ray.serve._private.build_app import build_app as walk_graph  # Serve's own, there is no public one
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from models.errors import AceError
from serve_app.app import graph
from serve_app.listening import refuse_open
from serve_app.settings import AppSettings

IMPORT_PATH = "serve_app.app:build_app"


class BadConfig(AceError):
    """A config file that would not do what it says."""

    code = "bad_config"
    is_public = True


def check_file(path: Path) -> None:
    """Raises BadConfig with every fault: unknown keys anywhere, values out of range, deployments that do not exist."""
    faults = list(faults_of(path))
    if faults:
        raise BadConfig("\n".join(f"{path}: {fault}" for fault in faults))


def faults_of(path: Path) -> Iterator[str]:
    try:
        content = yaml.safe_load(path.read_text())
        schema = ServeDeploySchema.model_validate(content)
    except (OSError, yaml.YAMLError) as error:
        yield str(error)
        return
    except ValidationError as error:
        yield from told(error)
        return
    yield from unknown_keys(content, ServeDeploySchema)
    for application in schema.applications:
        yield from application_faults(application, schema.http_options.host)


def application_faults(application: ServeApplicationSchema, host: str | None) -> Iterator[str]:
    if application.import_path != IMPORT_PATH:
        yield f"import_path is {application.import_path!r}; this project's is {IMPORT_PATH!r}"
        return
    try:
        settings = AppSettings.model_validate(application.args)
        refuse_open(host, settings.api)
        built = graph(settings)
    except ValidationError as error:
        yield from (f"args: {fault}" for fault in told(error))
        return
    except AceError as error:
        yield f"args: {error}"
        return
    known = deployment_names(built)
    for deployment in application.deployments:
        if deployment.name not in known:
            yield f"deployments: {deployment.name!r} is not in the graph of these args: {', '.join(sorted(known))}"


def deployment_names(application: Application) -> set[str]:
    """Names of every deployment bound into an application."""
    return {deployment.name for deployment in walk_graph(application, name="check").deployments}


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


def main(paths: list[str]) -> int:
    status = 0
    for path in paths:
        try:
            check_file(Path(path))
        except BadConfig as error:
            sys.stderr.write(f"{error}\n")
            status = 1
        else:
            sys.stdout.write(f"{path}: good\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
