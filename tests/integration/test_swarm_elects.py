"""Twelve real peers of different sizes elect a leader, plan two jobs, and go on when the leader is shot."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import ravnest_p2p as rn
from ravnest_p2p.core.types import JobPhase
from ravnest_p2p.testing.local_swarm import LocalSwarm, wait_until
from tests.integration.swarms import members, small_request, status, wait_lending

EPOCH_S = 60.0
GOES_ON_S = 1.5 * EPOCH_S
START_S, TRAIN_S = 240.0, 180.0
"""Thirteen daemons share what cores there are."""

SIZES = [f"{400 + 100 * n}MB" for n in range(12)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twelve_unequal_peers_lose_their_leader_and_go_on(tmp_path: Path, requester_home: Path) -> None:
    each = [["--memory", size] for size in SIZES]
    with (
        LocalSwarm(tmp_path, len(SIZES), more=["--epoch", str(EPOCH_S)], each=each) as swarm,
        rn.connect(swarm.bootstrap.address) as connection,
    ):
        wait_lending(connection, swarm.peers, START_S)
        wanted = [{"stages": 2, "clusters": 2}, {"stages": 3, "clusters": 1}]
        jobs = [
            connection.submit_request(
                small_request(**shape, passes=20_000, updates_per_round=20, name=f"job {n}")
            )
            for n, shape in enumerate(wanted)
        ]

        def running(n: int, after: int = 0) -> dict[str, Any] | None:
            found = status(connection, jobs[n].id)
            runs = found["phase"] == JobPhase.RUNNING.value and found["batches_done"] > after
            return found if runs else None

        before = [wait_until(lambda n=n: running(n), TRAIN_S, f"job {n} saves a round") for n in range(2)]
        taken = [peer.peer for found in before for peer in members(swarm, found)]
        assert len(taken) == len(set(taken)) == 7
        leader = swarm.of(before[-1]["leader"])
        fence = max((found["epoch"], found["term"]) for found in before)
        killed_s = time.monotonic()
        leader.kill()

        def goes_on() -> bool:
            now = [running(n, before[n]["batches_done"]) for n in range(2)]
            return all(
                found is not None
                and (found["epoch"], found["term"]) > fence
                and found["leader"] != before[-1]["leader"]
                for found in now
            )

        wait_until(goes_on, GOES_ON_S, "both jobs go on under another leader")
        assert time.monotonic() - killed_s <= GOES_ON_S
        for job in jobs:
            job.cancel()
