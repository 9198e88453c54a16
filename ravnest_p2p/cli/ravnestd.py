"""`ravnestd`: lend this computer to a swarm, in the foreground, until Ctrl+C."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ravnest_p2p import __version__
from ravnest_p2p.core.capability import MAX_FLOPS
from ravnest_p2p.core.errors import ConfigError, RavnestError, UserFault
from ravnest_p2p.core.types import MICROBATCH_FLOPS
from ravnest_p2p.daemon.config import DEFAULT_LISTEN, DEFAULT_SWARM, DaemonConfig, default_home
from ravnest_p2p.network.addresses import parse_listen, parse_peer

EXIT_OUR_FAULT, EXIT_USER_FAULT, EXIT_INTERRUPTED = 1, 2, 130
SIZE = re.compile(r"\A(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?\Z", re.IGNORECASE)
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

DESCRIPTION = """\
Lend this computer to a Ravnest swarm: it finds other peers, publishes what it can do, and trains the
stages of models that the swarm's elected leader gives it. Strangers' models run in a child process with
capped memory; nothing is trained that you did not allow by --memory."""

EXAMPLES = """\
examples:
  ravnestd
      start a swarm of your own; it prints the address that others join by
  ravnestd --bootstrap /ip4/203.0.113.5/tcp/4001/p2p/12D3KooW…
      join a swarm by any one of its peers
  ravnestd --home ~/.ravnest-2 --bootstrap …
      a second peer on the same computer needs a folder of its own
  ravnestd --listen /ip4/0.0.0.0/tcp/4001 --no-lend --reachability public --relay-service
      a public peer to join by and to be relayed through, which trains nothing

then, in another terminal:  ravnest peers    ravnest submit examples/cnn/train.py    ravnest jobs"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        config = configured(options)
        logging.getLogger().handlers = [_handler(options.json)]
        logging.getLogger("ravnest_p2p").setLevel(logging.DEBUG if options.verbose else logging.INFO)
        logging.getLogger().setLevel(logging.WARNING)
        run(config)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except UserFault as error:
        print(f"ravnestd: {error}", file=sys.stderr)
        return EXIT_USER_FAULT
    except RavnestError as error:
        print(f"ravnestd: {type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_OUR_FAULT


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="ravnestd",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"ravnestd {__version__}")
    joining = made.add_argument_group("joining")
    joining.add_argument(
        "--bootstrap", action="append", default=[], metavar="ADDRESS",
        help="a peer to join by, /ip4/…/tcp/…/p2p/…; may be repeated; without one, a swarm is started",
    )  # fmt: skip
    joining.add_argument("--swarm", default=DEFAULT_SWARM, help="name of the swarm (default: %(default)s)")
    joining.add_argument(
        "--listen", action="append", default=[], metavar="ADDRESS",
        help=f"where to listen; port 0 takes a free one and keeps it; may be repeated "
        f"(default: {' and '.join(DEFAULT_LISTEN)})",
    )  # fmt: skip
    joining.add_argument("--announce", action="append", default=[], metavar="ADDRESS",
                         help="address to tell others, if it is not the one listened on")  # fmt: skip
    joining.add_argument("--relay", action="append", default=[], metavar="ADDRESS",
                         help="a relay to be reached through when behind a router")  # fmt: skip
    joining.add_argument(
        "--reachability", choices=["auto", "public", "private"], default="auto",
        help="whether others can dial this computer, where you know it (default: %(default)s)",
    )  # fmt: skip
    joining.add_argument(
        "--relay-service", action="store_true", help="let others be relayed through this peer"
    )
    joining.add_argument("--port-mapping", action="store_true", help="ask the router for a port (UPnP)")
    joining.add_argument(
        "--no-direct", action="store_true",
        help="tensors go through libp2p alone (default: over TLS between workers that reach each other)",
    )  # fmt: skip
    lending = made.add_argument_group("lending")
    lending.add_argument(
        "--memory", default="", metavar="SIZE",
        help="what training may use, such as 4GB (default: half of what is free)",
    )  # fmt: skip
    lending.add_argument("--threads", type=int, default=1, help="threads of a worker (default: %(default)s)")
    lending.add_argument(
        "--device", default="auto", metavar="NAME",
        help="what workers compute on: cpu, cuda, cuda:1 or mps (default: the best there is)",
    )  # fmt: skip
    lending.add_argument(
        "--microbatch-flops", type=float, default=MICROBATCH_FLOPS, metavar="N",
        help="take part in no job whose micro-batch takes more operations (default: %(default)g)",
    )  # fmt: skip
    lending.add_argument(
        "--compile", action="store_true",
        help="let workers start the C++ compiler where that makes a stage faster (CPU; takes 1 GiB more)",
    )  # fmt: skip
    lending.add_argument(
        "--disk", default="20GB", metavar="SIZE", help="room for blobs (default: %(default)s)"
    )
    lending.add_argument("--no-lend", action="store_true", help="serve the directory only; train nothing")
    files = made.add_argument_group("files")
    files.add_argument(
        "--home", type=Path, default=None,
        help="folder of this peer's state (default: $RAVNEST_HOME, else ~/.ravnest)",
    )  # fmt: skip
    files.add_argument(
        "--identity", type=Path, default=None,
        help="key file, made on the first start (default: HOME/identity.key)",
    )  # fmt: skip
    output = made.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="log lines as JSON objects")
    output.add_argument("-v", "--verbose", action="store_true", help="log more")
    tuning = made.add_argument_group("election (must be the same in the whole swarm)")
    tuning.add_argument("--epoch", type=float, default=60.0, metavar="SECONDS",
                        help="length of a planning epoch (default: %(default)s)")  # fmt: skip
    return made


def configured(options: argparse.Namespace) -> DaemonConfig:
    """The checked configuration.

    Raises:
        ConfigError: a setting that makes no sense; the message says what would.
    """
    home = (options.home or default_home()).expanduser().absolute()
    if options.threads < 1:
        raise ConfigError(f"--threads {options.threads}: at least 1")
    if not 1.0 <= options.microbatch_flops <= MAX_FLOPS:
        raise ConfigError(f"--microbatch-flops {options.microbatch_flops}: from 1 to {MAX_FLOPS:g}")
    if not 10.0 <= options.epoch <= 86_400.0:
        raise ConfigError(f"--epoch {options.epoch}: from 10 to 86400 seconds")
    return DaemonConfig(
        home=home,
        identity=(options.identity or home / "identity.key").expanduser().absolute(),
        swarm=options.swarm,
        listen=tuple(parse_listen(a) for a in options.listen) or DEFAULT_LISTEN,
        announce=tuple(parse_listen(a) for a in options.announce),
        bootstrap=tuple(parse_peer(a) for a in options.bootstrap),
        relays=tuple(parse_peer(a) for a in options.relay),
        reachability=options.reachability,
        relay_service=options.relay_service,
        port_mapping=options.port_mapping,
        memory_bytes=parse_size(options.memory) if options.memory else 0,
        disk_bytes=parse_size(options.disk),
        lend=not options.no_lend,
        threads=options.threads,
        device=options.device,
        microbatch_flops=options.microbatch_flops,
        compiler=_compiler() if options.compile else (),
        direct=not options.no_direct,
        epoch_s=options.epoch,
    )


def _compiler() -> tuple[Path, ...]:
    from ravnest_p2p.daemon.toolchain import COMPILER, PARTS, toolchain

    found = toolchain()
    if not found:
        logging.getLogger("ravnest_p2p").warning(
            "--compile: %s with %s is not installed; stages run uncompiled", COMPILER, ", ".join(PARTS)
        )
    return found


def parse_size(text: str) -> int:
    """Bytes in a size such as "4GB", "512 MB" or "1000000".

    Raises:
        ConfigError: it is none.
    """
    match = SIZE.match(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is no size: write for example 4GB or 512MB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def run(config: DaemonConfig) -> NoReturn:
    """Serve until a signal; a second one ends at once. Ends the process.

    Raises:
        ConfigError: the device to lend is not there, or too little of it is lent.
    """
    # Imported late: hivemind brings torch along, and `--help` should not wait for it.
    import uvloop

    from ravnest_p2p.daemon.peer import Peer
    from ravnest_p2p.training import check_memory, choose_device

    if config.lend:
        device = choose_device(config.device)
        if config.memory_bytes:
            check_memory(device.type, config.memory_bytes)

    async def serve() -> None:
        peer = Peer(config)
        serving = asyncio.create_task(peer.run())
        told, hurry = asyncio.Event(), asyncio.Event()

        def end() -> None:
            hurry.set() if told.is_set() else told.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, end)
        await _first(serving, told.wait())
        if not serving.done():
            await _first(asyncio.create_task(peer.say_goodbye()), hurry.wait())
            serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        error = None if serving.cancelled() else serving.exception()
        if error is not None:
            raise error

    uvloop.run(serve())
    # Everything is closed by now; taking torch down in good order would hold up the prompt for seconds.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


async def _first(task: asyncio.Task[None], other: Coroutine[Any, Any, object]) -> None:
    """Until either is done."""
    waiting = asyncio.ensure_future(other)
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


class _Lines(logging.Formatter):
    """`12:34:56 level text`, or one JSON object a line."""

    def __init__(self, as_json: bool) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        if not self._as_json:
            return super().format(record)
        line = {"time_s": record.created, "level": record.levelname, "text": record.getMessage()}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _handler(as_json: bool) -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(as_json))
    return handler


if __name__ == "__main__":
    sys.exit(main())
