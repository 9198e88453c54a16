"""The values of an election: its rules, what is judged, and what it asks its peer to do.

Problem: the daemon, the simulator and the tests all speak with `Election`. Solution: everything that goes
in or comes out is a small frozen value, so a run can be recorded, compared and replayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .errors import ConfigError
from .types import Fence, PeerId


@dataclass(frozen=True, slots=True)
class ElectionConfig:
    """Rules that all peers of a swarm share.

    Attributes:
        term_s: how long a leader may stay silent.
        min_term_s: shortest term, which limits the rate of plans.
        grace_s: from an epoch's start (or a peer's own start) until somebody may plan, for tickets to spread;
            longer than the clock tolerance, so that a plan rarely meets a peer still in the epoch before.
        tickets_wanted: about so many of the expected peers publish a ticket.
        clock_tolerance_s: by which two peers' clocks may differ.
    """

    swarm: str
    epoch_s: float = 300.0
    term_s: float = 20.0
    min_term_s: float = 5.0
    grace_s: float = 5.0
    max_terms: int = 64
    tickets_wanted: int = 64
    clock_tolerance_s: float = 3.0
    max_tickets: int = 1024

    def __post_init__(self) -> None:
        if not 0 < self.min_term_s <= self.term_s or not 0 <= self.grace_s < self.epoch_s:
            raise ConfigError("election needs 0 < min_term_s <= term_s and 0 <= grace_s < epoch_s")
        if min(self.max_terms, self.tickets_wanted, self.max_tickets) < 1 or self.clock_tolerance_s < 0:
            raise ConfigError("election needs at least one term and one ticket, and a tolerance of 0 or more")


@dataclass(frozen=True, slots=True)
class PlanHeader:
    """A published plan, signature and content already checked by the caller.

    Attributes:
        verdict: empty if the content holds, else why it must never be obeyed.
        doubt: empty, or why a sound plan must not be obeyed as things are, such as the needless move of a
            generation that lives (`consent`). It is refused, and looked at again while it lies there.
    """

    fence: Fence
    leader: PeerId
    plan_hash: str
    verdict: str = ""
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class Adopted:
    """The plan that a peer obeys; written to disk before it is acted upon, and restored on a restart."""

    fence: Fence
    leader: PeerId
    plan_hash: str


@dataclass(frozen=True, slots=True)
class DrawTicket:
    """Compute the own ticket of this epoch and answer with `own_ticket`."""

    epoch: int
    previous_hash: str


@dataclass(frozen=True, slots=True)
class PublishTicket:
    """Publish the own ticket; it is under the threshold."""

    epoch: int


@dataclass(frozen=True, slots=True)
class MakePlan:
    """This peer leads: plan, pass the own header to `plan_seen`, and publish only if that says `Adopt`."""

    fence: Fence
    why: str


@dataclass(frozen=True, slots=True)
class Adopt:
    """Obey this plan: first write `Election.adopted` to disk, then act."""

    fence: Fence
    leader: PeerId
    plan_hash: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Do not obey this plan."""

    fence: Fence
    leader: PeerId
    why: str


@dataclass(frozen=True, slots=True)
class Reconsider:
    """What spoke against this plan has passed: check its content and pass it to `plan_seen` again."""

    fence: Fence
    leader: PeerId
    plan_hash: str


@dataclass(frozen=True, slots=True)
class Expose:
    """Hand these two plans on to a few: they prove that their author published both for one fence."""

    fence: Fence
    leader: PeerId
    plan_hashes: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Explain:
    """One line for the log."""

    text: str


Action = DrawTicket | PublishTicket | MakePlan | Adopt | Refuse | Reconsider | Expose | Explain


class Phase(str, Enum):
    SPREADING = "spreading"
    OPEN = "open"
    LED = "led"


class Turn(str, Enum):
    """What moves the phase on."""

    OPENED = "opened"
    ADOPTED = "adopted"
    SILENT = "silent"
    REFUSED = "refused"
    STALE = "stale"


TRANSITIONS: dict[tuple[Phase, Turn], tuple[Phase, int]] = {
    (Phase.SPREADING, Turn.OPENED): (Phase.OPEN, 0),
    (Phase.SPREADING, Turn.ADOPTED): (Phase.LED, 0),
    (Phase.OPEN, Turn.ADOPTED): (Phase.LED, 0),
    (Phase.LED, Turn.ADOPTED): (Phase.LED, 0),
    (Phase.OPEN, Turn.SILENT): (Phase.OPEN, 1),
    (Phase.OPEN, Turn.REFUSED): (Phase.OPEN, 1),
    (Phase.LED, Turn.STALE): (Phase.OPEN, 1),
}
"""(phase, turn) → (phase, terms to add)."""


def fence_text(fence: Fence) -> str:
    """The fence as people read it."""
    return f"{fence.epoch}.{fence.term}"
