"""Calls between real p2pd: answers, named errors, bounds, deadlines."""

import asyncio
import time

import pytest

from ravnest_p2p.core.errors import (
    BusyError,
    FrameTooLargeError,
    LocalDaemonError,
    PeerUnreachableError,
    RemoteCallError,
    StaleGenerationError,
)
from ravnest_p2p.network.rpc import Rpc
from tests.integration.peers import id_of, peers, run


class ConfigError(Exception):
    """Named as an error of ours that is no fault of the remote."""


def test_answers_and_errors():
    async def test() -> None:
        async with peers(2) as (a, b):
            calling, serving = Rpc(a), Rpc(b)

            async def handler(peer: str, body: dict) -> dict:
                assert peer == id_of(a)
                if body.get("raise") == "stale":
                    raise StaleGenerationError("yours is old")
                if body.get("raise") == "config":
                    raise ConfigError("secret")
                if body.get("raise") == "bug":
                    raise KeyError("secret")
                return body

            await serving.serve("echo", handler)
            body = {"x": b"\x00\xff", "y": [1, {"z": None}]}
            assert await calling.call(id_of(b), "echo", body, 5) == body
            with pytest.raises(StaleGenerationError, match="yours is old"):
                await calling.call(id_of(b), "echo", {"raise": "stale"}, 5)
            for what in ("config", "bug"):
                with pytest.raises(RemoteCallError, match="handler failed") as caught:
                    await calling.call(id_of(b), "echo", {"raise": what}, 5)
                assert "secret" not in str(caught.value)
            assert caught.value.name == "KeyError"
            assert serving.refused == {"StaleGenerationError": 1, "ConfigError": 1, "KeyError": 1}
            with pytest.raises(LocalDaemonError):
                await serving.serve("echo", handler)
            await serving.close()
            with pytest.raises(PeerUnreachableError):
                await calling.call(id_of(b), "echo", {}, 5)

    run(test)


def test_sizes_are_bounded_on_both_sides():
    async def test() -> None:
        async with peers(2) as (a, b):
            calling, serving = Rpc(a), Rpc(b)

            async def large(peer: str, body: dict) -> dict:
                return {"x": bytes(body["n"])}

            await serving.serve("large", large, max_bytes=1000)
            with pytest.raises(FrameTooLargeError, match="reply"):
                await calling.call(id_of(b), "large", {"n": 3000}, 5, max_bytes=2000)
            with pytest.raises(FrameTooLargeError, match="request"):
                await calling.call(id_of(b), "large", {"n": 1, "pad": bytes(3000)}, 5, max_bytes=2000)
            with pytest.raises(FrameTooLargeError, match="refused"):
                await calling.call(id_of(b), "large", {"n": 1, "pad": bytes(1500)}, 5, max_bytes=2000)
            assert len((await calling.call(id_of(b), "large", {"n": 900_000}, 5))["x"]) == 900_000

    run(test)


def test_malformed_requests_are_refused_and_counted():
    async def test() -> None:
        async with peers(2) as (a, b):
            serving = Rpc(b)
            await serving.serve("echo", lambda peer, body: asyncio.sleep(0, body))
            for garbage in (b"", b"\xc1", b"\x81\xa1a" + b"\xdd\x00\x0f\xff\xff" * 1000):
                reply = await a._client.call_unary_handler(b.peer_id, "/ravnest/1/rpc/echo", garbage)
                assert reply[:1] == b"\x01"
                assert b"FrameFormatError" in reply
            assert serving.refused["FrameFormatError"] == 3
            assert await Rpc(a).call(id_of(b), "echo", {"a": 1}, 5) == {"a": 1}

    run(test)


def test_the_requests_of_one_peer_at_a_time_are_bounded():
    async def test() -> None:
        async with peers(2) as (a, b):
            calling, serving = Rpc(a), Rpc(b, max_per_peer=3)
            go, waiting = asyncio.Event(), asyncio.Semaphore(0)

            async def wait(peer: str, body: dict) -> dict:
                waiting.release()
                await go.wait()
                return {}

            await serving.serve("wait", wait)
            calls = [asyncio.ensure_future(calling.call(id_of(b), "wait", {}, 10)) for _ in range(3)]
            for _ in calls:
                await waiting.acquire()
            with pytest.raises(BusyError):
                await calling.call(id_of(b), "wait", {}, 5)
            go.set()
            assert await asyncio.gather(*calls) == [{}, {}, {}]
            assert await calling.call(id_of(b), "wait", {}, 5) == {}
            assert not serving._running

    run(test)


def test_a_call_given_up_ends_its_handler_and_leaves_the_rest_alone():
    async def test() -> None:
        async with peers(2) as (a, b):
            calling, serving = Rpc(a), Rpc(b)
            ended = asyncio.Event()

            async def hang(peer: str, body: dict) -> dict:
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.set()
                return {}

            await serving.serve("hang", hang)
            await serving.serve("echo", lambda peer, body: asyncio.sleep(0, body))
            began_s = time.monotonic()
            with pytest.raises(PeerUnreachableError, match=r"did not answer 'hang' within 0\.3 s"):
                await calling.call(id_of(b), "hang", {}, 0.3)
            assert time.monotonic() - began_s < 2
            await asyncio.wait_for(ended.wait(), 5)
            short = [calling.call(id_of(b), "echo", {"n": n}, 0.001) for n in range(16)]
            await asyncio.gather(*short, return_exceptions=True)
            assert await calling.call(id_of(b), "echo", {"n": 1}, 5) == {"n": 1}
            assert not a._client.control._pending_calls

    run(test)


def test_unreachable_peers_and_a_closed_daemon_have_one_named_error():
    async def test() -> None:
        async with peers(2) as (a, b):
            calling = Rpc(a)
            target = id_of(b)
            for peer in ("", "nonsense", "QmTESUaMRYwTgnDCzvpJpqhULwCgKcsEFs4VqpzCvwovML"):
                with pytest.raises(PeerUnreachableError):
                    await calling.call(peer, "echo", {}, 3)
            await b.shutdown()
            with pytest.raises(PeerUnreachableError):
                await calling.call(target, "echo", {}, 3)
            a._child.kill()
            await a._child.wait()
            with pytest.raises(PeerUnreachableError, match="our own p2pd is gone"):
                await calling.call(target, "echo", {}, 3)

    run(test)
