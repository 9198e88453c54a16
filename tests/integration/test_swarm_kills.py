"""Swarms that are shot at: whatever dies, training goes on within 30 s, and every batch counts once."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ravnest_p2p as rn
from ravnest_p2p.client.swarm import Job, Swarm
from ravnest_p2p.core.ledger import Ledger, Shares
from ravnest_p2p.core.types import Generation, JobPhase
from ravnest_p2p.testing.local_swarm import LocalSwarm, PeerProcess, wait_until
from tests.integration.swarms import (
    START_S,
    TRAIN_S,
    members,
    small_request,
    status,
    wait_done,
    wait_lending,
)

pytestmark = pytest.mark.timeout(300)

LENDING = 5
RECOVERY_S = 30.0
"""From a death until more is trained and saved than before."""
OBEYS_S = 25.0
"""From a peer's return until it obeys the swarm's plan; less than an epoch, whose turn mends all."""


class Watched:
    """A running job, and every generation of it that was seen."""

    def __init__(self, connection: Swarm, job: Job) -> None:
        self.connection = connection
        self.job = job
        self._shares: dict[str, tuple[int, ...]] = {}

    def look(self) -> dict[str, Any]:
        found = status(self.connection, self.job.id)
        if found["generation"]:
            kappas = tuple(cluster["updates_per_round"] for cluster in found["clusters"])
            self._shares[found["generation"]] = kappas
        if found["loss"] is not None:
            assert math.isfinite(found["loss"])
        return found

    def wait_training(self) -> dict[str, Any]:
        """Until the present generation has saved a round; its status."""

        def trained() -> dict[str, Any] | None:
            found = self.look()
            running = found["phase"] == JobPhase.RUNNING.value
            return found if running and found["batches_done"] > found["lineage"][-1][1] else None

        found: dict[str, Any] = wait_until(trained, TRAIN_S, "a round is saved")
        return found

    def wait_recovered(self, before: dict[str, Any], killed_s: float) -> dict[str, Any]:
        """Until another generation has saved more than `before`; fails 30 s after the kill."""
        seen: dict[str, Any] = {}

        def recovered() -> bool:
            seen.update(self.look())
            assert seen["phase"] not in (JobPhase.FAILED.value, JobPhase.DONE.value), seen["reason"]
            return (
                seen["phase"] == JobPhase.RUNNING.value
                and seen["generation"] != before["generation"]
                and seen["batches_done"] > before["batches_done"]
            )

        wait_until(recovered, killed_s + RECOVERY_S - time.monotonic(), "training goes on")
        return seen

    def check_ledger(self) -> None:
        """Each generation starts where a round was saved, and none goes back behind one before it."""
        last = self.look()
        starts = [first for _, first in last["lineage"]]
        assert starts == sorted(starts)
        ledger = Ledger()
        ends = [*starts[1:], last["batches_done"]]
        for (name, first), end in zip(last["lineage"], ends, strict=True):
            # A generation that was never seen ended before it had saved anything.
            shares = Shares(first, last["total_batches"], self._shares.get(name, (1,)))
            generation = _generation(name)
            ledger.open(generation, shares)
            for r in range(shares.rounds):
                if shares.batches_after(r) > end:
                    break
                for cluster, updates in enumerate(shares.weights(r)):
                    for j in range(updates):
                        update = r * shares.updates_per_round[cluster] + j
                        ledger.claim(generation, cluster, update, shares.batch(cluster, update))
                ledger.commit(generation, r)
        assert ledger.violations() == []
        assert ledger.batches_done == last["batches_done"]


def _generation(name: str) -> Generation:
    epoch, term, tag = name.split(".", 2)
    return Generation(int(epoch), int(term), tag)


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory, requester_home: Path) -> Iterator[LocalSwarm]:
    with LocalSwarm(tmp_path_factory.mktemp("kills"), LENDING) as swarm:
        yield swarm


@pytest.fixture(scope="module")
def connection(swarm: LocalSwarm) -> Iterator[Swarm]:
    with rn.connect(swarm.bootstrap.address) as connection:
        wait_lending(connection, swarm.peers)
        yield connection


@pytest.fixture(scope="module")
def watched(connection: Swarm) -> Iterator[Watched]:
    """A job of two clusters of two stages that outlasts the tests."""
    job = connection.submit_request(
        small_request(stages=2, clusters=2, passes=20_000, updates_per_round=20, name="endless")
    )
    yield Watched(connection, job)
    job.cancel()


def kill_worker(peer: PeerProcess) -> None:
    (worker,) = peer.children("daemon.worker")
    worker.kill()


def kill_p2pd(peer: PeerProcess) -> None:
    (p2pd,) = peer.children("p2pd -")
    p2pd.kill()


@pytest.mark.parametrize("kill", [kill_worker, kill_p2pd, PeerProcess.kill])
def test_training_survives_the_death_of(kill: Any, swarm: LocalSwarm, watched: Watched) -> None:
    before = watched.wait_training()
    victim = members(swarm, before)[1]
    killed_s = time.monotonic()
    kill(victim)
    watched.wait_recovered(before, killed_s)
    watched.check_ledger()
    revive(swarm, watched)


def test_training_survives_the_death_of_the_leader(swarm: LocalSwarm, watched: Watched) -> None:
    before = watched.wait_training()
    leader = swarm.of(before["leader"])
    training = members(swarm, before)
    killed_s = time.monotonic()
    leader.kill()
    if leader not in training:
        kill_worker(training[0])
    after = watched.wait_recovered(before, killed_s)
    assert after["leader"] != before["leader"]
    watched.check_ledger()
    revive(swarm, watched)


def revive(swarm: LocalSwarm, watched: Watched) -> None:
    """Start what is dead again, at the same home, and wait until everybody lends and obeys the same plan."""
    dead = [peer for peer in swarm.peers if peer.ended]
    for peer in dead:
        peer.start()
    for peer in dead:
        peer.wait_ready()
        with rn.connect(peer.address) as own:
            wait_until(
                lambda own=own: own.jobs() and status(own, watched.job.id)["term"] == watched.look()["term"],
                OBEYS_S,
                f"{peer.name} obeys the plan that the others obey",
            )
    wait_lending(watched.connection, swarm.peers)


def test_a_job_that_was_hit_ends_exactly_and_has_a_result(
    swarm: LocalSwarm, connection: Swarm, watched: Watched
) -> None:
    watched.job.cancel()
    job = connection.submit_request(small_request(stages=2, clusters=2, passes=40, updates_per_round=10))
    short = Watched(connection, job)
    before = short.wait_training()
    kill_worker(members(swarm, before)[-1])
    over = (JobPhase.DONE.value, JobPhase.FAILED.value)
    wait_until(lambda: short.look()["phase"] in over, TRAIN_S, "the job is over")
    done = wait_done(job)
    assert done["batches_done"] == done["total_batches"] == 40 * 256 // 16
    assert len(done["lineage"]) >= 2
    short.check_ledger()
    assert all(torch.isfinite(tensor).all() for tensor in job.result(timeout_s=30).values())


def test_without_a_spare_the_job_waits_and_says_for_whom_until_the_peer_is_back(
    tmp_path: Path, requester_home: Path
) -> None:
    # With a long epoch, since the next one would plan anew whether or not the peer's return was noticed.
    with (
        LocalSwarm(tmp_path, 2, more=["--epoch", "900"]) as swarm,
        rn.connect(swarm.bootstrap.address) as connection,
    ):
        wait_lending(connection, swarm.peers)
        job = connection.submit_request(small_request(stages=2, passes=40, updates_per_round=10))
        watched = Watched(connection, job)
        before = watched.wait_training()
        victim = members(swarm, before)[1]
        wait_until(lambda: watched.look()["losses"], START_S, "its last stage has told losses")
        victim.kill()

        def waits() -> dict[str, Any] | None:
            found = watched.look()
            return found if found["phase"] == JobPhase.WAITING.value and "needs" in found["reason"] else None

        waiting = wait_until(waits, RECOVERY_S, "the job waits with a reason")
        assert "needs 1 cluster × 2 stages = 2 peers" in waiting["reason"]
        assert "1 is online" in waiting["reason"]
        assert "start 1 more ravnestd" in waiting["reason"]
        assert waiting["batches_done"] >= before["batches_done"]
        victim.start()
        victim.wait_ready()
        wait_until(lambda: watched.look()["phase"] == JobPhase.RUNNING.value, START_S, "it goes on")
        done = wait_done(job)
        assert done["batches_done"] == done["total_batches"]
        assert done["lineage"][-1][1] >= before["batches_done"]
        assert done["losses"][0][0] == 0, "the peer that was killed has kept them"
        watched.check_ledger()
