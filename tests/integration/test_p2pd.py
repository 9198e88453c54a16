"""The p2pd process: flags, ports, sockets, and that nothing of it stays behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError

from ravnest_p2p.core.errors import ConfigError, LocalDaemonError, PeerUnreachableError
from ravnest_p2p.network.identity import Identity
from ravnest_p2p.network.janitor import Janitor, sweep
from ravnest_p2p.network.p2pd import P2PDaemon, attach, connect
from ravnest_p2p.network.p2pd_config import P2PDConfig, PortKeeper, arguments


@pytest.fixture
def janitor() -> Iterator[Janitor]:
    janitor = Janitor.start("/tmp")
    yield janitor
    janitor.close()


@pytest.fixture
def config(tmp_path: Path, janitor: Janitor) -> P2PDConfig:
    Identity.load_or_create(tmp_path / "key").release()
    return P2PDConfig(tmp_path / "key", janitor.runtime_dir, tmp_path / "p2pd.log")


def wait_until(check: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline_s, "it did not come about in time"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_start_attach_stop(config: P2PDConfig, janitor: Janitor) -> None:
    async def scenario() -> None:
        daemon = P2PDaemon(
            replace(config, listen=("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1")), janitor=janitor
        )
        await daemon.start()
        identity = Identity.load_or_create(config.identity_path)
        assert daemon.peer_id == identity.peer_id
        identity.release()
        addresses = await daemon.addresses()
        assert len(addresses) == 2
        assert all(address.endswith(f"/p2p/{daemon.peer_id}") for address in addresses)
        worker = await attach(daemon.control_socket, config.runtime_dir)
        assert worker.peer_id == daemon.p2p.peer_id

        async def handler(stream: object, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        await worker.add_binary_stream_handler("test", handler)
        names = {path.name.split("-")[0] for path in config.runtime_dir.iterdir()}
        assert names == {"lock", "p2pd", "p2pclient"}
        await worker.shutdown()
        pid = daemon.pid
        await daemon.stop()
        assert pid is not None
        assert not psutil.pid_exists(pid)
        assert [path.name for path in config.runtime_dir.iterdir()] == ["lock"]
        with pytest.raises(LocalDaemonError):
            _ = daemon.p2p
        with pytest.raises(LocalDaemonError):
            await attach(daemon.control_socket, config.runtime_dir, timeout_s=1)

    asyncio.run(scenario())
    janitor.close()
    assert not config.runtime_dir.exists()


def test_the_port_stays_over_restarts_of_the_peer(config: P2PDConfig, tmp_path: Path) -> None:
    async def ports(times: int) -> list[list[str]]:
        found = []
        for _ in range(times):
            daemon = P2PDaemon(replace(config, ports_path=tmp_path / "ports.json"))
            await daemon.start()
            found.append(await daemon.addresses())
            await daemon.stop()
        return found

    first, second = asyncio.run(ports(2))
    assert first == second
    (port,) = json.loads((tmp_path / "ports.json").read_text()).values()
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        (third,) = asyncio.run(ports(1))
    assert third != first


def test_no_other_peer_chooses_the_port_before_p2pd_listens_on_it(config: P2PDConfig) -> None:
    async def scenario(port: int) -> None:
        daemon = P2PDaemon(replace(config, listen=(f"/ip4/127.0.0.1/tcp/{port}",)))
        await daemon.start()
        await daemon.stop()

    keeper = PortKeeper(config)
    with keeper.claim() as (listen,):
        port = int(listen.rpartition("/")[2])
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        asyncio.run(scenario(port))
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))


def test_a_taken_port_is_said_in_words(config: P2PDConfig) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        listen = f"/ip4/127.0.0.1/tcp/{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match="taken"):
            asyncio.run(P2PDaemon(replace(config, listen=(listen,))).start())


def test_a_p2pd_that_does_not_start_gives_its_last_words(config: P2PDConfig) -> None:
    config.identity_path.chmod(0o600)
    config.identity_path.write_bytes(b"rubbish")
    with pytest.raises(LocalDaemonError, match="stopped while starting"):
        asyncio.run(P2PDaemon(config).start())


def test_calls_that_wait_fail_when_p2pd_dies(config: P2PDConfig) -> None:
    async def scenario() -> None:
        daemon = P2PDaemon(config)
        up = asyncio.Event()

        async def on_up(p2p: object) -> None:
            up.set()

        downs: asyncio.Queue[str] = asyncio.Queue()
        supervisor = asyncio.create_task(daemon.run(on_up, downs.put))
        await asyncio.wait_for(up.wait(), 10)
        p2p = daemon.p2p
        never: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        p2p._client.control._pending_calls["test"] = never
        assert daemon.pid is not None
        os.kill(daemon.pid, signal.SIGKILL)
        assert "signal 9" in await asyncio.wait_for(downs.get(), 5)
        assert isinstance(never.exception(), P2PDaemonError)
        with pytest.raises(P2PDaemonError, match="gone"):
            await asyncio.wait_for(p2p._client.call_unary_handler(p2p.peer_id, "late", b""), 5)
        supervisor.cancel()
        await asyncio.wait((supervisor,), timeout=10)
        assert daemon.pid is None

    asyncio.run(scenario())


def test_unreachable_peers_are_named_within_the_deadline(config: P2PDConfig) -> None:
    async def scenario() -> None:
        daemon = P2PDaemon(config)
        p2p = await daemon.start()
        nobody = f"/ip4/127.0.0.1/tcp/9/p2p/{Identity.generate().peer_id}"
        try:
            with pytest.raises(PeerUnreachableError, match="tcp/9"):
                await connect(p2p, nobody, 5)
            with pytest.raises(PeerUnreachableError, match="name a peer"):
                await connect(p2p, "/ip4/127.0.0.1/tcp/9", 5)
        finally:
            await daemon.stop()

    asyncio.run(scenario())


def test_flags(config: P2PDConfig) -> None:
    relay, other = Identity.generate().peer_id, Identity.generate().peer_id
    relays = (
        f"/ip4/11.0.0.1/tcp/1/p2p/{relay}",
        f"/ip4/11.0.0.1/udp/1/quic-v1/p2p/{relay}",
        f"/ip4/11.0.0.2/tcp/1/p2p/{other}",
    )
    behind_a_router = replace(config, relays=relays, reachability="private")
    flags = arguments(behind_a_router, Path("/tmp/s"), ("/ip4/1.2.3.4/tcp/5",))
    assert f"-trustedRelays={relays[0]},{relays[2]}" in flags
    assert {"-autoRelay=1", "-relayDiscovery=0", "-autonat=1", "-idleTimeout=0s"} < set(flags)
    assert {"-forceReachabilityPrivate=1", "-dhtClient=1", "-hostAddrs=/ip4/1.2.3.4/tcp/5"} < set(flags)
    assert "-dhtServer=1" in arguments(config, Path("/tmp/s"), ())
    with pytest.raises(ConfigError):
        arguments(replace(config, reachability="sometimes"), Path("/tmp/s"), ())


DRIVER = """
import asyncio, sys, subprocess
from pathlib import Path
from ravnest_p2p.network.identity import Identity
from ravnest_p2p.network.janitor import Janitor
from ravnest_p2p.network.p2pd import P2PDaemon
from ravnest_p2p.network.p2pd_config import P2PDConfig

async def main(folder):
    janitor = Janitor.start("/tmp")
    Identity.load_or_create(folder / "key").release()
    daemon = P2PDaemon(P2PDConfig(folder / "key", janitor.runtime_dir, folder / "log"), janitor=janitor)
    await daemon.start()
    async def handler(*_): pass
    await daemon.p2p.add_binary_stream_handler("test", handler)
    worker = subprocess.Popen(["sleep", "600"], start_new_session=True)
    spared = subprocess.Popen(["sleep", "600"], start_new_session=True)
    janitor.watch(worker.pid)
    janitor.watch(spared.pid)
    janitor.forget(spared.pid)
    print(janitor.runtime_dir, daemon.pid, janitor.watcher_pid, worker.pid, spared.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("without_death_signal", [False, True])
def test_sigkill_of_the_owner_leaves_nothing(tmp_path: Path, without_death_signal: bool) -> None:
    patch = "import ravnest_p2p.network.p2pd as p; p._libc = None\n" if without_death_signal else ""
    driver = subprocess.Popen(
        [sys.executable, "-c", patch + textwrap.dedent(DRIVER), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert driver.stdout is not None
        line = driver.stdout.readline().split()
        folder, (p2pd, watcher, worker, spared) = Path(line[0]), map(int, line[1:])
        assert len(list(folder.glob("p2p*.sock"))) == 2
        assert not any(gone(pid) for pid in (p2pd, watcher, worker, spared))
    finally:
        driver.kill()
        driver.wait()
    try:
        for pid in (p2pd, worker, watcher):
            wait_until(lambda pid=pid: gone(pid))
        wait_until(lambda: not folder.exists())
        assert not gone(spared)
    finally:
        os.kill(spared, signal.SIGKILL)


def test_the_janitor_ignores_ctrl_c_and_is_replaced_when_killed(janitor: Janitor) -> None:
    first = janitor.watcher_pid
    assert first is not None
    assert os.getsid(first) == first
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        janitor.watch(child.pid)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(first, signum)
        assert not gone(first)
        # As a child of the watcher's may do for a moment; without it a write fails, which is noticed anyway.
        pipe = os.open(f"/proc/{first}/fd/0", os.O_RDONLY)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: gone(first))
        janitor.forget(0)  # the first message after its death starts a new one
        os.close(pipe)
        assert janitor.watcher_pid != first
        janitor.close()
        assert child.wait(5) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()
    assert not janitor.runtime_dir.exists()


def test_folders_of_dead_peers_are_swept(janitor: Janitor) -> None:
    abandoned = janitor.runtime_dir.parent / f"{janitor.runtime_dir.name}-abandoned"
    abandoned.mkdir()
    (abandoned / "lock").touch()
    removed = sweep(abandoned.parent)
    assert abandoned in removed
    assert not abandoned.exists()
    assert janitor.runtime_dir not in removed
    assert janitor.runtime_dir.exists()
