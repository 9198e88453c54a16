"""Hashes of plans, and the tags of the generations that they form.

Problem: peers must agree on what "the same plan" is, and two leaders who use one fence in a partition must
not form one generation out of different members. Solution: canonical hashes; a generation's tag is the hash
of all that its job plan says, so anybody can recompute it.
"""

from __future__ import annotations

from dataclasses import replace

from ravnest_p2p.core.canonical import digest
from ravnest_p2p.core.types import Fence, Generation, JobPlan, Plan

TAG_CHARS = 8


def plan_hash(plan: Plan | None) -> str:
    """Hex SHA-256 of the plan's canonical form; empty for no plan."""
    return "" if plan is None else digest(plan)


def generation_tag(plan: JobPlan) -> str:
    """Tag that the job plan's generation must carry, computed over all but the tag itself."""
    return digest(replace(plan, generation=plan.generation._replace(tag="")))[:TAG_CHARS]


def tagged(plan: JobPlan, fence: Fence) -> JobPlan:
    """The job plan as the new generation that a leader forms at this fence."""
    untagged = replace(plan, generation=Generation(fence.epoch, fence.term, ""))
    return replace(untagged, generation=Generation(fence.epoch, fence.term, generation_tag(untagged)))
