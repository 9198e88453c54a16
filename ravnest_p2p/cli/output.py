"""How `ravnest` answers: tables for people, one JSON value for machines, errors in one line.

Text that came from peers is shown as it is, never as markup.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ravnest_p2p.cli.live import bytes_text, number, seconds_text, short
from ravnest_p2p.client.progress import Progress
from ravnest_p2p.core.errors import ConfigError, RavnestError, RemoteFault, UserFault

EXIT_OURS, EXIT_USER, EXIT_REMOTE, EXIT_INTERRUPTED = 1, 2, 3, 130
Entry = dict[str, Any]

_PEER_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("peer", "peer", short),
    ("leader", "", lambda v: "leads" if v else ""),
    ("answers", "", lambda v: "" if v else "silent"),
    ("assignment", "cluster/stage", lambda v: f"{v['job'][:8]} {v['cluster']}/{v['stage']}"),
    ("devices", "devices", lambda v: ", ".join(str(device["kind"]) for device in v)),
    ("memory_bytes", "memory", bytes_text),
    ("flops", "GFLOP/s", lambda v: f"{v / 1e9:.1f}"),
    ("up_bps", "up Mbit/s", lambda v: f"{v / 1e6:.0f}"),
    ("uptime_s", "up for", seconds_text),
    ("reachability", "reached", str),
    ("version", "version", str),
)
"""Key in a peer's map, title of the column, how its value is shown; the last go where room is short."""


def print_json(value: Any) -> None:
    """One JSON value on one line."""
    print(json.dumps(value, default=str), flush=True)


def print_peers(console: Console, peers: Sequence[Entry]) -> None:
    """Peers with whatever is known of them."""
    columns = [column for column in _PEER_COLUMNS if any(peer.get(column[0]) is not None for peer in peers)]
    table = _table(*(title for _, title, _ in columns))
    for peer in peers:
        table.add_row(*(Text(_shown(peer.get(key), show)) for key, _, show in columns))
    console.print(table if peers else Text("no peers", style="dim"))


def print_jobs(console: Console, jobs: Sequence[Progress]) -> None:
    """Jobs, one a row."""
    table = _table("job", "name", "state", "batches", "loss", "samples/s", "reason")
    for job in jobs:
        batches = f"{job.batches_done}/{job.total_batches}"
        row = (
            job.job[:12],
            job.name,
            job.phase.value,
            batches,
            number(job.loss),
            f"{job.samples_per_s:.1f}",
            job.reason,
        )
        table.add_row(*map(Text, row))
    console.print(table if jobs else Text("no jobs", style="dim"))


def print_logs(console: Console, lines: Sequence[Entry]) -> None:
    """Log lines, one a row."""
    for entry in lines:
        time_s, level = entry.get("time_s"), str(entry.get("level", ""))
        when = (
            f"{datetime.fromtimestamp(time_s):%H:%M:%S}" if isinstance(time_s, (int, float)) else "--:--:--"
        )
        who = f" {short(str(entry['peer']))}" if "peer" in entry else ""
        style = {"WARNING": "yellow", "ERROR": "red"}.get(level, "")
        console.print(
            Text.assemble((f"{when} {level:7s}{who} ", "dim"), (str(entry.get("text", "")), style)),
            soft_wrap=True,
        )


def write_text(name: str, text: str) -> None:
    """Write a file that the user named.

    Raises:
        ConfigError: it cannot be written.
    """
    path = Path(name).expanduser()
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from None


def fail(error: BaseException) -> int:
    """Say an error in one line, and whose fault it is by the exit code."""
    if isinstance(error, KeyboardInterrupt):
        print("ravnest: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UserFault):
        print(f"ravnest: {text}", file=sys.stderr)
        return EXIT_USER
    if isinstance(error, RemoteFault):
        print(f"ravnest: the swarm: {text}", file=sys.stderr)
        return EXIT_REMOTE
    kind = "" if isinstance(error, RavnestError) else f"{type(error).__name__}: "
    print(f"ravnest: a fault of ours: {kind}{text} (RAVNEST_DEBUG=1 shows where)", file=sys.stderr)
    return EXIT_OURS


def _table(*titles: str) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for title in titles:
        table.add_column(title, overflow="fold", no_wrap=title != "reason")
    return table


def _shown(value: Any, show: Callable[[Any], str]) -> str:
    if value is None:
        return "–"
    try:
        return show(value)
    except (TypeError, ValueError, KeyError):
        return str(value)
