"""Is averaging as fast as the links? `python -m benchmarks.averaging --json`.

The same tensors, links and cores on every side, one side after the other in each round:

* ours: a stage's `RingExchange` over real libp2p, each member with its own p2pd;
* gloo: torch's all-reduce, a ring over plain TCP;
* hivemind: its DecentralizedAverager, matched up before the time is taken;
* server: a parameter server, which is the first member, over gloo's sends.

Sections: `links` (network namespaces, each member's line shaped to 100 Mbit/s; needs linux, root, iproute2),
`delayed` (the same lines, 40 ms one way between any two; without the server), `uneven` (ours alone: clusters
that cut differently, lines of 50 to 200 Mbit/s), `loopback`, `memory` (what ours takes beside a member's
parameters), `overlap` (a real swarm trains on such lines, two clusters of two stages, while rounds go on and
while none does). The bound is 2(C−1)/C of a member's bytes over its line's rate.

Without `--section`, `averaging_sim` comes first: up to 10,000 clusters in virtual time, two minutes. `--sim`
runs nothing else.

About an hour and ten minutes on two cores; nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any, NamedTuple

from benchmarks import averaging_sim
from benchmarks.averagers.far import FarNet
from benchmarks.averagers.members import PARTS, Members
from benchmarks.averagers.memory import extra_bytes
from benchmarks.averagers.net import ShapedNet
from benchmarks.common import Goal, report
from benchmarks.namespaces import demand
from ravnest_p2p.core.planning.overlap import ALWAYS, NEVER
from ravnest_p2p.testing.local_swarm import Host

ROUNDS, QUICK_ROUNDS = 7, 2
ELEMENT_BYTES = 4
MODEL_BYTES = 64e6
RATE_BPS = 100e6
ONE_WAY_S = 0.04
FASTER = ">= 1.2"
"""Than the others, over lines with a delay."""

SHAPED = ((2, 16e6), (3, 16e6), (4, 16e6), (2, 64e6), (3, 64e6), (4, 64e6))
"""Members, and bytes of each one's tensor."""

ON_LOOPBACK = ((2, 64e6), (3, 64e6), (4, 64e6))
FIGURE_4 = ((0, 4, 8, 12), (0, 6, 12), (0, 3, 8, 12))
"""Cuts of three clusters that make five segments, as in the paper's figure 4; layers of equal size."""

OVERLAP_PEERS = 4
UNDERWAY = 0.3
"""Chunks underway, of 64 MB: 49, where each link may have 8 of its own sums, and what comes of those."""

FIGURE_4_RATES_BPS = (150e6, 100e6, 100e6, 200e6, 200e6, 50e6, 100e6, 75e6)


class Case(NamedTuple):
    members: int
    size_bytes: float

    def __str__(self) -> str:
        return f"C = {self.members}, {self.size_bytes / 1e6:g} MB"

    @property
    def layers(self) -> tuple[int, ...]:
        return (round(self.size_bytes / ELEMENT_BYTES),)

    @property
    def share_bytes(self) -> float:
        """What each member has to send."""
        return 2 * (self.members - 1) / self.members * self.size_bytes


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.averaging",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object for machines")
    parser.add_argument("--quick", action="store_true", help="two rounds; never for a claim")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--section", choices=SECTIONS, help="only this one (default: all, and --sim)")
    only.add_argument("--sim", action="store_true", help="only steps, bytes and time in virtual time")
    options = parser.parse_args(arguments)
    chosen = [] if options.sim else [options.section] if options.section else list(SECTIONS)
    demand(parser, chosen, IN_NAMESPACES)
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    results: dict[str, Any] = {}
    goals: list[Goal] = []
    if not options.section:
        # First, since it measures the memory of this process.
        results, goals = averaging_sim.run()
    for name in chosen:
        results[name], found = SECTIONS[name](rounds)
        goals += found
    return report("averaging", results, goals, options.json)


def _links(rounds: int) -> tuple[dict[str, Any], list[Goal]]:
    rows: dict[str, Any] = {}
    goals = []
    for case in (Case(*shaped) for shaped in SHAPED):
        bound_s = case.share_bytes * 8 / RATE_BPS
        with ShapedNet([RATE_BPS] * case.members) as net:
            found = _in_rounds(case, net.hosts, rounds)
        for side, row in found.items():
            rows[f"{case}: {side}"] = row | {"/ bound": row["s"] / bound_s}
        ours = found["ours"]
        goals += [
            Goal(f"bytes / bound, {case}", ours["bytes"] / case.share_bytes, "", "<= 1.02"),
            Goal(f"time / bound, {case}", ours["s"] / bound_s, "", "<= 1.10"),
            Goal(f"time / gloo, {case}", ours["s"] / found["gloo"]["s"], "", "<= 1.02"),
            Goal(
                f"hivemind / ours, {case}",
                found["hivemind"]["s"] / ours["s"],
                "",
                ">= 1.1" if case.members > 2 else ">= 1.0",
            ),
            Goal(
                f"parameter server / ours, {case}",
                found["server"]["s"] / ours["s"],
                "",
                ">= 1.1" if case.members > 2 else ">= 1.0",
            ),
        ]
    return rows, goals


def _delayed(rounds: int) -> tuple[dict[str, Any], list[Goal]]:
    rows: dict[str, Any] = {}
    goals = []
    for case in (Case(*shaped) for shaped in SHAPED):
        with FarNet([RATE_BPS] * case.members, ONE_WAY_S) as net:
            found = _in_rounds(case, net.hosts, rounds, ("ours", *RIVALS))
        for side, row in found.items():
            rows[f"{case}, {ONE_WAY_S * 1e3:g} ms: {side}"] = row | {
                "/ bound": row["s"] / (case.share_bytes * 8 / RATE_BPS)
            }
        goals += faster(case, {side: row["s"] for side, row in found.items()})
    return rows, goals


def faster(case: Case, seconds: Mapping[str, float]) -> list[Goal]:
    """What `delayed` wants of one case, by the medians of its sides."""
    return [
        Goal(
            f"{rival} / ours, {ONE_WAY_S * 1e3:g} ms one way, {case}",
            seconds[rival] / seconds["ours"],
            "",
            FASTER,
        )
        for rival in RIVALS
    ]


def _loopback(rounds: int) -> tuple[dict[str, Any], list[Goal]]:
    rows: dict[str, Any] = {}
    goals = []
    for case in (Case(*one) for one in ON_LOOPBACK):
        found = _in_rounds(case, [Host()] * case.members, rounds)
        rows |= {f"{case}: {side}": row for side, row in found.items()}
        goals.append(
            Goal(
                f"hivemind / ours, loopback, {case}", found["hivemind"]["s"] / found["ours"]["s"], "", ">= 2"
            )
        )
    return rows, goals


def _uneven(rounds: int) -> tuple[dict[str, Any], list[Goal]]:
    """Five rings of three clusters that cut the model differently, on lines of 50 to 200 Mbit/s."""
    cuts, rates_bps, clusters = FIGURE_4, FIGURE_4_RATES_BPS, len(FIGURE_4)
    layers = [round(MODEL_BYTES / ELEMENT_BYTES / cuts[0][-1])] * cuts[0][-1]
    shares = [
        2 * (clusters - 1) / clusters * ELEMENT_BYTES * sum(layers[lo:hi])
        for its in cuts
        for lo, hi in pairwise(its)
    ]
    bound_s = max(share * 8 / rate for share, rate in zip(shares, rates_bps, strict=True))
    took, sent = [], []
    with ShapedNet(rates_bps) as net, Members("ours", layers, cuts, net.hosts) as members:
        for number in range(rounds):
            got = members.average(number)
            if not all(_right(one["values"], clusters) for one in got):
                raise RuntimeError(f"ours averaged wrongly in round {number}")
            took.append(max(one["seconds"] for one in got))
            sent.append(max(one["sent"] / share for one, share in zip(got, shares, strict=True)))
            told = f"uneven: {took[-1]:.3f} s, bound {bound_s:.3f}; bytes {sent[-1]:.4f} of the bound"
            print(told, file=sys.stderr, flush=True)
    row = {"s": statistics.median(took), "least s": min(took), "most s": max(took), "bound s": bound_s}
    return {"ours": row | {"bytes / bound of each round": sent}}, [
        Goal("bytes / bound, five rings", max(sent), "", "<= 1.02"),
        Goal("time / bound, five rings", row["s"] / bound_s, "", "<= 1.10"),
    ]


def _memory(_: int) -> tuple[dict[str, Any], list[Goal]]:
    """One copy of a member's parameters, and chunks underway."""
    rows, goals = {}, []
    for case in (Case(*one) for one in ON_LOOPBACK):
        with Members("ours", case.layers, [(0, 1)] * case.members, [Host()] * case.members) as members:
            extra = max(extra_bytes(members)) / case.size_bytes
        rows[f"{case}: ours"] = {"extra / own": extra}
        goals.append(Goal(f"memory beside the parameters, {case}", extra, "of them", f"<= {1 + UNDERWAY}"))
    return rows, goals


def _overlap(rounds: int) -> tuple[dict[str, Any], list[Goal]]:
    """What a round takes from training beside it, and what stopping for rounds takes."""
    rows: dict[str, Any] = {}
    with ShapedNet([RATE_BPS] * OVERLAP_PEERS) as net:
        for mode in (ALWAYS, NEVER):
            found = _trained(net.hosts, mode, rounds + 3)
            rows |= {f"{mode}: cluster {c}": row for c, row in enumerate(found)}
    beside = [row for name, row in rows.items() if name.startswith(ALWAYS)]
    stopping = [row for name, row in rows.items() if name.startswith(NEVER)]
    total = {key: sum(row[key] for row in beside) for key in ("beside", "apart", "rate")}
    rows["beside rounds / stopping for them"] = {"rate": total["rate"] / sum(row["rate"] for row in stopping)}
    return rows, [
        Goal("training beside a round / without one", total["beside"] / total["apart"], "", ">= 0.9"),
        Goal("a round's share of the line", max(row["bps"] for row in beside) / RATE_BPS, "", "<= 0.5"),
    ]


def _trained(hosts: Sequence[Host], mode: str, rounds: int) -> list[dict[str, float]]:
    first = hosts[0]
    told = json.dumps([[host.address, list(host.prefix)] for host in hosts])
    command = [*first.prefix, sys.executable, "-m", "benchmarks.averagers.training", mode, str(rounds), told]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


SECTIONS = {
    "links": _links,
    "delayed": _delayed,
    "uneven": _uneven,
    "loopback": _loopback,
    "memory": _memory,
    "overlap": _overlap,
}
IN_NAMESPACES = ("links", "delayed", "uneven", "overlap")
SIDES = tuple(PARTS)
RIVALS = ("gloo", "hivemind")


def _in_rounds(
    case: Case, hosts: Sequence[Host], rounds: int, names: Sequence[str] = SIDES
) -> dict[str, dict[str, float]]:
    """Medians by side; every second round backwards."""
    seconds: dict[str, list[float]] = {side: [] for side in names}
    wrong, sent = dict.fromkeys(names, 0), 0
    with ExitStack() as stack:
        sides = {
            side: stack.enter_context(Members(side, case.layers, [(0, 1)] * case.members, hosts))
            for side in names
        }
        for number in range(rounds):
            for side in names[:: 1 if number % 2 == 0 else -1]:
                got = sides[side].average(number)
                seconds[side].append(max(one["seconds"] for one in got))
                wrong[side] += not all(_right(one["values"], case.members) for one in got)
                if not all(one["values"] for one in got):
                    sides[side].restart()
                if side == "ours":
                    sent = max(sent, *(one["sent"] for one in got))
                print(f"{case}: {side} {seconds[side][-1]:.3f} s", file=sys.stderr, flush=True)
    if wrong["ours"]:
        raise RuntimeError(f"{case}: ours averaged wrongly in {wrong['ours']} of {rounds} rounds")
    return {
        side: {
            "s": statistics.median(its),
            "least s": min(its),
            "most s": max(its),
            "wrong results": wrong[side],
            "found no group": sides[side].groupless,
        }
        | ({"bytes": float(sent)} if side == "ours" else {})
        for side, its in seconds.items()
    }


def _right(values: Sequence[float], members: int) -> bool:
    """Whether all came out as the mean of what was brought, 2^rank; false where nothing came out."""
    mean = (2.0**members - 1) / members
    return bool(values) and all(math.isclose(value, mean, rel_tol=1e-4) for value in values)


if __name__ == "__main__":
    sys.exit(main())
