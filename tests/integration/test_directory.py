"""Directories of several peers, each on its own p2pd on loopback."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import P2P

from ravnest_p2p.core.types import BlobHash, Capability, Coordinate, Device, JobId, PeerId, Reachability
from ravnest_p2p.network import directory as directory_module
from ravnest_p2p.network.directory import Directory
from ravnest_p2p.network.identity import Identity
from ravnest_p2p.network.janitor import Janitor
from ravnest_p2p.network.p2pd import P2PDaemon
from ravnest_p2p.network.p2pd_config import P2PDConfig
from ravnest_p2p.network.records import CapabilityRecord, JobRecord, ProviderRecord, expected_subkey, seal
from ravnest_p2p.network.records_keys import blob_key, jobs_key, peers_key

SWARM = "test"
BLOB = BlobHash("ab" * 32)


@dataclass
class Peer:
    identity: Identity
    daemon: P2PDaemon
    janitor: Janitor
    directory: Directory

    def capability(self, **changes: Any) -> CapabilityRecord:
        return CapabilityRecord(replace(offer_of(self.identity.peer_id), **changes), epoch_s=30.0)


def offer_of(peer: PeerId) -> Capability:
    device = Device("cpu", 8 << 30, 1e11)
    place = Coordinate((0.0, 0.0), 0.001, 1.0)
    return Capability(peer, "0.1", (device,), 1e7, 1e8, place, Reachability.PUBLIC, 60.0, 0.9)


@asynccontextmanager
async def running(folder: Path, name: str, bootstrap: tuple[str, ...] = ()) -> AsyncIterator[Peer]:
    janitor = Janitor.start("/tmp")
    identity = Identity.load_or_create(folder / f"{name}.key")
    config = P2PDConfig(folder / f"{name}.key", janitor.runtime_dir, folder / f"{name}.log")
    daemon = P2PDaemon(config, janitor=janitor)
    try:
        p2p = await daemon.start()
        directory = await Directory.start(p2p, swarm=SWARM, identity=identity, initial_peers=bootstrap)
        yield Peer(identity, daemon, janitor, directory)
        await directory.stop()
    finally:
        await daemon.stop()
        janitor.close()
        identity.release()


async def until(check: Callable[[], Awaitable[bool]], timeout_s: float = 5.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not await check():
        assert time.monotonic() < deadline_s, "it did not come about in time"
        await asyncio.sleep(0.02)


async def seen(peer: Peer, wanted: int) -> bool:
    return len(await peer.directory.capabilities()) == wanted


async def met(peer: Peer) -> bool:
    return peer.directory.neighbours > 0


def test_three_peers_see_one_anothers_records(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, "a") as a:
            assert await a.directory.publish(a.capability(), 60)
            address = tuple(await a.daemon.addresses())
            async with running(tmp_path, "b", address) as b, running(tmp_path, "c", address) as c:
                peers = (a, b, c)
                await asyncio.gather(*(until(lambda peer=peer: met(peer)) for peer in (b, c)))
                assert await b.directory.publish(b.capability(), 60)
                assert await c.directory.publish(c.capability(), 60)
                for peer in peers:
                    await until(lambda peer=peer: seen(peer, 3))
                # a record that comes later is not hidden by what was read before
                assert await a.directory.publish(ProviderRecord(BLOB, 5), 60)
                assert len(await c.directory.fetch(blob_key(SWARM, BLOB))) == 1
                assert await b.directory.publish(ProviderRecord(BLOB, 5), 60)
                found = await c.directory.fetch(blob_key(SWARM, BLOB))
                assert {one.peer for one in found} == {a.identity.peer_id, b.identity.peer_id}
                # a newer one replaces the older, although it shall live shorter
                assert await b.directory.publish(b.capability(online=False), 5)
                offers = {one.peer: one.record for one in await a.directory.capabilities()}
                offline = offers[b.identity.peer_id]
                assert isinstance(offline, CapabilityRecord)
                assert not offline.capability.online
                assert await c.directory.connected_peers() >= 1
                assert all(peer.directory.clock_problem == "" for peer in peers)

    asyncio.run(scenario())


def test_bad_records_are_refused_and_counted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, "a") as victim:
            address = tuple(await victim.daemon.addresses())
            async with running(tmp_path, "b", address) as attacker:
                await until(lambda: met(attacker))
                await attack(victim, attacker)

    async def attack(victim: Peer, attacker: Peer) -> None:
        me, target = attacker.identity, victim.daemon.p2p.peer_id
        now_s = attacker.directory.now_s()
        protocol = attacker.directory._node.protocol

        async def store(key: str, subkey: str | None, data: bytes, expires_s: float = now_s + 30) -> bool:
            answer = await protocol.call_store(
                target, [DHTID.generate(source=key)], [msgpack.packb(data)], [expires_s], [subkey]
            )
            return bool(answer and answer[0])

        def sealed(record: Any, ttl_s: float = 30, at_s: float = now_s, who: Identity = me) -> bytes:
            return seal(who, record, swarm=SWARM, ttl_s=ttl_s, now_s=at_s)

        key, mine = peers_key(SWARM, 0), me.peer_id
        good = sealed(attacker.capability())
        forged = bytearray(good)
        forged[-1] ^= 1
        foreign = seal(me, attacker.capability(), swarm="other", ttl_s=30, now_s=now_s)
        provider = sealed(ProviderRecord(BLOB, 5))
        refusals = victim.directory.refusals
        attempts: list[tuple[str, str, str | None, bytes, float]] = [
            ("RecordSignatureError", key, mine, bytes(forged), now_s + 30),
            ("RecordExpiredError", key, mine, sealed(attacker.capability(), 10, now_s - 60), now_s + 30),
            ("RecordExpiredError", key, mine, sealed(attacker.capability(), 10, now_s + 60), now_s + 30),
            ("RecordExpiredError", key, mine, good, now_s + 300),
            ("RecordFormatError", blob_key(SWARM, BLOB), mine, good, now_s + 30),
            ("RecordFormatError", key, mine, provider, now_s + 30),
            ("RecordFormatError", blob_key(SWARM, BlobHash("cd" * 32)), mine, provider, now_s + 30),
            ("RecordFormatError", key, victim.identity.peer_id, good, now_s + 30),
            ("RecordFormatError", key, None, good, now_s + 30),
            ("RecordFormatError", key, mine, b"junk", now_s + 30),
            ("RecordFormatError", "another/key", mine, b"x" * 300_000, now_s + 30),
            ("RecordFormatError", key, mine, foreign, now_s + 30),
        ]
        for error, *attempt in attempts:
            before = refusals[error]
            assert not await store(*attempt), attempt
            assert refusals[error] == before + 1, attempt
        # a dictionary keeps its good entries and loses the bad ones
        dictionary = DictionaryDHTValue()
        other = Identity.generate()
        dictionary.store(mine, msgpack.packb(good), now_s + 30)
        dictionary.store(other.peer_id, msgpack.packb(bytes(forged)), now_s + 30)
        before = refusals.total()
        await protocol.call_store(target, [DHTID.generate(source=key)], [dictionary], [now_s + 30])
        assert refusals.total() == before + 1
        assert [one.peer for one in await victim.directory.capabilities()] == [mine]
        # a reader is not misled by a peer that keeps and serves anything
        poisoned = attacker.directory._storage
        poisoned.store_subkey(DHTID.generate(source=key), other.peer_id, msgpack.packb(b"junk"), now_s + 99)
        assert [one.peer for one in await victim.directory.capabilities()] == [mine]
        assert await victim.directory.publish(victim.capability(), 60)
        assert len(await attacker.directory.capabilities()) == 2

    asyncio.run(scenario())


def test_others_keep_a_job_record_alive(tmp_path: Path) -> None:
    async def scenario() -> None:
        requester = Identity.generate()
        job = JobRecord(JobId("12" * 32), BLOB, 100, "job", requester.peer_id, time.time())
        async with running(tmp_path, "a") as a, running(tmp_path, "b") as b:
            data = seal(requester, job, swarm=SWARM, ttl_s=86400, now_s=a.directory.now_s())
            assert await b.directory.join(await a.daemon.addresses()) == 1
            assert await a.directory.republish(data)
            (found,) = await b.directory.fetch(jobs_key(SWARM))
            assert found.record == job
            assert found.peer == requester.peer_id
            assert expected_subkey(found) == f"{job.job}/{requester.peer_id}"
            assert found.data == data

    asyncio.run(scenario())


def test_a_peer_starts_alone_and_keeps_trying(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, "a") as first:
            (address,) = await first.daemon.addresses()
            await first.directory.stop()  # p2pd answers, the directory does not
            nobody = f"/ip4/127.0.0.1/tcp/9/p2p/{Identity.generate().peer_id}"
            async with running(tmp_path, "b", (nobody, address)) as second:
                assert await second.directory.publish(second.capability(), 60)
                assert len(await second.directory.capabilities()) == 1
                first.directory = await Directory.start(
                    first.daemon.p2p, swarm=SWARM, identity=first.identity
                )
                await until(lambda: met(second))
                await until(lambda: seen(first, 1))

    asyncio.run(scenario())


def test_records_outlive_a_killed_p2pd(tmp_path: Path) -> None:
    async def scenario() -> None:
        janitor = Janitor.start("/tmp")
        key = tmp_path / "key"
        identity = Identity.load_or_create(key)
        daemon = P2PDaemon(P2PDConfig(key, janitor.runtime_dir, tmp_path / "log"), janitor=janitor)
        ups: asyncio.Queue[Directory] = asyncio.Queue()
        downs: list[str] = []
        current: list[Directory] = []

        async def on_up(p2p: P2P) -> None:
            previous = current[-1] if current else None
            current.append(await Directory.start(p2p, swarm=SWARM, identity=identity, previous=previous))
            ups.put_nowait(current[-1])

        async def on_down(reason: str) -> None:
            downs.append(reason)
            await current[-1].stop()

        running_daemon = asyncio.create_task(daemon.run(on_up, on_down))
        try:
            before = await asyncio.wait_for(ups.get(), 10)
            addresses, pid = await daemon.addresses(), daemon.pid
            assert await before.publish(CapabilityRecord(offer_of(identity.peer_id), 30.0), 60)
            async with running(tmp_path, "b", tuple(addresses)) as other:
                await until(lambda: met(other))
                assert await other.directory.publish(other.capability(), 60)
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                after = await asyncio.wait_for(ups.get(), 5)
                assert downs == [downs[0]]
                assert "killed by signal 9" in downs[0]
                assert daemon.pid != pid
                assert await daemon.addresses() == addresses
                assert {one.peer for one in await after.capabilities()} >= {identity.peer_id}
                await other.directory.join(addresses)
                await until(lambda: seen(other, 2))
            await after.stop()
        finally:
            running_daemon.cancel()
            await asyncio.wait((running_daemon,), timeout=10)
            janitor.close()
            identity.release()
        assert daemon.pid is None

    asyncio.run(scenario())


def test_a_wrong_clock_is_named_in_words(tmp_path: Path, monkeypatch: Any) -> None:
    async def scenario() -> None:
        async with running(tmp_path, "a") as a, running(tmp_path, "b") as b:
            monkeypatch.setattr(directory_module, "get_dht_time", lambda: time.time() + 60)
            await b.directory.join(await a.daemon.addresses())
            assert "60.0 s ahead of" in b.directory.clock_problem
            assert a.identity.peer_id in b.directory.clock_problem

    asyncio.run(scenario())
