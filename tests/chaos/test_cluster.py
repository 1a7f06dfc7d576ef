"""Whatever a cluster loses, a node, its control plane or the database, no job is lost and every song is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.faults import ON_A_CLUSTER, Fault
from tests.chaos.ordeal import Outcome, suffer

if TYPE_CHECKING:
    from tests.chaos.servers import Cluster

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.name) for fault in ON_A_CLUSTER])
def test_every_job_ends_once_with_its_song(
    fault: Fault, cluster: Cluster, reference: dict[int, str], outcomes: list[Outcome]
) -> None:
    suffer(fault, cluster, reference, outcomes)
