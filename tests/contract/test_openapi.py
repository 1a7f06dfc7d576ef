"""The description of the API: complete, committed, and shown without the internet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from jsonschema_rs import validator_for

from serve_app.edge import EdgeOptions, build_api
from serve_app.openapi import FILE, written
from tests.contract.conftest import FakeDesk

if TYPE_CHECKING:
    from tests.contract.conftest import Connect

DOCUMENT = build_api(FakeDesk(), EdgeOptions()).openapi()


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


OPERATIONS = dict(operations())
ALWAYS_REFUSED = ("POST /v1/lora/load",)


def test_the_committed_description_is_that_of_the_code() -> None:
    assert FILE.read_text() == written(DOCUMENT), "`make openapi` writes it anew"


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ALWAYS_REFUSED])
def test_every_route_tells_what_it_is_for_what_it_takes_and_what_it_answers(name: str) -> None:
    operation = OPERATIONS[name]
    assert operation["description"]
    good = [told for status, told in operation["responses"].items() if status.startswith("2")]
    assert good
    assert all("content" in told or "headers" in told for told in good)
    assert all(content.get("schema") != {} for told in good for content in told.get("content", {}).values())
    assert {"400", "429", "500"} <= set(operation["responses"])
    if name.startswith("POST"):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            assert content["schema"]


def test_every_example_is_what_its_schema_says() -> None:
    told = 0
    for operation in OPERATIONS.values():
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for content in [content for body in bodies for content in body.get("content", {}).values()]:
            examples = [example["value"] for example in content.get("examples", {}).values()]
            examples += [content["example"]] if "example" in content else []
            for example in examples:
                schema = {**content["schema"], "components": DOCUMENT["components"]}
                validator_for(schema).validate(example)
                told += 1
    assert told >= 2


async def test_the_page_needs_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    addresses = re.findall(r"(?:href|src)=\"([^\"]+)\"", page)
    assert len(addresses) >= 3
    for address in addresses:
        assert address.startswith("/")
        assert (await client.get(address)).status_code == 200
    assert "http" not in page


async def test_the_page_and_the_description_are_open(connect: Connect) -> None:
    async with connect(keys=("sesame",)) as client:
        told = (await client.get("/openapi.json")).json()
        assert told["paths"].keys() == json.loads(FILE.read_text())["paths"].keys()
        assert (await client.get("/docs")).status_code == 200
