"""Who is there: alive → suspect → gone, and back when heard again.

Problem: in a network that loses messages, silence is not death; but waiting must end. Solution: a failed
ping or `suspect_after_s` without a sign of life makes a peer suspect (nothing new is given to it),
`gone_after_s` makes it gone (its cluster is broken), and any sign of life brings it back. Time comes in as
an argument and must not run backwards. At most `max_peers` are tracked, so a flood of invented peers costs
bounded memory.

    state    heard  silent   late     expired  left
    unknown  alive  -        -        -        -
    alive    alive  suspect  suspect  gone     gone
    suspect  alive  suspect  suspect  gone     gone
    gone     alive  gone     -        -        gone
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .errors import ConfigError
from .types import PeerId


class PeerState(str, Enum):
    ALIVE = "alive"
    SUSPECT = "suspect"
    GONE = "gone"


class Sign(str, Enum):
    """What was learned of a peer."""

    HEARD = "heard"
    SILENT = "a ping failed"
    LATE = "no sign of life"
    EXPIRED = "no sign of life for too long"
    LEFT = "it has left"


TRANSITIONS: dict[tuple[PeerState, Sign], PeerState] = {
    (PeerState.ALIVE, Sign.HEARD): PeerState.ALIVE,
    (PeerState.ALIVE, Sign.SILENT): PeerState.SUSPECT,
    (PeerState.ALIVE, Sign.LATE): PeerState.SUSPECT,
    (PeerState.ALIVE, Sign.EXPIRED): PeerState.GONE,
    (PeerState.ALIVE, Sign.LEFT): PeerState.GONE,
    (PeerState.SUSPECT, Sign.HEARD): PeerState.ALIVE,
    (PeerState.SUSPECT, Sign.SILENT): PeerState.SUSPECT,
    (PeerState.SUSPECT, Sign.LATE): PeerState.SUSPECT,
    (PeerState.SUSPECT, Sign.EXPIRED): PeerState.GONE,
    (PeerState.SUSPECT, Sign.LEFT): PeerState.GONE,
    (PeerState.GONE, Sign.HEARD): PeerState.ALIVE,
    (PeerState.GONE, Sign.SILENT): PeerState.GONE,
    (PeerState.GONE, Sign.LEFT): PeerState.GONE,
}


@dataclass(frozen=True, slots=True)
class Changed:
    """A peer's state has changed; `old` is None for a peer seen for the first time."""

    peer: PeerId
    old: PeerState | None
    new: PeerState
    why: str


class Membership:
    """States of the peers that one peer watches.

    Args:
        suspect_after_s: silence that makes a peer suspect.
        gone_after_s: silence that makes it gone; longer than `suspect_after_s`.
        max_peers: when full, the longest silent peer that is gone, else suspect, makes room; else a newcomer
            is not tracked.
    """

    def __init__(self, suspect_after_s: float, gone_after_s: float, max_peers: int = 10_000) -> None:
        if not 0 < suspect_after_s < gone_after_s or max_peers < 1:
            raise ConfigError("membership needs 0 < suspect_after_s < gone_after_s and max_peers >= 1")
        self._suspect_after_s = suspect_after_s
        self._gone_after_s = gone_after_s
        self._max_peers = max_peers
        self._present: dict[PeerId, PeerState] = {}
        self._heard_s: dict[PeerId, float] = {}
        self._gone: dict[PeerId, None] = {}

    def __len__(self) -> int:
        return len(self._present) + len(self._gone)

    def state(self, peer: PeerId) -> PeerState | None:
        """The peer's state, or None if it is not tracked."""
        return self._present.get(peer, PeerState.GONE if peer in self._gone else None)

    def peers(self, state: PeerState) -> tuple[PeerId, ...]:
        """All tracked peers in this state."""
        if state is PeerState.GONE:
            return tuple(self._gone)
        return tuple(peer for peer, present in self._present.items() if present is state)

    def heard(self, peer: PeerId, now_s: float) -> list[Changed]:
        """A sign of life: an answer, a frame, a fresh record."""
        old = self.state(peer)
        if old is None and len(self) >= self._max_peers and not self._make_room():
            return []
        self._heard_s.pop(peer, None)
        self._heard_s[peer] = now_s
        if old is None:
            self._present[peer] = PeerState.ALIVE
            return [Changed(peer, None, PeerState.ALIVE, Sign.HEARD.value)]
        return self._step(peer, Sign.HEARD)

    def silent(self, peer: PeerId, now_s: float) -> list[Changed]:
        """A ping failed: suspect at once, gone when the last sign of life is too old."""
        heard_s = self._heard_s.get(peer)
        if heard_s is None:
            return []
        return self._step(peer, Sign.EXPIRED if now_s - heard_s >= self._gone_after_s else Sign.SILENT)

    def left(self, peer: PeerId) -> list[Changed]:
        """The peer said goodbye, or its connection ended for good."""
        return [] if self.state(peer) is None else self._step(peer, Sign.LEFT)

    def forget(self, peer: PeerId) -> None:
        """Stop tracking the peer."""
        self._present.pop(peer, None)
        self._heard_s.pop(peer, None)
        self._gone.pop(peer, None)

    def tick(self, now_s: float) -> list[Changed]:
        """Let time pass. Costs as much as there are silent peers, not as there are peers."""
        silent: list[tuple[PeerId, Sign]] = []
        for peer, heard_s in self._heard_s.items():
            quiet_s = now_s - heard_s
            if quiet_s < self._suspect_after_s:
                break
            silent.append((peer, Sign.EXPIRED if quiet_s >= self._gone_after_s else Sign.LATE))
        return [changed for peer, sign in silent for changed in self._step(peer, sign)]

    def _step(self, peer: PeerId, sign: Sign) -> list[Changed]:
        old = self._present.get(peer, PeerState.GONE)
        new = TRANSITIONS[old, sign]
        if new is old:
            return []
        if new is PeerState.GONE:
            del self._present[peer], self._heard_s[peer]
            self._gone[peer] = None
        else:
            self._gone.pop(peer, None)
            self._present[peer] = new
        return [Changed(peer, old, new, sign.value)]

    def _make_room(self) -> bool:
        longest_silent = next(iter(self._heard_s), None)
        if self._gone:
            self.forget(next(iter(self._gone)))
        elif longest_silent is not None and self._present[longest_silent] is PeerState.SUSPECT:
            self.forget(longest_silent)
        else:
            return False
        return True
