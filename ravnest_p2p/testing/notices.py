"""What a simulated peer writes into the directory, again and again: `daemon.notices` on the virtual clock."""

from __future__ import annotations

from ravnest_p2p.core.types import Generation, PeerId

from .world import Published, World

BEAT_EVERY_S = 8.0
BEAT_TTL_S = 30.0
FOR_GOOD_S = 1e9


class SimulatedNotices:
    """Of one peer, in one of its lives.

    Attributes:
        ticket: of the epoch; None until it is shown.
        plan: the own one that is obeyed; None where another's is.
    """

    def __init__(self, world: World, name: PeerId) -> None:
        self._world = world
        self._name = name
        self._beat_due_s = 0.0
        self._reports: list[Generation] = []
        self.ticket: int | None = None
        self.plan: Published | None = None

    def report(self, generation: Generation) -> None:
        """Say that a generation broke."""
        self._reports.append(generation)
        self._write("broken", str(generation), generation, FOR_GOOD_S)

    def show_ticket(self, epoch: int) -> None:
        self._write(f"tickets/{epoch}", self._name, self.ticket, self._world.rules.epoch_s)

    def show_plan(self, epoch: int) -> None:
        if self.plan is not None and self.plan.plan.fence.epoch == epoch:
            subkey = f"{self.plan.plan.fence.term}/{self._name}"
            self._write(f"plan/{epoch}", subkey, self.plan, self._world.rules.epoch_s)

    def refresh(self, now_s: float, epoch: int) -> None:
        """Write the own records again from time to time, and the epoch's where they are not to be seen."""
        self._repeat_unseen(epoch)
        if now_s < self._beat_due_s:
            return
        self._beat_due_s = now_s + BEAT_EVERY_S
        self._write("alive", self._name, None, BEAT_TTL_S)
        for generation in self._reports:
            self._write("broken", str(generation), generation, FOR_GOOD_S)
        if self.ticket is not None:
            self.show_ticket(epoch)
        self.show_plan(epoch)

    def _repeat_unseen(self, epoch: int) -> None:
        """As in the daemon: any write may be lost, and a term is too short to wait for the next beat."""
        seen = self._world.directory.snapshot
        if self.ticket is not None and self._name not in seen(self._name, f"tickets/{epoch}"):
            self.show_ticket(epoch)
        if self.plan is not None:
            subkey = f"{self.plan.plan.fence.term}/{self._name}"
            if subkey not in seen(self._name, f"plan/{epoch}"):
                self.show_plan(epoch)

    def _write(self, key: str, subkey: str, value: object, ttl_s: float) -> None:
        self._world.directory.write(self._name, key, subkey, value, ttl_s)
