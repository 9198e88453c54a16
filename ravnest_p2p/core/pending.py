"""Plans that are not obeyed: those that may be later are kept, and each reason is told once."""

from __future__ import annotations

from collections.abc import Callable

from .ballot import Action, Explain, PlanHeader, Reconsider, Refuse, fence_text
from .types import Fence, PeerId
from .wording import peer_text

MAX_HELD = 64
"""Plans kept to be judged again when a ticket comes or the epoch begins."""

MAX_TOLD = 4096
"""Refusals reported in an epoch; beyond, plans are refused in silence."""


class HeldPlans:
    """Plans against which nothing speaks but the time, or a ticket that has not been seen yet."""

    def __init__(self) -> None:
        self._held: list[PlanHeader] = []

    def hold(self, header: PlanHeader) -> None:
        if len(self._held) < MAX_HELD and header not in self._held:
            self._held.append(header)

    def due(self, lives: Callable[[PlanHeader], bool], ready: Callable[[PlanHeader], bool]) -> list[Action]:
        """Ask for those again that are ready, and let go of those that do not live."""
        held = [header for header in self._held if lives(header)]
        due = [header for header in held if ready(header)]
        self._held = [header for header in held if header not in due]
        return [Reconsider(header.fence, header.leader, header.plan_hash) for header in due]


class Refusals:
    """What was refused in an epoch, and why."""

    def __init__(self) -> None:
        self._told: set[tuple[Fence, PeerId, str]] = set()

    def refuse(self, header: PlanHeader, why: str) -> list[Action]:
        """Say so, once."""
        key = (header.fence, header.leader, why)
        if key in self._told or len(self._told) >= MAX_TOLD:
            return []
        self._told.add(key)
        text = f"refusing {fence_text(header.fence)} by {peer_text(header.leader)}: {why}"
        return [Refuse(header.fence, header.leader, why), Explain(text)]
