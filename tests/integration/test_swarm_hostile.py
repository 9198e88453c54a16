"""A hostile peer in a swarm that trains: every attack is refused by name, and training is not even disturbed.

What a stream or call does with malformed bytes is tested for each protocol on its own; here, a whole swarm
is attacked where it would hurt: its plans, its jobs, its saved state, its workers' links, its packages.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

import ravnest_p2p as rn
from ravnest_p2p.client.blobs import sha256_of
from ravnest_p2p.client.prepare import Prepared
from ravnest_p2p.client.steps import ready
from ravnest_p2p.client.swarm import Job, Swarm
from ravnest_p2p.core.errors import (
    BlobError,
    FrameFormatError,
    FrameTooLargeError,
    JobError,
    RavnestError,
    RecordError,
    RecordExpiredError,
    RecordFormatError,
    RecordSignatureError,
    RemoteFault,
    StaleGenerationError,
)
from ravnest_p2p.core.planning.identity import tagged
from ravnest_p2p.core.types import BlobHash, Fence, Generation, JobId, JobPhase, PeerId, Plan
from ravnest_p2p.network import gateway
from ravnest_p2p.network.blob_exchange import PROTOCOL as BLOB_PROTOCOL
from ravnest_p2p.network.links_hello import Hello, protocol_of, say_hello
from ravnest_p2p.network.records import CancelRecord, JobRecord, PlanRecord, Record, Sealed, seal
from ravnest_p2p.network.records_manifest import job_id, manifest_bytes
from ravnest_p2p.network.streams import open_stream
from ravnest_p2p.testing.local_swarm import LocalSwarm, PeerProcess, wait_until
from tests.integration.attacker import CALL_S, EPOCH_S, SWARM, Attacker
from tests.integration.swarms import TRAIN_S, members, small_request, status, wait_done, wait_lending

pytestmark = pytest.mark.timeout(240)

ATTACK_S = 60.0
"""For one attack and the answer to it."""

CALLS = ("overview", "plan", "replan", "keep", "logs", "trace")


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory, requester_home: Path) -> Iterator[LocalSwarm]:
    folder = tmp_path_factory.mktemp("hostile")
    with LocalSwarm(folder, 3, swarm=SWARM, more=["--epoch", str(EPOCH_S)]) as swarm:
        yield swarm


@pytest.fixture(scope="module")
def connection(swarm: LocalSwarm) -> Iterator[Swarm]:
    with rn.connect(swarm.bootstrap.address) as connection:
        wait_lending(connection, swarm.peers)
        yield connection


@pytest.fixture(scope="module")
def job(connection: Swarm) -> Iterator[Job]:
    """Two stages that train as long as the attacks last; one peer is spare."""
    job = connection.submit_request(small_request(stages=2, passes=20_000, updates_per_round=20))

    def trains() -> bool:
        found = status(connection, job.id)
        return found["phase"] == JobPhase.RUNNING.value and found["batches_done"] > 0

    wait_until(trains, TRAIN_S, "the job trains")
    yield job
    job.cancel()


@pytest.fixture(scope="module")
def attacker(swarm: LocalSwarm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacker]:
    with Attacker(tmp_path_factory.mktemp("x"), swarm.bootstrap.address) as attacker:
        for peer in swarm.all:
            attacker.meet(peer)
        yield attacker


@pytest.fixture
def undisturbed(swarm: LocalSwarm, connection: Swarm, job: Job) -> Iterator[dict[str, Any]]:
    """The job's status; after the test, the same generation must train on, and no handler have failed."""
    before = status(connection, job.id)
    assert before["phase"] == JobPhase.RUNNING.value
    yield before
    so_far = status(connection, job.id)["batches_done"]
    wait_until(lambda: status(connection, job.id)["batches_done"] > so_far, 30.0, "it trains on")
    after = status(connection, job.id)
    assert (after["generation"], after["phase"]) == (before["generation"], "running")
    for peer in swarm.all:
        assert not peer.ended
        assert "Traceback" not in log(peer), peer.name


def test_malformed_calls_are_answered_by_name(
    swarm: LocalSwarm, attacker: Attacker, undisturbed: dict[str, Any]
) -> None:
    whole = msgpack.packb({"job": "a" * 64, "reason": "b" * 200, "sealed": b"c" * 200})
    for name in CALLS:
        for data in (b"", b"\xc1" * 40, whole[:-7], msgpack.packb([1]), msgpack.packb({"unheard": "of"})):
            assert attacker.call_raw(swarm.peers[0], name, data) == FrameFormatError.__name__
        assert attacker.call_raw(swarm.peers[0], name, bytes(1_200_000)) == FrameTooLargeError.__name__
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("overview", {"job": 7}),
        ("overview", {"losses": "perhaps"}),
        ("plan", {"sealed": 5}),
        ("plan", {"sealed": bytes(300_001)}),
        ("replan", {"reason": "x" * 2001}),
        ("keep", {"job": "a", "piece": {"lo": 0}}),
        ("keep", {"job": "a", "blobs": ["b"] * 4097}),
        ("logs", {"limit": 0}),
        ("logs", {"after": 0.5}),
        ("trace", {"job": "../" * 20, "last_s": 1.0}),
        ("trace", {"job": "f" * 64, "last_s": float("nan")}),
        ("trace", {"job": "f" * 64, "last_s": 1.0, "limit": 1 << 30}),
    ]
    for name, body in wrong:
        with pytest.raises(RavnestError) as raised:
            attacker.call(swarm.peers[0], name, body)
        assert isinstance(raised.value, FrameFormatError), (name, body, raised.value)


def forged(genuine: Plan, job: Job, leader: PeerId, *, terms: int = 1) -> Plan:
    """The genuine plan with a higher fence, in which the attacker does all the work."""
    fence = Fence(genuine.fence.epoch, genuine.fence.term + terms)
    (planned,) = [part for part in genuine.jobs if part.job == job.id]
    (cluster,) = planned.clusters
    stages = (dataclasses.replace(cluster.stages[0], peer=leader), *cluster.stages[1:])
    moved = dataclasses.replace(planned, clusters=(dataclasses.replace(cluster, stages=stages),))
    return dataclasses.replace(genuine, fence=fence, leader=leader, jobs=(tagged(moved, fence),))


def test_forged_and_replayed_plans_are_refused(
    swarm: LocalSwarm, attacker: Attacker, connection: Swarm, job: Job, undisturbed: dict[str, Any]
) -> None:
    victim = members(swarm, undisturbed)[0]
    attacker.let_epoch_last(ATTACK_S)
    wait_done(connection.submit_request(small_request(name="makes for more than one plan")))
    wait_until(lambda: planned_alone(attacker.plans()[-1], job), 20.0, "it is planned no more")
    oldest, newest = attacker.plans()[0], attacker.plans()[-1]
    assert oldest.record.plan.fence < newest.record.plan.fence  # type: ignore[union-attr]
    genuine: Plan = newest.record.plan  # type: ignore[union-attr]
    envelope = msgpack.unpackb(newest.data)
    stolen = forged(genuine, job, genuine.leader)
    body = msgpack.unpackb(attacker.sealed(PlanRecord(dataclasses.replace(stolen, leader=me(attacker)))))
    refused: list[tuple[bytes, type[RecordError]]] = [
        (b"", RecordFormatError),
        (newest.data[:-1], RecordFormatError),
        (msgpack.packb(envelope[:-1]), RecordSignatureError),
        (msgpack.packb([*envelope[:-1], bytes(64)]), RecordSignatureError),
        (msgpack.packb([*envelope[:6], body[6], envelope[7]]), RecordSignatureError),
        (msgpack.packb([envelope[0], "elsewhere", *envelope[2:]]), RecordFormatError),
        (seal_late(attacker, genuine, job), RecordExpiredError),
    ]
    for data, error in refused:
        with pytest.raises(RavnestError) as raised:
            attacker.call(victim, "plan", {"sealed": data})
        assert type(raised.value) is error, raised.value
    for peer in swarm.all:
        attacker.call(peer, "plan", {"sealed": oldest.data})
    mine = forged(genuine, job, me(attacker), terms=2)
    for peer in swarm.all:
        attacker.call(peer, "plan", {"sealed": attacker.sealed(PlanRecord(mine))})
        attacker.call(peer, "replan", {"reason": "the attacker wishes so"})
    assert attacker.run(attacker.directory.publish(PlanRecord(mine), 600.0)) is not False
    refusal = re.compile(rf"refusing {mine.fence.epoch}\.{mine.fence.term} by .*{mine.leader[-8:]}: .*ticket")
    for peer in swarm.all:
        wait_until(lambda p=peer: refusal.search(log(p)), 20.0, f"{peer.name} refuses")
    after = status(connection, job.id)
    assert (after["epoch"], after["term"], after["leader"]) == (*genuine.fence, genuine.leader)


def planned_alone(sealed: Sealed, job: Job) -> bool:
    return [part.job for part in sealed.record.plan.jobs] == [job.id]  # type: ignore[union-attr]


@pytest.mark.parametrize("theft", ["one stage", "no jobs"])
def test_a_ticket_is_no_licence_to_take_a_running_job(
    swarm: LocalSwarm, attacker: Attacker, job: Job, undisturbed: dict[str, Any], theft: str
) -> None:
    """Anybody may draw a ticket and publish a plan: nobody obeys one that ends what runs well."""
    for _ in range(3):
        attacker.let_epoch_last(ATTACK_S)
        attacker.show_ticket()
        published = wait_until(attacker.plans, 20.0, "a plan of this epoch")
        genuine: Plan = published[-1].record.plan
        mine = forged(genuine, job, me(attacker))
        if theft == "no jobs":
            mine = dataclasses.replace(mine, jobs=())
        attacker.run(attacker.directory.publish(PlanRecord(mine), 600.0))
        for peer in swarm.all:
            attacker.call(peer, "plan", {"sealed": attacker.sealed(PlanRecord(mine))})
            attacker.call(peer, "replan", {"reason": "the attacker wishes so"})
        fence = f"{mine.fence.epoch}.{mine.fence.term}"
        # Later ones of its epoch also because others have their turn.
        moves = f"job {job.id[:8]}: it moves generation"
        refusal = re.compile(rf"refusing {fence} by …{mine.leader[-8:]}: ({moves}|it has led)")
        wait_until(
            lambda said=refusal: all(said.search(log(p)) for p in swarm.all), 20.0, "everybody refuses"
        )
        # The swarm answers with a plan above the attacker's, so that whoever did obey it comes back.
        wait_until(lambda f=mine.fence: attacker.highest_of_others() > f, 20.0, "a plan above the attacker's")
    robbed = re.compile(rf"refusing .* by …{me(attacker)[-8:]}: {moves}")
    assert all(robbed.search(log(peer)) for peer in swarm.all)
    adopted = re.compile(rf"adopting .* by .*{me(attacker)[-8:]}")
    assert not [peer.name for peer in swarm.all if adopted.search(log(peer))]


def log(peer: PeerProcess) -> str:
    return peer.log_path.read_text()


def me(attacker: Attacker) -> PeerId:
    return attacker.identity.peer_id


def seal_late(attacker: Attacker, genuine: Plan, job: Job) -> bytes:
    """A plan of the attacker's that expired a minute ago."""
    record = PlanRecord(forged(genuine, job, me(attacker)))
    then_s = attacker.directory.now_s() - 120.0
    return seal(attacker.identity, record, swarm=SWARM, ttl_s=60.0, now_s=then_s)


def test_copies_are_neither_forced_upon_peers_nor_poisoned(
    swarm: LocalSwarm, attacker: Attacker, job: Job, undisturbed: dict[str, Any]
) -> None:
    victim = members(swarm, undisturbed)[0]
    piece = {"lo": 0, "hi": 6, "batches_done": 10**9, "version": 1, "blob": "d" * 64, "holders": []}
    with pytest.raises(RemoteFault, match="has no stage of job"):
        attacker.call(victim, "keep", {"job": job.id, "piece": piece})
    with pytest.raises(RemoteFault, match="is not in the directory"):
        attacker.call(victim, "keep", {"job": "e" * 64, "blobs": ["d" * 64]})


def test_a_stranger_cannot_reach_into_a_workers_links(
    swarm: LocalSwarm, attacker: Attacker, job: Job, undisturbed: dict[str, Any]
) -> None:
    after, before = members(swarm, undisturbed)[1], members(swarm, undisturbed)[0]
    (view,) = attacker.call(after, "overview", {"job": job.id})["stages"]
    protocol = protocol_of(view["nonce"])
    generation = Generation(*view["generation"])

    async def hello(given: Generation) -> None:
        stream = await open_stream(attacker.p2p, PeerId(after.peer), protocol, CALL_S)
        try:
            await say_hello([stream], Hello("pipe/0/0", given, bytes(16), True, 0), CALL_S)
        finally:
            stream.close()

    async def garbage(protocol: str, peer: PeerProcess) -> bool:
        stream = await open_stream(attacker.p2p, PeerId(peer.peer), protocol, CALL_S)
        try:
            await stream.wire.write([b"\xff" * 5000])
            return await stream.wire.ended()
        except (ConnectionError, FrameFormatError):  # the gateway answers in words of its own
            return True
        finally:
            stream.close()

    with pytest.raises(RemoteFault, match="is for another peer"):
        attacker.run(hello(generation))
    with pytest.raises(StaleGenerationError):
        attacker.run(hello(generation._replace(term=generation.term + 1)))
    assert attacker.run(garbage(protocol, after))
    for peer in (before, after):
        for name in (BLOB_PROTOCOL, gateway.PROTOCOL):
            assert attacker.run(garbage(name, peer))


def test_jobs_are_neither_submitted_nor_cancelled_by_forged_records(
    attacker: Attacker, connection: Swarm, job: Job, undisturbed: dict[str, Any]
) -> None:
    def ask(request: gateway.Request) -> None:
        connection._portal.call(connection._operations.ask, request)

    mine = CancelRecord(JobId(job.id), me(attacker))
    theirs = CancelRecord(JobId(job.id), connection.peer_id)
    with pytest.raises(JobError, match="requester"):
        ask(gateway.Cancel(record=attacker.sealed(mine)))
    envelope = msgpack.unpackb(attacker.sealed(mine))
    as_them = msgpack.unpackb(connection_seal(connection, theirs, attacker))
    with pytest.raises(RecordSignatureError):
        ask(gateway.Cancel(record=msgpack.packb([*as_them[:-1], envelope[-1]])))

    def record(**changed: Any) -> gateway.Submit:
        fields: dict[str, Any] = {
            "job": JobId("a" * 64),
            "manifest": BlobHash("a" * 64),
            "manifest_bytes": 10,
            "name": "forged",
            "requester": me(attacker),
            "created_at_s": attacker.directory.now_s(),
        }
        return gateway.Submit(record=attacker.sealed(JobRecord(**(fields | changed))))

    with pytest.raises(BlobError, match="was not uploaded here"):
        ask(record())
    with pytest.raises(RemoteFault, match="names another manifest"):
        ask(record(manifest=BlobHash(job.id)))
    with pytest.raises(RecordFormatError):
        ask(gateway.Submit(record=attacker.sealed(mine)))


def connection_seal(connection: Swarm, record: Record, attacker: Attacker) -> bytes:
    """As the requester itself would sign it."""
    identity = connection._operations._identity
    return seal(identity, record, swarm=SWARM, ttl_s=600.0, now_s=attacker.directory.now_s())


def corrupted(prepared: Prepared, folder: Path, spoil: Callable[[bytes], bytes]) -> Prepared:
    """The prepared job with another program, all hashes being right."""
    path = folder / "program"
    path.write_bytes(spoil(prepared.blobs[prepared.spec.program].read_bytes()))
    spec = dataclasses.replace(prepared.spec, program=sha256_of(path))
    manifest = folder / "manifest"
    manifest.write_bytes(manifest_bytes(spec))
    job = job_id(manifest.read_bytes())
    blobs = {
        name: file
        for name, file in prepared.blobs.items()
        if name not in (prepared.spec.program, prepared.job)
    }
    return Prepared(
        job, spec, manifest.stat().st_size, {**blobs, spec.program: path, BlobHash(job): manifest}
    )


def forbid(program: bytes) -> bytes:
    """An operation that no peer allows, in place of the first one."""
    whole = json.loads(program)
    whole["nodes"][0][0] = "aten.from_file.default"
    return json.dumps(whole).encode()


def test_a_forbidden_program_fails_its_job_alone(
    tmp_path: Path, connection: Swarm, undisturbed: dict[str, Any]
) -> None:
    with ready(small_request(name="malformed"), lambda _: None) as (prepared, _):
        bad = corrupted(prepared, tmp_path, forbid)
        connection._portal.call(connection._operations.submit, bad, lambda _: None)
    malformed = connection.job(bad.job)
    wait_until(lambda: malformed.status().over, TRAIN_S, "the malformed job is over")
    ended = malformed.status()
    assert ended.phase is JobPhase.FAILED
    assert "aten.from_file.default" in ended.reason


def test_the_attacked_swarm_takes_new_jobs(connection: Swarm, job: Job) -> None:
    assert wait_done(connection.submit_request(small_request(name="after the attacks")))["batches_done"] == 64
