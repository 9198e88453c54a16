"""Where the election stands, for `ravnest epoch`: whose plan is obeyed, by whom, and who refused what."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from ravnest_p2p.core.errors import RemoteFault
from ravnest_p2p.core.planning.cost import predicted_updates_per_s
from ravnest_p2p.core.types import Capability, JobId, JobPlan, JobSpec, PeerId, Plan
from ravnest_p2p.daemon.peer_messages import BALLOT, BallotTold, parse
from ravnest_p2p.network.rpc import Rpc

ASK_TIMEOUT_S = 2.0


async def ask_ballots(
    rpc: Rpc, own: PeerId, told: BallotTold, peers: Iterable[PeerId]
) -> dict[PeerId, BallotTold]:
    """Ballots of those peers that answer; our own needs no call."""

    async def ask(peer: PeerId) -> BallotTold | None:
        if peer == own:
            return told
        try:
            return parse(BallotTold, await rpc.call(peer, BALLOT, {}, ASK_TIMEOUT_S))
        except RemoteFault:
            return None

    asked = list(dict.fromkeys([own, *peers]))
    answers = await asyncio.gather(*map(ask, asked))
    return {peer: answer for peer, answer in zip(asked, answers, strict=True) if answer is not None}


def epoch_view(
    own: BallotTold,
    plan: Plan | None,
    ballots: Mapping[PeerId, BallotTold],
    specs: Mapping[JobId, JobSpec],
    offers: Mapping[PeerId, Capability],
    *,
    epoch_s: float,
    ends_in_s: float,
) -> dict[str, Any]:
    """The election as this peer sees it, with what others say of themselves."""
    return {
        "epoch": own.epoch,
        "term": own.term,
        "phase": own.phase.value,
        "leader": own.leader,
        "epoch_s": epoch_s,
        "ends_in_s": ends_in_s,
        "plan": None
        if plan is None
        else {
            "epoch": plan.fence.epoch,
            "term": plan.fence.term,
            "leader": plan.leader,
            "hash": own.plan_hash,
            "jobs": [_job(job, specs.get(job.job), offers) for job in plan.jobs],
        },
        "peers": [
            {
                "peer": peer,
                "epoch": ballot.epoch,
                "term": ballot.term,
                "obeys": list(ballot.obeys) if ballot.obeys is not None else None,
                "agrees": ballot.plan_hash == own.plan_hash,
                "refused": [refusal.model_dump() for refusal in ballot.refused],
            }
            for peer, ballot in sorted(ballots.items())
        ],
    }


def _job(job: JobPlan, spec: JobSpec | None, offers: Mapping[PeerId, Capability]) -> dict[str, Any]:
    rate = predicted_updates_per_s(spec, job.clusters, offers) if spec is not None and job.clusters else None
    return {
        "job": job.job,
        "name": spec.name if spec is not None else "",
        "generation": str(job.generation) if job.clusters else None,
        "clusters": [
            [{"peer": stage.peer, "lo": stage.lo, "hi": stage.hi} for stage in cluster.stages]
            for cluster in job.clusters
        ],
        "standbys": list(job.standbys),
        "updates_per_s": rate,
        "reason": job.reason,
    }
