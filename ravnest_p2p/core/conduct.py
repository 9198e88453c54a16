"""What leaders have done, by their own signed plans, and what follows for their next ones.

| a leader that                     | is                                                                   |
|-----------------------------------|----------------------------------------------------------------------|
| published two plans for one fence | never obeyed again, and its two plans are handed on (`equivocation`) |
| led a term                        | not obeyed, nor waited for, in the next: it is the others' turn      |
| published a plan that was refused | not waited for again in this epoch                                   |
"""

from __future__ import annotations

from .ballot import Expose, fence_text
from .equivocation import Equivocators
from .types import Fence, PeerId
from .wording import peer_text


class Conduct:
    """Of all leaders, as one peer knows it."""

    def __init__(self) -> None:
        self._equivocators = Equivocators()
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Turns and refused plans are forgotten, lies are not."""
        self._blamed: set[PeerId] = set()
        self._exposed: set[PeerId] = set()
        self._published: dict[PeerId, set[int]] = {}

    def hear(self, fence: Fence, leader: PeerId, plan_hash: str) -> str:
        """Note a plan with a verified signature; returns what it proves for the first time, else nothing."""
        return self.lie_of(leader) if self._equivocators.hear(fence, leader, plan_hash) else ""

    def lie_of(self, leader: PeerId) -> str:
        """What is proven of the leader, as people read it; empty where nothing is."""
        proof = self._equivocators.proof(leader)
        return f"{peer_text(leader)} published two plans for {fence_text(proof.fence)}" if proof else ""

    def expose(self, leader: PeerId) -> list[Expose]:
        """Its two plans, once an epoch while it goes on: there are always some who just came."""
        proof = self._equivocators.proof(leader)
        if proof is None or leader in self._exposed:
            return []
        self._exposed.add(leader)
        return [Expose(proof.fence, leader, proof.plan_hashes)]

    def note_term(self, leader: PeerId, term: int) -> None:
        """A ticket holder's plan for a term that this epoch has was published."""
        self._published.setdefault(leader, set()).add(term)

    def has_led(self, leader: PeerId, term: int, rotation: int) -> int | None:
        """The earlier term of the leader that leaves this one to the others; None if this one may be its own.

        It depends on what was heard alone, not on the order in which.

        Args:
            rotation: terms within which nobody leads again.
        """
        led: int | None = None
        for published in sorted(self._published.get(leader, ())):
            if published >= term:
                break
            if led is None or published - led >= rotation:
                led = published
        return led if led is not None and term - led < rotation else None

    def blame(self, leader: PeerId) -> None:
        """A plan of this leader was refused."""
        self._blamed.add(leader)

    def against(self, leader: PeerId, term: int, rotation: int) -> str:
        """Why no plan of the leader is obeyed in this term, whatever it says; empty if one may be."""
        if lie := self.lie_of(leader):
            return lie
        led = self.has_led(leader, term, rotation)
        return "" if led is None else f"it has led term {led}, and it is the others' turn"

    def why_not_wait(self, leader: PeerId, term: int, rotation: int) -> str:
        """Why nobody waits for the leader in its term; empty if it is waited for."""
        if lie := self.lie_of(leader):
            return lie
        led = self.has_led(leader, term, rotation)
        if led is not None:
            return f"{peer_text(leader)} has led term {led} already"
        if leader in self._blamed:
            return f"a plan of {peer_text(leader)} was refused, its next is not waited for"
        return ""
