"""Entry of the worker process: `python -m ravnest_p2p.daemon.worker --channel FD …`."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import torch
import uvloop

from ravnest_p2p.daemon.channel import Channel
from ravnest_p2p.daemon.messages import COMMANDS
from ravnest_p2p.daemon.reach import asking
from ravnest_p2p.daemon.worker import guard, sandbox
from ravnest_p2p.daemon.worker.loading import Lent
from ravnest_p2p.daemon.worker.sandbox_door import Door, DoorLoop
from ravnest_p2p.daemon.worker.service import WorkerService
from ravnest_p2p.network.direct import Direct
from ravnest_p2p.training import choose_device, start_device


async def serve(channel_fd: int, lent: Lent, direct: Direct | None) -> None:
    channel = await Channel.over(socket.socket(fileno=channel_fd), COMMANDS)
    await WorkerService(channel, lent, direct).run()


def direct_through(listener: int, door: int) -> Direct:
    """Direct connections that come in at an inherited socket, and go out through a door."""
    way_out = Door(door)
    return Direct(socket.socket(fileno=listener), lambda peer, port: way_out.open(asking(peer, port)))


def main() -> None:
    parser = argparse.ArgumentParser(description="A stage's worker; started by ravnestd, never by hand.")
    parser.add_argument("--channel", type=int, required=True, help="inherited socket to ravnestd")
    parser.add_argument("--door", type=int, required=True, help="inherited socket for connections to p2pd")
    parser.add_argument(
        "--direct",
        type=int,
        nargs=2,
        help="inherited sockets for direct connections: a listening one, and a door",
    )
    parser.add_argument("--parent", type=int, required=True, help="ravnestd's process id")
    parser.add_argument("--memory", type=int, required=True, help="bytes that the stage may use")
    parser.add_argument("--disk", type=int, required=True, help="bytes that a file may have")
    parser.add_argument("--blobs", type=Path, required=True, help="folder to read")
    parser.add_argument("--job", type=Path, required=True, help="folder to write")
    parser.add_argument("--sockets", type=Path, required=True, help="folder for sockets")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--device", default="auto", help="what to compute on")
    parser.add_argument("--microbatch-flops", type=float, required=True, help="most of one micro-batch")
    parser.add_argument("--compiler", type=Path, nargs="*", default=(), help="programs to compile with")
    options = parser.parse_args()
    guard.die_with_parent()
    guard.exit_if_orphan(options.parent)
    guard.give_up_privileges()
    faulthandler.enable()
    rooms = sandbox.Rooms(options.blobs, options.job, options.sockets)
    files = sandbox.confine_files(rooms, options.compiler, driving=options.device != "cpu")
    device = choose_device(options.device)
    on_gpu = device.type != "cpu"
    lent = Lent(device, options.microbatch_flops, options.memory, bool(options.compiler))
    guard.limit_resources(None if on_gpu else options.memory, options.disk)
    start_device(device, options.memory)
    calls = sandbox.confine_calls(bool(options.compiler), driving=on_gpu)
    print(f"worker {os.getpid()}: {files}; {calls}", file=sys.stderr)
    if lent.compiling:
        logging.basicConfig(stream=sys.stderr)
        logging.getLogger("ravnest_p2p.model").setLevel(logging.INFO)
    # Ctrl+C in a terminal reaches the whole process group; ravnestd alone decides when a worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(options.threads)
    torch.set_num_interop_threads(1)
    direct = direct_through(*options.direct) if options.direct else None
    uvloop.run(
        serve(options.channel, lent, direct), loop_factory=lambda: DoorLoop.through(Door(options.door))
    )
    # Nothing here outlives the process, and taking torch down in good order takes a second or more.
    os._exit(0)


if __name__ == "__main__":
    main()
