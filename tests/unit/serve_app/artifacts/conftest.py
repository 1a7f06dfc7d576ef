"""Both places: `artifacts`, with nothing in it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.artifacts.face import Artifacts
from serve_app.artifacts.local import LocalArtifacts
from serve_app.artifacts.objects import ObjectArtifacts, open_store
from tests.objects import BUCKET, running


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    with running() as endpoint:
        yield endpoint


@pytest.fixture
def objects(endpoint: str) -> ObjectArtifacts:
    return ObjectArtifacts(open_store(f"s3://{BUCKET}/{secrets.token_hex(4)}"))


@pytest.fixture(params=["folder", "objects"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> Artifacts:
    if request.param == "folder":
        return LocalArtifacts(tmp_path / "data")
    objects: ObjectArtifacts = request.getfixturevalue("objects")
    return objects
