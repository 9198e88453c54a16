"""A worker's way to members of its plan: those, where libp2p is connected to them, and nowhere else."""

from __future__ import annotations

import asyncio
import socket

import pytest

from ravnest_p2p.core.types import PeerId
from ravnest_p2p.daemon.reach import Reach, asking, listener
from ravnest_p2p.daemon.worker.sandbox_door import Door, Doorkeeper

MEMBER, OTHER = PeerId("12D3KooWMember"), PeerId("12D3KooWOther")
BOUND_S = 10


def reach(hosts: list[str]) -> Reach:
    async def hosts_of(peer: PeerId) -> list[str]:
        return hosts

    made = Reach(hosts_of)
    made.peers = {MEMBER}
    return made


def test_a_member_is_reached_at_whichever_of_its_hosts_answers() -> None:
    async def scenario() -> None:
        with listener(["/dns4/example.org/tcp/1", "/ip4/127.0.0.1/tcp/4001"]) as there:
            port = there.getsockname()[1]
            keeper = Doorkeeper(reach(["127.0.0.2", "::1", "127.0.0.1"]).connect)
            door = Door(keeper.theirs.detach())
            connection = await door.open(asking(MEMBER, port))
            assert connection.getpeername() == ("127.0.0.1", port)
            for peer, at in ((OTHER, port), (PeerId(""), port), (PeerId("é" * 100), port), (MEMBER, 80)):
                with pytest.raises(ConnectionRefusedError):
                    await door.open(asking(peer, at))
            connection.close()
            await keeper.close()

    asyncio.run(asyncio.wait_for(scenario(), BOUND_S))


@pytest.mark.parametrize("hosts", [[], ["127.0.0.1"]])
def test_where_nobody_answers_there_is_no_connection(hosts: list[str]) -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            port = gone.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            await reach(hosts).connect(asking(MEMBER, port))

    asyncio.run(asyncio.wait_for(scenario(), BOUND_S))


def test_nothing_listens_where_no_address_is_given() -> None:
    assert listener([]) is None
    assert listener(["/dns4/example.org/tcp/4001"]) is None
