"""Is averaging as fast as the links? `python -m benchmarks.averaging --json`.

The same tensors, links and cores on every side, one side after the other in each round:

* ours: a stage's `RingExchange` over real libp2p, each member with its own p2pd;
* gloo: torch's all-reduce, a ring over plain TCP;
* hivemind: its DecentralizedAverager, matched up before the time is taken.

Sections: `links` (network namespaces, each member's link shaped to a rate; needs linux, root and iproute2),
`loopback`. The bound is 2(C−1)/C of a member's bytes over its link's rate. About forty minutes on two cores;
nothing else should run. `--sim` runs only `averaging_sim`: up to 10,000 clusters in virtual time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from benchmarks import averaging_sim
from benchmarks.averagers.net import DEVICE, ShapedNet
from benchmarks.common import Goal, report
from ravnest_p2p.testing.local_swarm import Host

ROUNDS, QUICK_ROUNDS = 7, 2
ELEMENT_BYTES = 4
RATE_BPS = 100e6
SHAPED = ((2, 16e6), (3, 16e6), (4, 16e6), (2, 64e6), (3, 64e6), (4, 64e6))
"""Members, and bytes of each one's tensor."""

ON_LOOPBACK = ((2, 64e6), (3, 64e6), (4, 64e6))
PARTS = {
    "ours": "ravnest_p2p.testing.ring_member",
    "gloo": "benchmarks.averagers.gloo",
    "hivemind": "benchmarks.averagers.hivemind_averager",
}
SIDES = tuple(PARTS)
LIMIT_S = 120.0


class Case(NamedTuple):
    members: int
    size_bytes: float

    def __str__(self) -> str:
        return f"C = {self.members}, {self.size_bytes / 1e6:g} MB"

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
    parser.add_argument("--section", choices=SECTIONS, help="only this one (default: all)")
    parser.add_argument("--sim", action="store_true", help="only steps, bytes and time in virtual time")
    options = parser.parse_args(arguments)
    if options.sim:
        return report("averaging_sim", *averaging_sim.run(), options.json)
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    results: dict[str, Any] = {}
    goals: list[Goal] = []
    for name, section in SECTIONS.items():
        if options.section in (None, name):
            results[name], found = section(rounds)
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
        ]
    return rows, goals


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


SECTIONS = {"links": _links, "loopback": _loopback}


def _in_rounds(case: Case, hosts: Sequence[Host], rounds: int) -> dict[str, dict[str, float]]:
    """Medians by side; every second round backwards."""
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    wrong, sent = dict.fromkeys(SIDES, 0), 0
    with ExitStack() as stack:
        sides = {side: stack.enter_context(Members(side, case, hosts)) for side in SIDES}
        for number in range(rounds):
            for side in SIDES[:: 1 if number % 2 == 0 else -1]:
                got = sides[side].average(number)
                seconds[side].append(max(one["seconds"] for one in got))
                wrong[side] += not all(_right(one["values"], case.members) for one in got)
                if side == "ours":
                    sent = max(one["sent"] for one in got)
                print(f"{case}: {side} {seconds[side][-1]:.3f} s", file=sys.stderr, flush=True)
    if wrong["ours"]:
        raise RuntimeError(f"{case}: ours averaged wrongly in {wrong['ours']} of {rounds} rounds")
    return {
        side: {
            "s": statistics.median(its),
            "least s": min(its),
            "most s": max(its),
            "wrong results": wrong[side],
        }
        | ({"bytes": float(sent)} if side == "ours" else {})
        for side, its in seconds.items()
    }


def _right(values: Sequence[float], members: int) -> bool:
    """Whether all came out as the mean of what was brought, 2^rank."""
    mean = (2.0**members - 1) / members
    return all(math.isclose(value, mean, rel_tol=1e-4) for value in values)


class Members:
    """One side's processes, a context manager."""

    def __init__(self, side: str, case: Case, hosts: Sequence[Host]) -> None:
        elements = round(case.size_bytes / ELEMENT_BYTES)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": hosts[0].address,
            "MASTER_PORT": str(random.randint(20_000, 30_000)),
            "GLOO_SOCKET_IFNAME": DEVICE if hosts[0].prefix else "lo",
        }
        self._all = [
            subprocess.Popen(
                [*host.prefix, sys.executable, "-m", PARTS[side]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
            for host in hosts
        ]
        try:
            getattr(self, f"_begin_{side}")(elements, hosts)
            for one in self._all:
                self._hear(one)
        except BaseException:
            self._kill()
            raise

    def __enter__(self) -> Members:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for one in self._all:
                assert one.stdin is not None
                one.stdin.close()
            for one in self._all:
                one.wait(LIMIT_S)
        finally:
            self._kill()

    def average(self, number: int) -> list[dict[str, Any]]:
        """What each member says of one averaging."""
        for _ in ("fills its tensor", "averages"):
            for one in self._all:
                self._say(one, go=number)
            found = [self._hear(one) for one in self._all]
        return found

    def _begin_ours(self, elements: int, hosts: Sequence[Host]) -> None:
        cuts = [[0, 1]] * len(hosts)
        for cluster, (one, host) in enumerate(zip(self._all, hosts, strict=True)):
            self._say(one, cluster=cluster, stage=0, cuts=cuts, layers=[elements], address=host.address)
        peers = [{**self._hear(one), "cluster": c, "stage": 0} for c, one in enumerate(self._all)]
        for one in self._all:
            self._say(one, peers=peers)

    def _begin_gloo(self, elements: int, hosts: Sequence[Host]) -> None:
        for rank, one in enumerate(self._all):
            self._say(one, rank=rank, members=len(hosts), elements=elements)

    def _begin_hivemind(self, elements: int, hosts: Sequence[Host]) -> None:
        known: list[str] = []
        for rank, (one, host) in enumerate(zip(self._all, hosts, strict=True)):
            self._say(one, rank=rank, elements=elements, address=host.address, initial=known)
            known = known or self._hear(one)["addresses"]
        for one in self._all:
            self._say(one, members=len(hosts))

    @staticmethod
    def _say(one: subprocess.Popen[str], **what: Any) -> None:
        assert one.stdin is not None
        one.stdin.write(json.dumps(what) + "\n")
        one.stdin.flush()

    @staticmethod
    def _hear(one: subprocess.Popen[str]) -> dict[str, Any]:
        assert one.stdout is not None
        line = one.stdout.readline()
        if not line:
            raise RuntimeError(f"a member ended with status {one.wait(LIMIT_S)}")
        found: dict[str, Any] = json.loads(line)
        return found

    def _kill(self) -> None:
        for one in self._all:
            one.kill()
            one.wait()


if __name__ == "__main__":
    sys.exit(main())
