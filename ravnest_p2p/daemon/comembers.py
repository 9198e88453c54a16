"""Watching the co-members of one generation: do they live, how do they go, where are their workers dialled.

Each is asked once a period. Its answer goes to the monitor (`core.failover`), its worker's nonce to our
worker. Whether silence is death already is `core.membership`'s to say; it says so long before the directory
forgets the peer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from ravnest_p2p.core.errors import RemoteFault
from ravnest_p2p.core.failover import Action, RunMonitor
from ravnest_p2p.core.membership import Changed, Membership, PeerState
from ravnest_p2p.core.types import JobPhase, JobPlan, PeerId
from ravnest_p2p.daemon.host_deps import HostDeps
from ravnest_p2p.daemon.peer_messages import OVERVIEW, Overview, OverviewAsked, parse, plain

WATCH_PERIOD_S = 1.0
ASK_TIMEOUT_S = 2.0
SUSPECT_AFTER_S = 2.0
GONE_AFTER_S = 4.0


class CoMembers:
    """Runs as long as its generation.

    Args:
        judge: takes what the monitor answers.
        nonces_known: takes the nonces of the co-members' workers, again whenever they may have changed.
    """

    def __init__(
        self,
        plan: JobPlan,
        deps: HostDeps,
        monitor: RunMonitor,
        judge: Callable[[Action | None], None],
        nonces_known: Callable[[dict[PeerId, str]], Awaitable[None]],
    ) -> None:
        self._plan = plan
        self._deps = deps
        self._monitor = monitor
        self._judge = judge
        self._nonces_known = nonces_known
        self._nonces: dict[PeerId, str] = {}
        self._others = [peer for peer in dict.fromkeys(plan.peers) if peer != deps.own]
        self._membership = Membership(SUSPECT_AFTER_S, GONE_AFTER_S, max_peers=len(self._others) + 1)

    async def watch(self) -> None:
        """Until cancelled."""
        for peer in self._others:
            self._membership.heard(peer, time.monotonic())
        while True:
            started_s = time.monotonic()
            await self.ask_all()
            self._note(self._membership.tick(time.monotonic()))
            self._judge(self._monitor.tick(time.monotonic()))
            await self._nonces_known(dict(self._nonces))
            await asyncio.sleep(max(0.0, WATCH_PERIOD_S - (time.monotonic() - started_s)))

    async def ask_all(self) -> None:
        """Ask every co-member now."""
        await asyncio.gather(*(self._ask(peer) for peer in self._others))

    async def _ask(self, peer: PeerId) -> None:
        asked = plain(OverviewAsked(job=self._plan.job))
        try:
            answer = parse(Overview, await self._deps.rpc.call(peer, OVERVIEW, asked, ASK_TIMEOUT_S))
        except RemoteFault:
            self._note(self._membership.silent(peer, time.monotonic()))
            return
        self._note(self._membership.heard(peer, time.monotonic()))
        for view in answer.stages:
            if view.job == self._plan.job:
                # A member that heard of everybody's end may have left before we heard of its own.
                ended = view.generation is None and view.phase is JobPhase.DONE
                generation = self._monitor.generation if ended else view.generation
                now_s = time.monotonic()
                self._judge(self._monitor.member_heard(peer, generation, view.phase, view.reason, now_s))
                if view.generation == self._monitor.generation and view.nonce:
                    self._nonces[peer] = view.nonce

    def _note(self, changes: Sequence[Changed]) -> None:
        for change in changes:
            if change.new is PeerState.GONE:
                self._deps.reachable(change.peer, False)
                self._judge(self._monitor.member_gone(change.peer, "it does not answer", time.monotonic()))
            elif change.old is PeerState.GONE:
                self._deps.reachable(change.peer, True)
