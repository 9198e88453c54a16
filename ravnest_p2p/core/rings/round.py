"""One member's part in averaging one segment once, whoever dies meanwhile.

Problem: all live members shall end with the same weighted mean, or with what they had, though any of them may
die at any moment; without a second copy of everything, and with every link busy. Solution: the segment is cut
into chunks, each of which takes a way (`ways`) by itself:

    open ──sum complete here, or mean arrived──▶ held ──all members hold it──▶ settled

A member's own part stays as it is until the chunk is held, so an open chunk can be summed again. A mean is
kept for as long as somebody may have to be given it: until all behind have it; where ways branch, until all
have it. When a member dies, all that live tell each other which chunks they hold and keep, and form anew
(`forming`): what some of them hold spreads from one who keeps it, what nobody holds is summed again among the
rest, with weights that sum to 1. Messages of an older formation count for nothing.

Chunks that a member starts by itself wait until an earlier one has come back as a mean: at most `window` of
its own are underway to each other member, which bounds what any has to store. To each, and in the same order
at all: where several begin the sum of a chunk, one window for all could be filled, at each of them, by chunks
that lack another's part. What a link takes next: `outbox`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Generic

from ravnest_p2p.core.errors import ChunkMismatchError, OurFault
from ravnest_p2p.core.rings.forming import Forming
from ravnest_p2p.core.rings.messages import Arithmetic, Formed, Kind, Outcome, Send, T
from ravnest_p2p.core.rings.outbox import NOTES, Outbox
from ravnest_p2p.core.rings.segments import normalised, shares
from ravnest_p2p.core.rings.sums import Sums
from ravnest_p2p.core.rings.ways import Hop, Ring, Ways


class SegmentRound(Generic[T]):
    """Feed it what arrives and who dies; ask it what to send, and at last for the outcome.

    Args:
        rank: ours among all members, dead ones included.
        weights: of all members, such as their samples trained since the last round.
        chunks: that the segment is cut into.
        arithmetic: does to chunks what is due.
        ways: of so many members.
        window: of our own chunks that are underway at once to one other member; that of the ways where None.
    Raises:
        OurFault: numbers that make no round.
    """

    def __init__(
        self,
        rank: int,
        weights: Sequence[float],
        chunks: int,
        arithmetic: Arithmetic[T],
        ways: Callable[[int], Ways] = Ring,
        window: int | None = None,
    ) -> None:
        if not 0 <= rank < len(weights) or chunks < 0 or (window is not None and window < 1):
            raise OurFault(f"rank {rank} of {len(weights)} members, {chunks} chunks, {window} underway")
        normalised(weights)
        self.rank = rank
        self.outcome: Outcome | None = None
        self._weights = tuple(weights)
        self._chunks = chunks
        self._arithmetic = arithmetic
        self._make_ways = ways
        self._given_window = window
        self._changed = False
        self._held: set[int] = set()
        self._settled: set[int] = set()
        self._means: dict[int, T] = {}
        self._forming = Forming(rank, len(self._weights), chunks)
        self._early: list[Callable[[], None]] = []
        self._begin()

    @property
    def formation(self) -> int:
        """The set of the dead as bits."""
        return self._forming.number

    @property
    def live(self) -> Sequence[int]:
        """Ranks that are not known to be dead, ascending."""
        return self._forming.live

    @property
    def forming(self) -> bool:
        """It waits for others to say what they hold."""
        return self._forming.waiting

    @property
    def sums(self) -> int:
        """Sums underway that are kept here, for others or for a link: what takes memory of its own."""
        return len(self._sums)

    @property
    def means(self) -> int:
        """Means that are kept here for those that may have to be given them."""
        return len(self._means)

    # -- deaths

    def died(self, rank: int) -> None:
        """A member is gone, or is not waited for any longer."""
        self._form(1 << rank)

    def formed(self, sender: int, told: Formed) -> None:
        """A member says whom it takes for dead and what it holds.

        Raises:
            ChunkMismatchError: it says what cannot be.
        """
        self._forming.check(sender, told)
        if self._forming.dead(sender):
            return
        self._form(told.formation)
        if self._forming.hear(sender, told):
            self._begin_if_all_told()

    def finished(self, rank: int) -> None:
        """A member says that its round is over: it holds all, and tells no more of what it holds."""
        if self._forming.finish(rank):
            self._begin_if_all_told()

    def news(self) -> list[tuple[int, Formed]]:
        """To whom to say what we hold; each is handed out once."""
        return self._forming.news()

    def _form(self, dead: int) -> None:
        if self.outcome is Outcome.CUT_OUT or not self._forming.lose(dead):
            return
        self._early.clear()
        if self._forming.dead(self.rank):
            self._end(Outcome.CUT_OUT)
            return
        self._forming.tell(self._held, self._means)
        self._begin_if_all_told()

    def _begin_if_all_told(self) -> None:
        if not self.forming:
            early, self._early = self._early, []
            self._begin()
            for arrival in early:
                arrival()

    # -- a formation

    def _begin(self) -> None:
        """All members live know of one another what they hold."""
        live = self.live
        place = self._place(self.rank)
        trained = any(self._weights)
        self._share = shares(self._weights, live)[place]
        self._ways = self._make_ways(len(live))
        self._window = self._given_window or self._ways.window
        self._hops: dict[int, Hop] = {}
        self._awaited: dict[int, set[int]] = {}
        self._out: dict[int, Outbox] = {}
        holders, keepers = self._forming.held(self._held, self._means)
        self._sums: Sums[T] = Sums(holders)
        number = 0
        for chunk in range(self._chunks):
            if holders[chunk] == len(live):
                self._settle(chunk)
            elif holders[chunk]:
                if chunk not in keepers:
                    raise ChunkMismatchError(f"chunk {chunk} is held, and nobody has kept its mean")
                giver = self._place(keepers[chunk])
                self._hops[chunk] = self._ways.hop(self._ways.completed_by(giver), place)
                if self._hops[chunk].source is None:
                    self._spread(chunk)
            elif not trained:
                self._held.add(chunk)
                self._settle(chunk)
            else:
                self._hops[chunk] = self._ways.hop(number % self._ways.count, place)
                number += 1
                self._open(chunk)
        self._finish_if_settled()

    def _open(self, chunk: int) -> None:
        hop = self._hops[chunk]
        if hop.takes:
            return
        if hop.gives is None:
            self._hold(chunk, self._arithmetic.add(chunk, self._share, []))
        else:
            self._outbox(hop.gives).fresh.append((chunk, hop.sum_togo))

    def _outbox(self, place: int) -> Outbox:
        rank = self.live[place]
        if rank not in self._out:
            self._out[rank] = Outbox(self._window)
        return self._out[rank]

    def _place(self, rank: int) -> int:
        return bisect_left(self.live, rank)

    # -- what arrives

    def sum_arrived(self, sender: int, formation: int, chunk: int, payload: T) -> None:
        """A member's sum.

        Raises:
            ChunkMismatchError: none is due from it; nothing has changed.
            NonFiniteError: as the arithmetic says; nothing has changed.
        """
        if not self._current(sender, formation, lambda: self.sum_arrived(sender, formation, chunk, payload)):
            return
        hop = self._hop(chunk)
        sums = self._sums.arrived(chunk, self._place(sender), hop.takes, payload)
        if sums is None:
            return
        total = self._arithmetic.add(chunk, self._share, sums)
        self._sums.added(chunk)
        if hop.gives is None:
            self._hold(chunk, total)
        else:
            self._sums.done[chunk] = total
            self._outbox(hop.gives).put(hop.sum_togo, chunk, Kind.SUM)

    def mean_arrived(self, sender: int, formation: int, chunk: int, payload: T) -> None:
        """The mean; errors as for `sum_arrived`."""
        if not self._current(sender, formation, lambda: self.mean_arrived(sender, formation, chunk, payload)):
            return
        hop = self._hop(chunk)
        if hop.source != self._place(sender) or chunk in self._awaited:
            raise ChunkMismatchError(f"no mean of chunk {chunk} is due from member {sender}")
        if chunk in self._held:
            self._means[chunk] = payload
            self._spread(chunk)
        else:
            self._hold(chunk, payload)

    def noted(self, sender: int, formation: int, held: Sequence[int], settled: Sequence[int]) -> None:
        """Receipts of a member, as in `Send`; errors as for `sum_arrived`."""
        if not self._current(sender, formation, lambda: self.noted(sender, formation, held, settled)):
            return
        place = self._place(sender)
        for chunk in held:
            self._hop(chunk)
            if place not in self._awaited.get(chunk, ()):
                raise ChunkMismatchError(f"member {sender} was given no mean of chunk {chunk}")
            self._awaited[chunk].discard(place)
            self._answer(chunk)
        for chunk in settled:
            if self._hop(chunk).source != place or self._awaited.get(chunk, True):
                raise ChunkMismatchError(f"member {sender} cannot know who has chunk {chunk}")
            self._settle(chunk)
        self._finish_if_settled()

    def _current(self, sender: int, formation: int, arrival: Callable[[], None]) -> bool:
        """Whether a message counts now; one that came before all others spoke counts later."""
        if not 0 <= sender < len(self._weights) or sender == self.rank:
            raise ChunkMismatchError(f"{sender} is no other member")
        if formation & ~self.formation or formation >> sender & 1:
            raise ChunkMismatchError(
                f"member {sender} is in formation {formation:#b}, which nobody agreed on"
            )
        if formation != self.formation or self.outcome is Outcome.CUT_OUT:
            return False
        if self.forming:
            if len(self._early) > len(self.live) * (self._chunks + self._window):
                raise ChunkMismatchError(f"member {sender} sends more than a formation has to begin with")
            self._early.append(arrival)
            return False
        return True

    def _hop(self, chunk: int) -> Hop:
        try:
            return self._hops[chunk]
        except (KeyError, TypeError):
            raise ChunkMismatchError(f"chunk {chunk!r} is none that is underway") from None

    # -- what follows from it

    def _hold(self, chunk: int, mean: T) -> None:
        self._means[chunk] = self._arithmetic.hold(chunk, mean)
        self._changed = True
        self._held.add(chunk)
        self._sums.done.pop(chunk, None)
        self._spread(chunk)

    def _spread(self, chunk: int) -> None:
        hop = self._hops[chunk]
        self._awaited[chunk] = set(hop.passes)
        for place in hop.passes:
            self._outbox(place).put(hop.mean_togo, chunk, Kind.MEAN)
        self._answer(chunk)

    def _answer(self, chunk: int) -> None:
        """All behind us have it: say so to where it came from, or, where it began, that it is settled."""
        if self._awaited[chunk]:
            return
        hop = self._hops[chunk]
        if hop.gives is not None:
            self._outbox(hop.gives).underway.discard(chunk)
        if not self._ways.branch:
            self._means.pop(chunk, None)
        if hop.source is None:
            self._settle(chunk)
            self._finish_if_settled()
        else:
            self._outbox(hop.source).held.append(chunk)

    def _settle(self, chunk: int) -> None:
        self._settled.add(chunk)
        self._awaited.pop(chunk, None)
        self._means.pop(chunk, None)
        hop = self._hops.pop(chunk, None)
        for place in hop.passes if hop is not None else ():
            self._outbox(place).settled.append(chunk)

    def _finish_if_settled(self) -> None:
        if len(self._settled) == self._chunks and self.outcome is None:
            self._end(Outcome.MEAN if self._changed else Outcome.UNCHANGED)

    def _end(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._means.clear()

    # -- what goes out

    def next_for(self, rank: int) -> Send[T] | None:
        """What to send to that member now; None where nothing is due."""
        out = self._out.get(rank)
        if out is None or self.forming or self.outcome is Outcome.CUT_OUT:
            return None
        due = out.take()
        notes = len(out.held) + len(out.settled)
        if due is None and not (notes and (notes >= NOTES or self._idle)):
            return None
        held, settled = out.take_notes()
        if due is None:
            return Send(self.formation, None, None, None, held, settled)
        kind, chunk, begins = due
        return Send(self.formation, kind, chunk, self._payload(kind, chunk, begins), held, settled)

    @property
    def _idle(self) -> bool:
        """Nothing is ready for anyone: what others wait for may be the receipts."""
        return all(out.idle for out in self._out.values())

    def _payload(self, kind: Kind, chunk: int, begins: bool) -> T:
        if begins:
            return self._arithmetic.part(chunk, self._share)
        return self._sums.done.pop(chunk) if kind is Kind.SUM else self._means[chunk]
