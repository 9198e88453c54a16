"""A job's status as something to look at: clusters, stages, loss, speed, busy share, staleness.

`render` is pure, so that the command line, the demo and a test draw the same picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ravnest_p2p.client.progress import ClusterProgress, Progress, StageProgress
from ravnest_p2p.core.pipeline.window import TOLERANCE
from ravnest_p2p.core.types import JobPhase

_BARS = "▁▂▃▄▅▆▇█"
_CURVE_COLUMNS = 48
_BAR_COLUMNS = 9
_MOST_SHOWN = 9999.0
_STYLES = {
    JobPhase.WAITING: "yellow",
    JobPhase.RUNNING: "green",
    JobPhase.BROKEN: "red",
    JobPhase.DONE: "bold green",
    JobPhase.CANCELLED: "magenta",
    JobPhase.FAILED: "bold red",
}


def render(status: dict[str, Any] | Progress) -> RenderableType:
    """The whole picture of one job."""
    progress = status if isinstance(status, Progress) else Progress.of(status)
    parts: list[RenderableType] = [_headline(progress), _bar(progress)]
    if progress.losses:
        parts.append(Text.assemble(("loss ", "dim"), curve([loss for _, loss in progress.losses])))
    if progress.reason:
        parts.append(Text(progress.reason, style="yellow"))
    if progress.skipped_why:
        parts.append(Text(_skipped(progress), style="yellow"))
    if progress.clusters:
        parts.append(_stages(progress.clusters))
        if len(progress.clusters) > 1:
            parts.append(Text.assemble(("averaging: ", "dim"), _averaging(progress.clusters)))
        parts += [Text(text, style="yellow") for text in progress.advice]
    if progress.spares:
        parts.append(Text.assemble(("spare: ", "dim"), ", ".join(map(short, progress.spares))))
    title = Text.assemble((progress.name or "job", "bold"), f"  {progress.job[:12]}")
    return Panel(Group(*parts), title=title, border_style=_STYLES[progress.phase])


def line(progress: Progress) -> str:
    """The same in one line, for where there is no terminal."""
    parts = [
        progress.phase.value,
        f"{progress.batches_done}/{progress.total_batches} batches",
        f"loss {number(progress.loss)}",
        f"{progress.samples_per_s:.1f} samples/s",
    ]
    if progress.skipped_why:
        parts.append(_skipped(progress))
    if progress.reason:
        parts.append(progress.reason)
    return "  ".join(parts)


def curve(values: Sequence[float], columns: int = _CURVE_COLUMNS) -> str:
    """Values over time as a row of block characters; each column is the mean of its share."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if not finite:
        return ""
    columns = min(columns, len(finite))
    edges = [round(i * len(finite) / columns) for i in range(columns + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(_BARS[round((mean - low) / span * (len(_BARS) - 1))] for mean in means)


def bars(counts: Sequence[int], columns: int = _BAR_COLUMNS) -> str:
    """Counts as a row of block characters from 0 on, of which each is the sum of its share."""
    columns = min(columns, len(counts))
    edges = [round(i * len(counts) / columns) for i in range(columns + 1)] if columns else []
    sums = [sum(counts[a:b]) for a, b in pairwise(edges)]
    highest = max(sums, default=0) or 1
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // highest)] for count in sums)


def short(peer: str) -> str:
    """A peer id as people can tell it from others."""
    return peer if len(peer) <= 12 else f"…{peer[-8:]}"


def number(value: float | None) -> str:
    """A loss, or a dash."""
    return "–" if value is None else f"{value:.4f}"


def bytes_text(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def seconds_text(seconds: float) -> str:
    """A duration as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _headline(progress: Progress) -> Text:
    text = Text()
    text.append(progress.phase.value, style=_STYLES[progress.phase])
    text.append(f"  loss {number(progress.loss)}", style="bold")
    text.append(f"  {progress.samples_per_s:.1f} samples/s")
    text.append(f"  {seconds_text(progress.elapsed_s)}  {bytes_text(progress.bytes_sent)} sent")
    if progress.generation is not None:
        text.append(f"  generation {progress.generation}", style="dim")
    if progress.leader is not None:
        text.append(f"  leader {short(progress.leader)}", style="dim")
    return text


def _skipped(progress: Progress) -> str:
    updates = sum(stage.skipped_updates for cluster in progress.clusters for stage in cluster.stages)
    more = f" and {updates} updates of stages" if updates else ""
    return (
        f"{progress.skipped} micro-batches{more} left out as not finite; the newest: {progress.skipped_why}"
    )


def _bar(progress: Progress) -> Table:
    grid = Table.grid(padding=(0, 1))
    done, total = progress.batches_done, max(1, progress.total_batches)
    grid.add_row(ProgressBar(total=total, completed=done, width=40), Text(f"{done}/{total} batches"))
    return grid


def _stages(clusters: Sequence[ClusterProgress]) -> Table:
    table = Table(box=None, padding=(0, 1), collapse_padding=True, pad_edge=False, header_style="dim")
    for name in ("stage", "layers", "peer", "state"):
        table.add_column(name)
    for name in ("loss", "updates", "busy", "ahead"):
        table.add_column(name, justify="right")
    table.add_column("in flight")
    for name in ("sent", "memory"):
        table.add_column(name, justify="right")
    for index, cluster in enumerate(clusters):
        for stage in cluster.stages:
            last = stage is cluster.stages[-1]
            table.add_row(
                Text(f"{index}/{stage.stage}"),
                Text(f"{stage.lo}–{stage.hi}"),
                Text(short(stage.peer)),
                Text(stage.phase),
                Text(number(cluster.loss) if last else ""),
                Text(str(stage.version)),
                _busy(stage.busy),
                Text(_ahead(stage)),
                Text(bars(stage.ahead) or str(stage.in_flight)),
                Text(bytes_text(stage.bytes_sent)),
                Text(_memory(stage)),
            )
    return table


def _averaging(clusters: Sequence[ClusterProgress]) -> str:
    """How often clusters average, what it takes, and why that often where it is found while they train."""
    first = clusters[0]
    stages = [stage for cluster in clusters for stage in cluster.stages]
    least, most = (of(cluster.updates_per_round for cluster in clusters) for of in (min, max))
    often = str(first.kappa) if first.kappa else f"{least}" if least == most else f"{least} to {most}"
    said = f"every {often} updates"
    if total_s := sum(stage.training_s for stage in stages):
        said += f", {100 * sum(stage.averaging_s for stage in stages) / total_s:.0f} % of the time"
    if overlap := max(cluster.overlap for cluster in clusters):
        said += f", while training goes on for up to {overlap}"
    return f"{said}\n{first.kappa_why}" if first.kappa_why else said


def _busy(busy: float | None) -> Text:
    if busy is None:
        return Text("–")
    style = "green" if busy >= 0.8 else "yellow" if busy >= 0.5 else "red"
    return Text(f"{100 * busy:.0f} %", style=style)


def _memory(stage: StageProgress) -> str:
    """What the worker took at most; the mark is for a stage that recomputes its activations."""
    if not stage.peak_memory_bytes:
        return "–"
    return bytes_text(stage.peak_memory_bytes) + (" ↻" if stage.recompute else "")


def _ahead(stage: StageProgress) -> str:
    """τ now, what would keep the stage busy, and the plan's bound; before it that of now, if it is lower."""
    bounds = [stage.staleness_limit, stage.staleness_bound]
    if stage.staleness_limit == stage.staleness_bound:
        bounds.pop()
    shown = "".join(f" ≤ {bound}" for bound in bounds if bound is not None)
    if stage.window is None or stage.window_wanted is None:
        return f"–{shown}"
    wanted = max(0.0, min(stage.window_wanted - 1.0, _MOST_SHOWN))
    return f"{stage.window - 1} of {math.ceil(wanted - TOLERANCE)}{shown}"
