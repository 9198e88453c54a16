"""Plans that are not obeyed: those that may be later are kept, and each reason is told once."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from .ballot import Action, Explain, PlanHeader, Reconsider, Refuse, fence_text
from .types import Fence, PeerId
from .wording import peer_text

MAX_HELD = 64
"""Plans kept to be judged again when a ticket comes, or the epoch or the term begins."""

MAX_TOLD = 4096
"""Refusals reported in an epoch; beyond, plans are refused in silence."""


class HeldPlans:
    """Plans against which nothing speaks but the time, or a ticket that has not been seen yet."""

    def __init__(self) -> None:
        self._held: list[PlanHeader] = []

    def hold(self, header: PlanHeader, titled: Callable[[PlanHeader], bool]) -> None:
        """Keep it; where there is no place left, who has no title to a term makes room for who has one."""
        if header in self._held:
            return
        if len(self._held) >= MAX_HELD:
            others = [held for held in self._held if not titled(held)]
            if not others or not titled(header):
                return
            self._held.remove(others[-1])
        self._held.append(header)

    def wake_s(self, until_s: Callable[[PlanHeader], float]) -> float:
        """When the first of them is ready, as far as that is a matter of time alone."""
        return min(map(until_s, self._held), default=inf)

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
