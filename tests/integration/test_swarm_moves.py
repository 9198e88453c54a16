"""A job that runs on few peers takes in others that have become free, and loses next to nothing by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ravnest_p2p as rn
from ravnest_p2p.core.planning.promotion import LEAST_AGE_EPOCHS
from ravnest_p2p.core.types import JobPhase
from ravnest_p2p.testing.local_swarm import LocalSwarm, wait_until
from tests.integration.swarms import TRAIN_S, members, small_request, status, wait_lending

EPOCH_S = 12.0
PEERS, FIRST = 5, 2


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_job_moves_to_peers_that_another_leaves(tmp_path: Path, requester_home: Path) -> None:
    with (
        LocalSwarm(tmp_path, PEERS, more=["--epoch", str(EPOCH_S)]) as swarm,
        rn.connect(swarm.bootstrap.address) as connection,
    ):
        wait_lending(connection, swarm.peers)
        # Wide enough for a plan that knows only operations to think it takes hours.
        shape: dict[str, Any] = {"width": 512, "passes": 400_000, "updates_per_round": 500}
        other = connection.submit_request(
            small_request(**shape, name="other", clusters=PEERS - FIRST, stages=1)
        )

        def running(job: str) -> dict[str, Any] | None:
            found = status(connection, job)
            return found if found["phase"] == JobPhase.RUNNING.value and found["batches_done"] else None

        wait_until(lambda: running(other.id), TRAIN_S, "the other job saves a round")
        job = connection.submit_request(small_request(**shape, name="job", clusters=0, stages=1))
        before = wait_until(lambda: running(job.id), TRAIN_S, "the job saves a round")
        assert len(members(swarm, before)) <= FIRST
        other.cancel()

        def moved() -> dict[str, Any] | None:
            found = running(job.id)
            return found if found is not None and found["generation"] != before["generation"] else None

        after = wait_until(moved, (LEAST_AGE_EPOCHS + 2) * EPOCH_S + TRAIN_S, "the job moves")
        assert len(members(swarm, after)) > len(members(swarm, before))
        assert after["batches_done"] >= before["batches_done"]
        going_on = wait_until(
            lambda: (found := running(job.id)) and found["batches_done"] > after["batches_done"] and found,
            TRAIN_S,
            "it trains on",
        )
        assert going_on["generation"] == after["generation"]
        job.cancel()
