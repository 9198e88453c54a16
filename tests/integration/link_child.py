"""A worker in a process of its own, for tests that kill it: attaches to a p2pd and echoes what a link brings.

Arguments: p2pd's control address, the peer to expect. Prints the nonce.
"""

import asyncio
import sys

from hivemind.p2p import P2P
from hivemind.utils.multiaddr import Multiaddr

from ravnest_p2p.core.types import Generation, PeerId
from ravnest_p2p.network.link_server import LinkServer


async def main(control: str, remote: str) -> None:
    p2p = await P2P.replicate(Multiaddr(control))
    server = LinkServer(p2p, Generation(3, 1, "aa"))
    nonce = await server.start()
    link = server.expect("act", PeerId(remote))
    print(nonce, flush=True)
    while True:
        frame = await link.receive()
        await link.send(frame.header, [frame.payload])


asyncio.run(main(*sys.argv[1:]))
