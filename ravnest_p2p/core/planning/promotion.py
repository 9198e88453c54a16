"""Whether a job that runs moves to clearly better clusters.

Problem: newcomers and better measurements are worth something to jobs that run, but a move costs training,
noise must not cause one, and a hostile leader would call anything a gain. Solution: moves are rare, gain
clearly, pay back within the job and lose at most a round; and whoever takes part in one checks that with
what it knows itself, among peers that are no strangers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from ravnest_p2p.core.planning.clusters import ClusterSearch
from ravnest_p2p.core.planning.cost import Draft, planning_table, predicted_updates_per_s, updates_per_s
from ravnest_p2p.core.planning.resume import resume_point
from ravnest_p2p.core.types import Capability, Fence, JobPlan, JobSpec, PeerId, Piece

LEADERS_GAIN, FOLLOWERS_GAIN = 1.4, 1.2
"""Times more updates a second that a move has to bring; followers ask for less, who measured other links."""

LEAST_AGE_EPOCHS = 3
"""A generation that is younger is left alone: moves of one job follow each other no faster."""

MOVE_S = 120.0
"""What a move costs: the training since the last saved round, and until all stages have loaded."""


def old_enough(old: JobPlan, fence: Fence) -> bool:
    """Whether a plan at this fence may move the generation for gain."""
    return fence.epoch - old.generation.epoch >= LEAST_AGE_EPOCHS


def better_clusters(
    spec: JobSpec,
    old: JobPlan,
    candidates: Mapping[PeerId, Capability],
    *,
    batches_done: int,
    most_peers: int,
    memory_scale: float = 1.0,
    seed: int | None = 0,
) -> tuple[Draft, ...]:
    """Clusters that are worth moving the job to; empty if there are none.

    Args:
        candidates: its peers, and newcomers.
        batches_done: from where it would go on.
    """
    now = predicted_updates_per_s(spec, old.clusters, candidates)
    if now is None:
        return ()
    formation = ClusterSearch(spec, list(candidates.values()), memory_scale, seed).best(most_peers=most_peers)
    if formation is None:
        return ()
    then = updates_per_s(spec, planning_table(spec), formation.clusters)
    return formation.clusters if _pays(spec, batches_done, now, then, LEADERS_GAIN) else ()


def objection(
    old: JobPlan,
    new: JobPlan,
    fence: Fence,
    *,
    spec: JobSpec | None,
    capabilities: Mapping[PeerId, Capability],
    elders: Collection[PeerId],
    pieces: Sequence[Piece],
) -> str:
    """Why a living generation should not make way for the new one; empty if it gains by it.

    Args:
        fence: of the plan that moves it.
        spec: None where it is not known; what it gains is then its members' to judge.
        capabilities: of the peers that are known.
        elders: peers that are no strangers to the old generation.
        pieces: saved state by the words of its members.
    """
    if new.generation[:2] != fence or not new.clusters or not old_enough(old, fence):
        return "it is too young to be moved for gain"
    if not set(elders).issuperset(new.peers):
        return "it would go to strangers"
    if spec is None:
        return ""
    if new.batches_done < _least_batches(pieces, len(spec.layers)):
        return f"it would go back to batch {new.batches_done}"
    now = predicted_updates_per_s(spec, old.clusters, capabilities)
    then = predicted_updates_per_s(spec, new.clusters, capabilities)
    if now is None or then is None or not _pays(spec, new.batches_done, now, then, FOLLOWERS_GAIN):
        return "it would gain too little"
    return ""


def _pays(spec: JobSpec, batches_done: int, now: float, then: float, gain: float) -> bool:
    """Whether the move gains enough, and ends the job sooner."""
    left = spec.total_batches - batches_done
    return then >= now * gain and left / then + MOVE_S < left / now


def _least_batches(pieces: Iterable[Piece], layers: int) -> int:
    """The round before the newest that its members hold: the newest may have come after the leader asked."""
    held = list(pieces)
    live = {holder for piece in held for holder in piece.holders}
    newest = resume_point(held, live, layers)
    if newest is None:
        return 0
    before = resume_point([piece for piece in held if piece.batches_done < newest[0]], live, layers)
    return before[0] if before is not None else newest[0]
