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
        self._led: dict[PeerId, int] = {}

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

    def note_term(self, leader: PeerId, term: int, rotation: int) -> None:
        """A ticket holder's plan for a term of this epoch was published.

        Args:
            rotation: terms within which nobody leads again.
        """
        if not self.has_led(leader, term, rotation):
            self._led[leader] = term

    def has_led(self, leader: PeerId, term: int, rotation: int) -> bool:
        """Whether its plan of an earlier term leaves this one to the others."""
        return 0 < term - self._led.get(leader, term) < rotation

    def blame(self, leader: PeerId) -> None:
        """A plan of this leader was refused."""
        self._blamed.add(leader)

    def against(self, leader: PeerId, term: int, rotation: int) -> str:
        """Why no plan of the leader is obeyed in this term, whatever it says; empty if one may be."""
        if self.has_led(leader, term, rotation):
            return self.lie_of(leader) or f"it has led term {self._led[leader]}, and it is the others' turn"
        return self.lie_of(leader)

    def why_not_wait(self, leader: PeerId, term: int, rotation: int) -> str:
        """Why nobody waits for the leader in its term; empty if it is waited for."""
        if lie := self.lie_of(leader):
            return lie
        if self.has_led(leader, term, rotation):
            return f"{peer_text(leader)} has led term {self._led[leader]} already"
        if leader in self._blamed:
            return f"a plan of {peer_text(leader)} was refused, its next is not waited for"
        return ""
