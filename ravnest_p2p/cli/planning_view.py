"""A plan on paper as tables for people, and as plain values for machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ravnest_p2p.core.planning.explain import Explanation, Limit
    from ravnest_p2p.core.planning.layout import Layout
    from ravnest_p2p.core.planning.objective import Score, Worth
    from ravnest_p2p.core.planning.problem import Problem

SHOWN = 40
"""Clusters in the table, at most."""

SHOWN_UPLINKS = 5


def as_dict(problem: Problem, layout: Layout, judged: Score, why: Explanation | None) -> dict[str, Any]:
    """The figures of a plan, and why, where that was asked for."""
    found: dict[str, Any] = {
        "objective": judged.objective,
        "clusters": len(layout.clusters),
        "primaries": sum(len(cluster.peers) for cluster in layout.clusters),
        "standbys": len(layout.standbys),
        "idle": _idle(problem, layout),
        "averaging_s": judged.averaging_s,
        "moved": judged.moved,
    }
    if why is None:
        return found
    names = [peer.name for peer in problem.peers]
    rows = zip(judged.clusters, why.limits, strict=True)
    return found | {
        "why": [
            {
                "samples_per_s": each.rate,
                "interval_s": each.interval_s,
                "limit": limit.kind,
                "stage": limit.stage,
                "peer": None if limit.peer is None else names[limit.peer],
            }
            for each, limit in rows
        ],
        "averaging_waits_for": None if why.slowest is None else names[why.slowest],
        "uplink_twice_as_fast": [{"peer": names[each.peer or 0], "gain": each.gain} for each in why.uplinks],
        "one_more_median_peer": why.peer.gain,
    }


def print_plan(
    problem: Problem, layout: Layout, judged: Score, why: Explanation | None, console: Console | None = None
) -> None:
    """Headline, clusters, and why."""
    console = console or Console()
    figures = as_dict(problem, layout, judged, None)
    console.print(
        Text.assemble(
            (f"{judged.objective:.4g}", "bold"),
            " effective samples/s: {clusters} clusters of {primaries} peers, {standbys} standbys, "
            "{idle} idle; {averaging_s:.0f} s for each averaging".format(**figures),
        )
    )
    if not problem.rules.moves_are_free:
        console.print(Text(f"{judged.moved} peers fetch layers that they did not hold", style="dim"))
    console.print()
    console.print(_clusters(problem, layout, judged, why))
    if len(layout.clusters) > SHOWN:
        console.print(Text(f"and {len(layout.clusters) - SHOWN} more clusters; --json has all", style="dim"))
    if why is not None:
        console.print()
        for line in _reasons(problem, judged, why):
            console.print(Text(line))


def words(problem: Problem, each: Worth, limit: Limit) -> str:
    """What limits a cluster, in words and numbers."""
    name = "" if limit.peer is None else problem.peers[limit.peer].name
    time = f"{limit.seconds:.3g} s"
    return {
        "compute": f"stage {limit.stage} computes for {time} on {name}",
        "memory": f"stage {limit.stage} computes for {time}, and {name} beside it has no memory for more",
        "line": f"stage {limit.stage} sends and receives for {time} on the line of {name}",
        "link": f"the link after stage {limit.stage} ({name}) takes {time}",
        "latency": f"the way through all stages and back takes {time} for each micro-batch in the window",
    }[limit.kind]


def _clusters(problem: Problem, layout: Layout, judged: Score, why: Explanation | None) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for title in ("cluster", "stages", "samples/s", "s/micro-batch", "layers: peer"):
        table.add_column(title, justify="left" if title.startswith("layers") else "right", overflow="fold")
    if why is not None:
        table.add_column("limited by", overflow="fold")
    standby = {primary: name for name, primary in layout.standbys}
    for n, (cluster, each) in enumerate(zip(layout.clusters, judged.clusters, strict=True)):
        if n == SHOWN:
            break
        stages = [
            f"{lo}-{hi - 1}: {problem.peers[peer].name}"
            + (f" (standby {problem.peers[standby[peer]].name})" if peer in standby else "")
            for peer, (lo, hi) in zip(cluster.peers, cluster.ranges(problem.layers.count), strict=True)
        ]
        reason = [] if why is None else [words(problem, each, why.limits[n])]
        row = [str(n), str(len(stages)), f"{each.rate:.3g}", f"{each.interval_s:.3g}", ", ".join(stages)]
        table.add_row(*map(Text, row + reason))
    return table


def _reasons(problem: Problem, judged: Score, why: Explanation) -> list[str]:
    found = []
    kinds = [limit.kind for limit in why.limits]
    counts = ", ".join(
        f"{kinds.count(kind)} by {kind}" for kind in sorted(set(kinds), key=lambda k: (-kinds.count(k), k))
    )
    found.append(f"limited: {counts}")
    if why.slowest is not None:
        share = judged.averaging_s / (judged.averaging_s + problem.rules.round_s)
        found.append(
            f"averaging takes {share:.1%} of the time, {judged.averaging_s:.3g} s: "
            f"{judged.transfer_s:.3g} s of bytes on the line of {problem.peers[why.slowest].name}, "
            f"{judged.steps_s:.3g} s of latency"
        )
    found.append(f"one more peer like the median of these: {_gain(why.peer.gain, judged)}")
    for each in why.uplinks[:SHOWN_UPLINKS]:
        name = problem.peers[each.peer or 0].name
        found.append(f"an uplink twice as fast for {name}: {_gain(each.gain, judged)}")
    if not why.uplinks:
        found.append("no single faster uplink helps")
    return found


def _gain(gain: float, judged: Score) -> str:
    return f"+{gain:.3g} samples/s ({gain / judged.objective:+.2%})"


def _idle(problem: Problem, layout: Layout) -> int:
    used = sum(len(cluster.peers) for cluster in layout.clusters) + len(layout.standbys)
    return len(problem.peers) - used
