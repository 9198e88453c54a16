"""The processes of one side of `benchmarks.averaging`: begun, told what to do, asked how long it took."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from tempfile import TemporaryFile
from typing import Any

from benchmarks.averagers.net import DEVICE
from ravnest_p2p.testing.local_swarm import Host

PARTS = {
    "ours": "ravnest_p2p.testing.ring_member",
    "gloo": "benchmarks.averagers.gloo",
    "hivemind": "benchmarks.averagers.hivemind_averager",
    "server": "benchmarks.averagers.server",
}
LIMIT_S = 120.0
TRIES = 3
"""To find a group; only hivemind's members ever need a second one."""
SAID_CHARS = 2000
"""Of what a member that failed said last."""

Layers = Sequence[int]
Cuts = Sequence[Sequence[int]]


class Members:
    """One side's processes, a context manager.

    Args:
        layers: elements of each.
        cuts: of each cluster; only ours takes clusters of several stages.
        hosts: of every stage of every cluster, in order.

    Attributes:
        groupless: times that the members did not find a group, and began anew.
    """

    def __init__(self, side: str, layers: Layers, cuts: Cuts, hosts: Sequence[Host]) -> None:
        self.groupless = 0
        self._side, self._hosts = side, hosts
        self._layers, self._cuts = list(layers), [list(its) for its in cuts]
        self._start()

    def _start(self) -> None:
        side, hosts = self._side, self._hosts
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": hosts[0].address,
            "MASTER_PORT": str(random.randint(20_000, 30_000)),
            "GLOO_SOCKET_IFNAME": DEVICE if hosts[0].prefix else "lo",
        }
        self._said = [TemporaryFile("w+") for _ in hosts]  # noqa: SIM115 (closed with the members)
        self._all = [
            subprocess.Popen(
                [*host.prefix, sys.executable, "-m", PARTS[side]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env=environment,
                start_new_session=True,  # hivemind's children go with it
            )
            for host, said in zip(hosts, self._said, strict=True)
        ]
        try:
            begin = {"ours": self._begin_ours, "hivemind": self._begin_hivemind}.get(side, self._begin_gloo)
            begin(hosts)
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

    def restart(self) -> None:
        """Begin anew, with new processes."""
        self._kill()
        self._start()

    def average(self, number: int) -> list[dict[str, Any]]:
        """What each member says of one averaging."""
        self.fill(number)
        return self.go(number)

    def fill(self, number: int) -> None:
        """Let each member fill its tensor, and have its group where it needs one.

        Raises:
            RuntimeError: the members found none, in several tries.
        """
        for _ in range(TRIES):
            if all(one["filled"] for one in self.go(number)):
                return
            self.groupless += 1
            self.restart()
        raise RuntimeError(f"{self._side}: members found no group in {TRIES} tries")

    def go(self, number: int) -> list[dict[str, Any]]:
        """Let each member do what is next, and hear what it says of it."""
        for one in self._all:
            self._say(one, go=number)
        return [self._hear(one) for one in self._all]

    @property
    def pids(self) -> list[int]:
        return [one.pid for one in self._all]

    def _begin_ours(self, hosts: Sequence[Host]) -> None:
        places = [(c, stage) for c, its in enumerate(self._cuts) for stage in range(len(its) - 1)]
        for (cluster, stage), one, host in zip(places, self._all, hosts, strict=True):
            told = {"cuts": self._cuts, "layers": self._layers, "address": host.address}
            self._say(one, cluster=cluster, stage=stage, **told)
        peers = [
            {**self._hear(one), "cluster": cluster, "stage": stage}
            for (cluster, stage), one in zip(places, self._all, strict=True)
        ]
        for one in self._all:
            self._say(one, peers=peers)
        for one in self._all:
            self._hear(one)
        for one in self._all:
            self._say(one, connected=True)

    def _begin_gloo(self, hosts: Sequence[Host]) -> None:
        for rank, one in enumerate(self._all):
            self._say(one, rank=rank, members=len(hosts), elements=sum(self._layers))

    def _begin_hivemind(self, hosts: Sequence[Host]) -> None:
        known: list[str] = []
        for rank, (one, host) in enumerate(zip(self._all, hosts, strict=True)):
            self._say(one, rank=rank, elements=sum(self._layers), address=host.address, initial=known)
            known = known or self._hear(one)["addresses"]
        for one in self._all:
            self._say(one, members=len(hosts))

    @staticmethod
    def _say(one: subprocess.Popen[str], **what: Any) -> None:
        assert one.stdin is not None
        one.stdin.write(json.dumps(what) + "\n")
        one.stdin.flush()

    def _hear(self, one: subprocess.Popen[str]) -> dict[str, Any]:
        assert one.stdout is not None
        line = one.stdout.readline()
        if not line:
            status, said = one.wait(LIMIT_S), self._said[self._all.index(one)]
            said.seek(0)
            raise RuntimeError(f"a member ended with status {status}: {said.read()[-SAID_CHARS:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def _kill(self) -> None:
        for one in self._all:
            with suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)
            one.wait()
        for said in self._said:
            said.close()
