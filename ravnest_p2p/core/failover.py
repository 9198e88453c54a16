"""When a peer must stop its part in a generation, and what it tells people about it.

Problem: a pipeline has no use for a member that lost another one: it would wait for ever for activations that
nobody sends, while holding memory that the next plan needs. Solution: one `RunMonitor` for each generation
that this peer takes part in. It hears its own worker, the other members' reports, deaths and the time, and
answers with at most one final action:

| event                                              | action                                |
|----------------------------------------------------|---------------------------------------|
| own worker failed                                  | Break, naming ourselves               |
| a member reports this generation broken            | Break, with the member's reason       |
| a member is gone before it was done                | Break, naming it and its silence      |
| a member was not heard running within start_up_s   | Break, naming it                      |
| a running member was not heard for silence_s       | Break, naming it                      |
| a member obeys another generation of the same fence| Break: two leaders in a partition     |
| a member obeys a higher generation                 | Stop: ours is over, nothing to report |
| every member of every cluster is done              | Done                                  |

The daemon then stops the worker; after a Break it also publishes the generation as broken, and the next plan
forms a new one from the newest saved round.
"""

from __future__ import annotations

from dataclasses import dataclass

from ravnest_p2p.core.types import Generation, JobPhase, JobPlan, PeerId
from ravnest_p2p.core.wording import bounded, peer_text, peers_text, seconds_text

START_UP_S = 120.0
SILENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Break:
    """Stop the own worker and report the generation as broken; `who` caused it."""

    reason: str
    who: PeerId


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the own worker; a higher generation has taken over, so there is nothing to report."""

    reason: str
    who: PeerId


@dataclass(frozen=True, slots=True)
class Done:
    """Every stage of every cluster is done."""


Action = Break | Stop | Done

_FAILED = (JobPhase.BROKEN, JobPhase.FAILED)


class RunMonitor:
    """One peer's part in one generation, from start to its one final action.

    Args:
        own: our peer id; a member of `plan`.
        plan: the job's plan that formed the generation.
        now_s: monotonic seconds; when the worker was started.
        start_up_s: how long every member may take until it reports that it runs.
        silence_s: how long a running member may go unheard.
    Raises:
        ValueError: we are no member of the plan (our fault).
    """

    def __init__(
        self,
        *,
        own: PeerId,
        plan: JobPlan,
        now_s: float,
        start_up_s: float = START_UP_S,
        silence_s: float = SILENCE_S,
    ) -> None:
        if own not in plan.peers:
            raise ValueError(f"{own} is no member of job {plan.job}, generation {plan.generation}")
        self._own = own
        self._generation = plan.generation
        self._phases = dict.fromkeys(sorted(plan.peers), JobPhase.WAITING)
        self._heard_s = dict.fromkeys(self._phases, now_s)
        self._start_s = self._now_s = now_s
        self._start_up_s = start_up_s
        self._silence_s = silence_s
        self._batches_done = plan.batches_done
        self._outcome: Action | None = None

    @property
    def generation(self) -> Generation:
        return self._generation

    @property
    def outcome(self) -> Action | None:
        """The final action, once there was one; after it every event is answered with None."""
        return self._outcome

    def piece_saved(self, batches_done: int) -> None:
        """A round was saved; reasons name the newest one as the place where training goes on."""
        self._batches_done = max(self._batches_done, batches_done)

    def worker_state(self, phase: JobPhase, reason: str = "") -> Action | None:
        """The own worker's phase: WAITING while it starts, RUNNING, DONE, or FAILED (BROKEN is the same)."""
        if self._outcome is not None:
            return None
        self._phases[self._own] = phase
        if phase in _FAILED:
            cause = bounded(reason) or "it ended without a reason"
            return self._end(Break(f"this peer's worker failed: {cause}; {self._next()}", self._own))
        return self._end_if_done()

    def member_heard(
        self, peer: PeerId, generation: Generation | None, phase: JobPhase, reason: str, now_s: float
    ) -> Action | None:
        """A member's own report on this job; a report on a lower generation says nothing about ours."""
        self._now_s = max(self._now_s, now_s)
        if self._outcome is not None or peer == self._own or peer not in self._phases or generation is None:
            return None
        if generation != self._generation:
            return self._other_generation(peer, generation)
        self._heard_s[peer] = max(self._heard_s[peer], now_s)
        if phase is not JobPhase.WAITING and self._phases[peer] is not JobPhase.DONE:
            self._phases[peer] = phase
        if phase in _FAILED:
            said = bounded(reason) or f"peer {peer_text(peer)} reports the generation broken; {self._next()}"
            return self._end(Break(said, peer))
        return self._end_if_done()

    def member_gone(self, peer: PeerId, why: str, now_s: float | None = None) -> Action | None:
        """A member's death was noticed (its streams ended, it went offline, its record expired)."""
        if now_s is not None:
            self._now_s = max(self._now_s, now_s)
        if self._outcome is not None or peer == self._own or peer not in self._phases:
            return None
        if self._phases[peer] is JobPhase.DONE:
            return None
        silent_s = self._now_s - self._heard_s[peer]
        return self._end(Break(self._gone_text(peer, bounded(why), silent_s), peer))

    def tick(self, now_s: float) -> Action | None:
        """Time passes: a start-up or a silence that took too long breaks the generation."""
        self._now_s = max(self._now_s, now_s)
        if self._outcome is not None:
            return None
        late = [p for p, phase in self._phases.items() if phase is JobPhase.WAITING]
        waited_s = self._now_s - self._start_s
        if late and waited_s > self._start_up_s:
            who = peers_text(late)
            text = f"waited {seconds_text(waited_s)} for {who} to start a worker; {self._next()}"
            return self._end(Break(text, late[0]))
        for peer, phase in self._phases.items():
            silent_s = self._now_s - self._heard_s[peer]
            if peer != self._own and phase is JobPhase.RUNNING and silent_s > self._silence_s:
                return self._end(Break(self._gone_text(peer, "no report came from it", silent_s), peer))
        return None

    def _other_generation(self, peer: PeerId, generation: Generation) -> Action | None:
        theirs = (generation.epoch, generation.term)
        ours = (self._generation.epoch, self._generation.term)
        if theirs > ours:
            text = f"peer {peer_text(peer)} already obeys generation {generation}, above {self._generation}"
            return self._end(Stop(text, peer))
        if theirs == ours:
            text = (
                f"peer {peer_text(peer)} obeys generation {generation}, formed by another leader at the time "
                f"of {self._generation}; {self._next()}"
            )
            return self._end(Break(text, peer))
        return None

    def _gone_text(self, peer: PeerId, why: str, silent_s: float) -> str:
        return (
            f"peer {peer_text(peer)} is gone ({why or 'no cause known'}; silent for "
            f"{seconds_text(max(silent_s, 0.0))}); {self._next()}"
        )

    def _next(self) -> str:
        return f"the next plan goes on from batch {self._batches_done}"

    def _end_if_done(self) -> Action | None:
        if all(phase is JobPhase.DONE for phase in self._phases.values()):
            return self._end(Done())
        return None

    def _end(self, action: Action) -> Action:
        self._outcome = action
        return action
