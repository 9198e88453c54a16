"""One leader at a time without a server: epochs, terms, and the fence that nobody steps back over.

Problem: the swarm needs one plan, but leaders crash, networks split, clocks differ by seconds, and a plan
may be wrong or hostile. Solution: time is cut in epochs; each epoch's tickets, sorted, say who leads term
0, 1, 2, … (`tickets`). A term ends when its leader is silent, its plan is refused, or the plan went stale;
then the next one may plan, under the higher fence (epoch, term). A peer adopts only a fence above all that
it ever adopted, so at most one leader is obeyed for each fence, whatever two peers believe about the term.
Believing differently costs time only: a peer falls in with the term of the plan that it adopts, a second
leader of the same fence ends the term for all who see it, and every epoch starts everyone anew.

    phase      opened  adopted  silent   refused  stale
    spreading  open    led      -        -        -        tickets spread, nobody plans
    open       -       led      open+    open+    -        the term's leader is to publish
    led        -       led      -        -        open+    a plan is adopted

"+" is the next term, past those whose leaders would not be obeyed (`succession`).
`Election` is one peer's pure state machine: the time and what was seen go in, actions come out.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, inf

from .ballot import (
    TRANSITIONS,
    Action,
    Adopt,
    Adopted,
    ElectionConfig,
    Explain,
    MakePlan,
    Phase,
    PlanHeader,
    Turn,
    fence_text,
)
from .conduct import Conduct
from .own_ticket import OwnTicket
from .pending import HeldPlans, Refusals
from .staleness import Staleness
from .succession import Succession
from .tickets import TICKET_SPACE, TicketBook
from .timeliness import Untimely, may_begin_s, untimely
from .types import Fence, PeerId
from .wording import peer_text


class Election:
    """One peer's view of the election.

    Feed it what was seen, then run `poll`; `wake_s` says when it next wants to be polled without news.

    Args:
        now_s: DHT time, the same clock as in every later call.
        adopted: what `Election.adopted` was before a restart; only a higher fence is obeyed, ever.
        eligible: whether this peer may lead.
    """

    def __init__(
        self,
        peer: PeerId,
        config: ElectionConfig,
        now_s: float,
        adopted: Adopted | None = None,
        eligible: bool = True,
    ) -> None:
        self._peer = peer
        self._config = config
        self._adopted = adopted
        self._restored = adopted is not None
        self._eligible = eligible
        self._expected = 0
        self._gone: set[PeerId] = set()
        self._conduct = Conduct()
        self._next_tickets = self._new_book()
        self._held = HeldPlans()
        self._staleness = Staleness(config.term_s)
        self._epoch = -1
        self._enter(floor(now_s / config.epoch_s), now_s)

    @property
    def adopted(self) -> Adopted | None:
        """The plan obeyed; its fence is the highest ever adopted."""
        return self._adopted

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def term(self) -> int:
        return self._term

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def leader(self) -> PeerId | None:
        """Who leads the current term: the author of the adopted plan, else whose turn it is by tickets."""
        if self._phase is Phase.LED and self._adopted is not None:
            return self._adopted.leader
        return self._tickets.leader(self._term)

    @property
    def wake_s(self) -> float:
        """Time at which `poll` has something to do even without news."""
        return self._wake_s

    def expect_peers(self, count: int) -> None:
        """Say how many peers the swarm seems to have, which sets the ticket threshold."""
        self._expected = max(0, count)

    def set_eligible(self, eligible: bool) -> None:
        """Say whether this peer may lead."""
        if eligible != self._eligible:
            self._eligible = eligible
            self._wake_s = -inf

    def own_ticket(self, epoch: int, value: int) -> None:
        """Answer to `DrawTicket`; the ticket is published when it is under the threshold."""
        if epoch == self._epoch and 0 <= value < TICKET_SPACE:
            self._own.value = value
            self._wake_s = -inf

    def ticket_seen(self, epoch: int, peer: PeerId, value: int) -> None:
        """Note a ticket with a verified signature; only this epoch's and the next one's count."""
        if epoch == self._epoch:
            if self._tickets.add(peer, value):
                self._wake_s = -inf
        elif epoch == self._epoch + 1:
            self._next_tickets.add(peer, value)

    def replan_wanted(self, reason: str) -> None:
        """Say that the adopted plan is stale, and why; an empty reason takes it back. Adopting clears it."""
        if self._staleness.say(reason):
            self._wake_s = -inf

    def peer_gone(self, peer: PeerId) -> None:
        """A peer that membership calls gone is not waited for as a leader."""
        self._gone.add(peer)
        self._wake_s = -inf

    def peer_back(self, peer: PeerId) -> None:
        self._gone.discard(peer)

    def plan_failed(self, fence: Fence, why: str) -> list[Action]:
        """The own planner has no plan for this fence; the next leader may try."""
        if fence == Fence(self._epoch, self._term) and self._phase is Phase.OPEN:
            self._succession.refuse(fence, self._peer)
            self._wake_s = -inf
        return [Explain(f"no plan for {fence_text(fence)}: {why}")]

    def plan_seen(self, header: PlanHeader, now_s: float) -> list[Action]:
        """Judge a published plan, or the own one before it is published; again with every reading, at will.

        For a plan of an author without a known ticket, or a little ahead of its time, `poll` asks once more.
        """
        actions = self._turn_epoch(now_s)
        actions += self.plan_heard(header.fence, header.leader, header.plan_hash)
        actions += self._judge(header, now_s)
        return actions

    def plan_heard(self, fence: Fence, leader: PeerId, plan_hash: str) -> list[Action]:
        """Note that a plan was published, even one not worth judging: two of one fence prove a liar."""
        in_epoch = fence.epoch == self._epoch and 0 <= fence.term < self._config.max_terms
        if in_epoch and leader in self._tickets:
            self._conduct.note_term(leader, fence.term)
            if self._phase is Phase.OPEN and self._succession.next_turn(self._term) != self._term:
                self._wake_s = -inf
        lie = self._conduct.hear(fence, leader, plan_hash)
        if not lie:
            return []
        self._wake_s = -inf
        return [*self._conduct.expose(leader), Explain(f"{lie}: it is not obeyed again")]

    def deserves_a_look(self, header: PlanHeader, now_s: float) -> bool:
        """Whether only its content can still speak against this plan."""
        author = self._conduct.against(header.leader, header.fence.term, self._tickets.rotation)
        return not author and self._above_obeyed(header) and self._untimely(header, now_s) is None

    def poll(self, now_s: float) -> Sequence[Action]:
        """Let time pass and say what is to be done now."""
        if now_s < self._wake_s:
            return ()
        actions = self._turn_epoch(now_s)
        due = self._held.due(
            lambda held: held.fence.epoch >= self._epoch and self._above_obeyed(held),
            lambda held: self._untimely(held, now_s) is None,
        )
        if due:  # whether they are obeyed decides what else there is to do
            self._wake_s = -inf
            return actions + due
        if self._phase is Phase.SPREADING and now_s >= self._opens_s:
            self._move(Turn.OPENED, now_s)
        actions += self._ticket_due()
        actions += self._end_term(now_s)
        actions += self._plan_due(now_s)
        self._wake_s = self._next_wake(now_s)
        return actions

    def _new_book(self) -> TicketBook:
        return TicketBook(self._config.max_tickets)

    def _enter(self, epoch: int, now_s: float) -> None:
        """Start an epoch; who comes late into it first listens for as long as tickets take to spread."""
        self._tickets = self._next_tickets if epoch == self._epoch + 1 else self._new_book()
        self._next_tickets = self._new_book()
        self._epoch = epoch
        self._own = OwnTicket(epoch, self._config.tickets_wanted)
        self._made: Fence | None = None
        self._staleness.begin_epoch()
        self._last_told = False
        self._conduct.begin_epoch()
        self._succession = Succession(self._peer, self._config, self._tickets, self._conduct, self._gone)
        self._refusals = Refusals()
        self._opens_s = max(epoch * self._config.epoch_s, now_s) + self._config.grace_s
        self._phase, self._term, self._since_s = Phase.SPREADING, 0, now_s
        if self._adopted is not None and self._adopted.fence.epoch == epoch:
            self._phase, self._term = Phase.LED, self._adopted.fence.term
        self._wake_s = -inf

    def _turn_epoch(self, now_s: float) -> list[Action]:
        epoch = floor(now_s / self._config.epoch_s)
        if epoch <= self._epoch:
            return []
        self._enter(epoch, now_s)
        ahead = self._adopted is not None and self._adopted.fence.epoch > epoch
        warning = (
            ", but a plan of a later epoch was obeyed: a clock was wrong, no plan until then" if ahead else ""
        )
        return [Explain(f"epoch {epoch} begins{warning}")]

    def _move(self, turn: Turn, now_s: float) -> None:
        self._phase, terms = TRANSITIONS[self._phase, turn]
        self._begin(self._term + terms, now_s)

    def _begin(self, term: int, now_s: float) -> None:
        """Be in this term, which lasts from when any peer may be in it."""
        self._term = term
        self._since_s = max(now_s, may_begin_s(Fence(self._epoch, term), self._config))

    def _ticket_due(self) -> list[Action]:
        if not self._eligible:
            return []
        actions = self._own.due("" if self._adopted is None else self._adopted.plan_hash, self._expected)
        if self._own.published and self._own.value is not None:
            self._tickets.add(self._peer, self._own.value)
        return list(actions)

    def _knows_few(self) -> bool:
        """Whether so many tickets are missing that one's own rank says little."""
        return 2 * len(self._tickets) < min(self._expected, self._config.tickets_wanted)

    def _end_term(self, now_s: float) -> list[Action]:
        """End the current term where it must end."""
        over = self._over(now_s)
        if over is None:
            return []
        turn, why = over
        here = Fence(self._epoch, self._term)
        if self._term + 1 >= self._config.max_terms:
            if self._last_told:
                return []
            self._last_told = True
            return [Explain(f"term {fence_text(here)} was the last of its epoch: waiting for the next")]
        if turn is Turn.SILENT:
            self._own.silence()
        self._move(turn, now_s)
        lowest = self._staleness.rise(self._term, now_s) if turn is Turn.STALE else self._term
        self._begin(self._succession.next_turn(lowest), now_s)
        following = self._tickets.leader(self._term)
        if not why or following is None:
            return self._ticket_due()
        text = f"term {fence_text(here)} is over: {why}; {peer_text(following)} is next"
        return [*self._ticket_due(), Explain(text)]

    def _over(self, now_s: float) -> tuple[Turn, str] | None:
        """How the current term ends now, and why; None if it goes on."""
        age_s = now_s - self._since_s
        if self._phase is Phase.OPEN:
            return self._succession.over(Fence(self._epoch, self._term), age_s)
        why = self._staleness.why(now_s)
        if self._phase is Phase.SPREADING or age_s < self._config.min_term_s or not why:
            return None
        return Turn.STALE, why

    def _plan_due(self, now_s: float) -> list[Action]:
        fence = Fence(self._epoch, self._term)
        if (
            self._phase is not Phase.OPEN
            or not self._own.published
            or not self._eligible
            or self._made == fence
        ):
            return []
        if self._tickets.leader(self._term) != self._peer or self._succession.was_refused(fence, self._peer):
            return []
        if self._adopted is not None and fence <= self._adopted.fence:
            return []
        if now_s < self._since_s:  # others were passed over: it has not begun
            return []
        if self._conduct.has_led(self._peer, self._term, self._tickets.rotation) is not None:
            return []
        if self._term == 0 and self._knows_few() and now_s - self._since_s < self._config.min_term_s:
            return []
        self._made = fence
        reason = "first plan of the epoch" if self._term == 0 else "no plan before"
        why = self._staleness.why(now_s) or reason
        return [Explain(f"leading {fence_text(fence)}: {why}"), MakePlan(fence, why)]

    def _judge(self, header: PlanHeader, now_s: float) -> list[Action]:
        fence, adopted = header.fence, self._adopted
        if adopted is not None and fence == adopted.fence:
            return self._judge_again(header, adopted, now_s)
        if adopted is not None and fence < adopted.fence:
            return self._refusals.refuse(header, f"{fence_text(adopted.fence)} is obeyed, which is higher")
        against_now = self._untimely(header, now_s)
        if against_now is not None:
            if against_now.passes:
                self._held.hold(header, self._titled)
                self._wake_s = min(self._wake_s, against_now.until_s)
            return self._refusals.refuse(header, against_now.why) if against_now.why else []
        author = self._conduct.against(header.leader, fence.term, self._tickets.rotation)
        if author:
            # Whoever does not know it yet may obey it: tell, and come together above it.
            self._staleness.note_doubted(fence, now_s)
            self._wake_s = -inf
            return [*self._conduct.expose(header.leader), *self._refusals.refuse(header, author)]
        against = header.verdict or header.doubt
        if not against:
            return self._adopt(header, now_s)
        if self._succession.refuse(fence, header.leader):
            if header.leader != self._peer:
                self._conduct.blame(header.leader)
            self._wake_s = -inf
        if header.doubt:
            self._staleness.note_doubted(fence, now_s)
        return self._refusals.refuse(header, against)

    def _above_obeyed(self, header: PlanHeader) -> bool:
        """Whether its fence is above that of the plan obeyed, or the same one by another hand."""
        adopted = self._adopted
        if adopted is None:
            return True
        return header.fence >= adopted.fence and header.plan_hash != adopted.plan_hash

    def _untimely(self, header: PlanHeader, now_s: float) -> Untimely | None:
        return untimely(header, now_s, self._epoch, self._tickets, self._config)

    def _titled(self, header: PlanHeader) -> bool:
        """Whether its author may lead the term by the tickets seen so far, and is no liar."""
        book = self._tickets if header.fence.epoch == self._epoch else self._next_tickets
        return book.entitles(header.leader, header.fence.term) and not self._conduct.lie_of(header.leader)

    def _judge_again(self, header: PlanHeader, adopted: Adopted, now_s: float) -> list[Action]:
        """A plan with the very fence that is obeyed: the same one, or a second leader."""
        if (header.leader, header.plan_hash) == (adopted.leader, adopted.plan_hash):
            if not self._restored or header.verdict or header.fence.epoch != self._epoch:
                return []
            self._restored = False
            why = f"taking up {fence_text(header.fence)} by {peer_text(header.leader)} again after a restart"
            return [Adopt(header.fence, header.leader, header.plan_hash), Explain(why)]
        entitled = self._tickets.entitles(header.leader, header.fence.term)
        if header.fence.epoch == self._epoch and entitled and not header.verdict:
            if header.doubt:
                self._staleness.note_doubted(header.fence, now_s)
            elif self._staleness.note_second(header.fence):
                self._wake_s = -inf
        return self._refusals.refuse(header, f"that of {peer_text(adopted.leader)} is obeyed")

    def _adopt(self, header: PlanHeader, now_s: float) -> list[Action]:
        self._adopted = Adopted(header.fence, header.leader, header.plan_hash)
        self._restored = False
        self._staleness.settle()
        self._move(Turn.ADOPTED, now_s)
        self._begin(header.fence.term, now_s)
        self._wake_s = -inf
        text = f"adopting {fence_text(header.fence)} by {peer_text(header.leader)}"
        return [Adopt(header.fence, header.leader, header.plan_hash), Explain(text)]

    def _next_wake(self, now_s: float) -> float:
        rules = self._config
        earliest_s, latest_s = self._since_s + rules.min_term_s, self._since_s + rules.term_s
        if self._phase is Phase.SPREADING:
            due = [self._opens_s]
        elif self._phase is Phase.OPEN:
            due = [self._since_s, earliest_s, latest_s]
        else:
            due = [max(self._staleness.called_s, earliest_s)]
        held_s = self._held.wake_s(lambda held: self._ready_s(held, now_s))
        return min(*(due_s for due_s in due if now_s < due_s), held_s, (self._epoch + 1) * rules.epoch_s)

    def _ready_s(self, held: PlanHeader, now_s: float) -> float:
        against = self._untimely(held, now_s)
        return now_s if against is None else against.until_s
