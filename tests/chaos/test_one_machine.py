"""Whatever process dies or halts on one machine, no job is lost, none is made twice, and every song is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.faults import ON_ONE_MACHINE, Fault
from tests.chaos.ordeal import Outcome, suffer

if TYPE_CHECKING:
    from tests.chaos.servers import Lone

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, id=fault.name, marks=[pytest.mark.ray] * fault.is_in_ci) for fault in ON_ONE_MACHINE],
)
def test_every_job_ends_once_with_its_song(
    fault: Fault, lone: Lone, reference: dict[int, str], outcomes: list[Outcome]
) -> None:
    suffer(fault, lone, reference, outcomes)
