"""`ravnest trace`: what the stages of a job did and when, as a table, a trace, a picture or a timetable."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ravnest_p2p.client.swarm import Swarm
    from ravnest_p2p.client.timeline import JobTimeline
    from ravnest_p2p.core.pipeline.timeline_rows import StageSummary

VIEWER = "https://ui.perfetto.dev"


def add_flags(command: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    command.add_argument("job", help="its id, or the beginning of it")
    command.add_argument("--out", metavar="FILE", help=f"write a trace that {VIEWER} opens")
    command.add_argument("--svg", metavar="FILE", help="draw a picture into this file")
    command.add_argument("--text", action="store_true", help="print each stage's operations in one line")
    command.add_argument(
        "--last",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="only the last seconds of what each stage trained (default: 10)",
    )


def trace(swarm: Swarm, options: argparse.Namespace) -> None:
    """Do what was asked.

    Raises:
        ConfigError: seconds that are none, or a file that cannot be written.
    """
    from ravnest_p2p.cli import output

    timeline = swarm.job(options.job).trace(options.last)
    if options.out:
        output.write_text(options.out, json.dumps(timeline.trace_events(), separators=(",", ":")))
    if options.svg:
        output.write_text(options.svg, timeline.svg())
    if options.json:
        output.print_json(as_dict(timeline))
    elif options.text:
        print("\n".join(timeline.timetable()))
    else:
        _print_table(timeline, options)
    for peer, reason in timeline.left_out.items():
        print(f"left out: …{peer[-8:]}: {reason}", file=sys.stderr)


def as_dict(timeline: JobTimeline) -> dict[str, Any]:
    """The summary as plain values."""
    return {
        "job": timeline.job,
        "generation": timeline.generation,
        "stages": [stage.as_dict() for stage in timeline.summary()],
        "left_out": timeline.left_out,
    }


def _print_table(timeline: JobTimeline, options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("stage", no_wrap=True)
    table.add_column("peer", no_wrap=True)
    for title in ("ops", "time", "busy", "wait", "average", "rest"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("largest gap")
    for stage in timeline.summary():
        table.add_row(*map(Text, _cells(stage)))
    Console().print(table)
    print("\n".join(_next(options)))


def _cells(stage: StageSummary) -> Sequence[str]:
    from ravnest_p2p.cli.live import short

    shares = stage.busy, stage.waiting, stage.averaging, stage.handing_over
    gap = f"{1000 * stage.largest_gap_s:.1f} ms"
    return (
        f"{stage.cluster}/{stage.stage}",
        short(stage.peer),
        str(stage.spans),
        f"{stage.seconds:.2f} s",
        *(f"{100 * share:.1f} %" for share in shares),
        f"{gap} for {stage.awaited}" if stage.awaited else gap,
    )


def _next(options: argparse.Namespace) -> list[str]:
    """What to do with it."""
    lines = []
    if options.out:
        lines.append(f"{options.out}: open it in {VIEWER}, or in chrome://tracing")
    if options.svg:
        lines.append(f"{options.svg}: open it in a browser")
    if not lines:
        lines.append(f"--out trace.json writes every span: open that in {VIEWER}; --svg FILE draws them")
    return lines
