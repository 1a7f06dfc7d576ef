"""Golden files of the two older APIs: what is sent, the canonical request it becomes, and every reply."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.songs import failed, succeeded

if TYPE_CHECKING:
    import httpx

    from tests.contract.conftest import FakeDesk

GOLDEN = Path(__file__).with_name("golden")
CASES = sorted(
    str(path.relative_to(GOLDEN)) for dialect in ("music_jobs", "gradio_v1") for path in GOLDEN.glob(f"{dialect}/*")
)
ENDS = {None: None, "succeeded": succeeded, "failed": failed}


def test_both_apis_have_golden_files() -> None:
    assert {case.partition("/")[0] for case in CASES} == {"music_jobs", "gradio_v1"}


@pytest.mark.parametrize("case", CASES)
async def test_requests_and_replies_are_as_in_the_golden_file(
    client: httpx.AsyncClient, desk: FakeDesk, case: str
) -> None:
    golden: dict[str, Any] = json.loads((GOLDEN / case).read_text())
    desk.becomes = ENDS[golden["becomes"]]
    for number, exchange in enumerate(golden["exchanges"]):
        if number == 1 and desk.jobs and not desk.jobs[0].status.is_final:
            await desk.wait(desk.jobs[0].id, "", 0)
        method, path = exchange["request"].split()
        reply = await client.request(method, path, json=exchange.get("json"), data=exchange.get("form"))
        seen = reply.json()
        seen.pop("timestamp", None)
        assert (reply.status_code, seen) == (exchange["status"], exchange["reply"]), exchange["request"]
    requests = [job.request.model_dump(mode="json", exclude_defaults=True) for job in desk.jobs]
    assert requests == golden["canonical"]
